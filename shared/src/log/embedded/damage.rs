//! What happens to the file behind the pipeline's back, done on purpose: for tests alone (feature
//! `testing`).

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use super::file::topic_number;
use super::{file, log_error};
use crate::log::{LogError, Topic};

/// Deletes every record of [`Topic::Raw`] and starts its offsets again; the identity stays.
///
/// # Errors
/// [`LogError`]: there is no log, or its file cannot be written.
pub async fn empty_raw(dir: &Path) -> Result<(), LogError> {
    let (mut connection, _) = file::attach(dir).await?;
    let mut both = connection.begin().await.map_err(log_error)?;
    for statement in
        ["DELETE FROM records WHERE topic = ?", "UPDATE places SET next = 0 WHERE topic = ?"]
    {
        let change = sqlx::query(statement).bind(topic_number(Topic::Raw));
        change.execute(&mut *both).await.map_err(log_error)?;
    }
    both.commit().await.map_err(log_error)?;
    connection.close().await.map_err(log_error)
}

/// Writes the pages in an SQLite file's write-ahead log into the file, while others have it open.
///
/// # Panics
/// When it cannot be done at once.
pub async fn checkpoint(path: &Path) {
    run_checkpoint(path, "PRAGMA wal_checkpoint(PASSIVE)").await;
}

/// The same, and makes the write-ahead log begin anew.
///
/// # Panics
/// When it cannot be done at once.
pub async fn empty_wal(path: &Path) {
    run_checkpoint(path, "PRAGMA wal_checkpoint(TRUNCATE)").await;
}

async fn run_checkpoint(path: &Path, pragma: &'static str) {
    let mut connection = SqliteConnectOptions::new().filename(path).connect().await.expect("open");
    let busy: i64 = sqlx::query_scalar(pragma).fetch_one(&mut connection).await.expect("run");
    assert_eq!(busy, 0, "somebody reads or writes");
    connection.close().await.expect("closed");
}
