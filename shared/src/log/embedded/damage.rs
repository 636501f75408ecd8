//! What happens to the file behind the pipeline's back, done on purpose: for tests alone (feature
//! `testing`).

use std::path::Path;

use sqlx::Connection as _;

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
