//! Whether the schema of a database is the one this binary was written for.

use sqlx::migrate::Migrator;

use super::StoreError;

/// A migration as the database remembers it.
pub(super) type Applied = (i64, Vec<u8>, bool);

/// Compares what was applied with what the binary holds.
///
/// # Errors
/// [`StoreError::Deployment`] with the sentence an operator needs.
pub(super) fn judge(migrator: &Migrator, applied: &[Applied]) -> Result<(), StoreError> {
    let deployment = |sentence: &str| Err(StoreError::Deployment(sentence.to_owned()));
    if applied.iter().any(|(_, _, success)| !success) {
        return deployment("a migration failed half-way: repair the database by hand");
    }
    if applied.iter().any(|(version, _, _)| !migrator.version_exists(*version)) {
        return deployment("the database was migrated by a newer pulsestream: update this binary");
    }
    for known in migrator.iter() {
        match applied.iter().find(|(version, _, _)| *version == known.version) {
            None => return deployment("the database is not migrated: run `pulsestream migrate`"),
            Some((_, checksum, _)) if *checksum != *known.checksum => {
                return deployment("a migration was edited after it had been applied");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// What applying migrations failed with: a database that cannot be reached passes, the rest needs a hand.
pub(super) fn migrating(
    error: sqlx::migrate::MigrateError,
    classify: impl FnOnce(sqlx::Error) -> StoreError,
) -> StoreError {
    use sqlx::migrate::MigrateError;
    match error {
        MigrateError::Execute(error) => classify(error),
        MigrateError::ExecuteMigration(error, version) => match classify(error) {
            StoreError::Transient(sentence) => StoreError::Transient(sentence),
            StoreError::Deployment(sentence) => {
                StoreError::Deployment(format!("migration {version}: {sentence}"))
            }
        },
        MigrateError::VersionMissing(_) => StoreError::Deployment(
            "the database was migrated by a newer pulsestream: update this binary".to_owned(),
        ),
        other => StoreError::Deployment(other.to_string()),
    }
}
