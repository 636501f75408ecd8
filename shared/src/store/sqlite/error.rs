//! What an error of SQLite means for the caller: by its result code, never by text.

use crate::store::StoreError;
use crate::store::settle::Failure;

/// Judges an error of the driver.
pub(super) fn failure(error: sqlx::Error) -> Failure {
    match &error {
        sqlx::Error::Database(database) => {
            let code = database.code().and_then(|code| code.parse().ok()).unwrap_or_default();
            by_code(code, &error)
        }
        sqlx::Error::Configuration(_) => StoreError::Deployment(error.to_string()).into(),
        _ => StoreError::Transient(error.to_string()).into(),
    }
}

/// As [`failure`], for statements that carry nothing of a device.
pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    failure(error).into()
}

/// True for a violation of a unique key.
pub(super) fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_unique_violation())
}

/// The low byte is the primary code, the rest says more.
fn by_code(code: u32, error: &sqlx::Error) -> Failure {
    match code & 0xff {
        // TOOBIG, CONSTRAINT, MISMATCH.
        18..=20 => Failure::Data(code.to_string()),
        // ERROR (SQL that does not fit the schema), PERM, READONLY, CORRUPT, SCHEMA, MISUSE, AUTH, RANGE,
        // NOTADB.
        1 | 3 | 8 | 11 | 17 | 21 | 23 | 25 | 26 => {
            StoreError::Deployment(format!("{error} (code {code})")).into()
        }
        // BUSY, LOCKED, NOMEM, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL and whatever else: waiting
        // loses nothing.
        _ => StoreError::Transient(format!("{error} (code {code})")).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_code_alone_decides_between_waiting_stopping_and_dead_letters() {
        let word = |code| match by_code(code, &sqlx::Error::RowNotFound) {
            Failure::Data(_) => "data",
            Failure::NoDay => "day",
            Failure::Store(StoreError::Transient(_)) => "transient",
            Failure::Store(StoreError::Deployment(_)) => "deployment",
        };
        let transient = [5, 517, 6, 7, 9, 10, 266, 13, 14, 15, 0, 99];
        transient.iter().for_each(|code| assert_eq!(word(*code), "transient", "{code}"));
        let data = [18, 19, 275, 1299, 3091, 20];
        data.iter().for_each(|code| assert_eq!(word(*code), "data", "{code}"));
        let deployment = [1, 8, 1032, 11, 17, 26];
        deployment.iter().for_each(|code| assert_eq!(word(*code), "deployment", "{code}"));
    }
}
