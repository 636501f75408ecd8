//! Deleting events: by age, never beyond what the store has taken, in pieces between appends.

use super::writer::Request;
use super::{EmbeddedLog, log_error, places, reading};
use crate::log::{LogError, Offset, Partition, Topic};

/// Records deleted with one commit, so that appends wait for a few milliseconds at most.
const STEP: Offset = 2_000;

impl EmbeddedLog {
    /// Deletes events older than the retention, except those at or beyond `floor`: per partition the
    /// place from which the store has yet to read. Partitions without a floor are left alone. Answers
    /// how many went.
    ///
    /// Dropping the future stops between two pieces.
    ///
    /// # Errors
    /// [`LogError::Unavailable`]; what was deleted so far stays deleted.
    pub async fn retain(&self, now_ms: i64, floor: &[Offset]) -> Result<u64, LogError> {
        let retention_ms = i64::try_from(self.retention.as_millis()).unwrap_or(i64::MAX);
        let old = now_ms.saturating_sub(retention_ms);
        let young = reading::locate(&self.shared.readers, old).await.map_err(log_error)?;
        let mut deleted = 0;
        for (partition, (young, floor)) in (0..).zip(young.into_iter().zip(floor)) {
            deleted += self.truncate(Topic::Raw, partition, young.min(*floor)).await?;
        }
        Ok(deleted)
    }

    /// Deletes the records of a partition below an offset, whatever their age; answers how many went.
    ///
    /// # Errors
    /// [`LogError::Unavailable`]; what was deleted so far stays deleted.
    pub async fn truncate(
        &self,
        topic: Topic,
        partition: Partition,
        below: Offset,
    ) -> Result<u64, LogError> {
        let mut connection = self.shared.readers.acquire().await.map_err(log_error)?;
        let bounds = places::read(&mut connection, topic).await.map_err(log_error)?;
        drop(connection);
        let index = usize::try_from(partition).unwrap_or(usize::MAX);
        let Some(bounds) = bounds.get(index) else { return Ok(0) };
        let end = below.min(bounds.next);
        let (mut place, mut deleted) = (bounds.first, 0);
        while place < end {
            let below = end.min(place.saturating_add(STEP));
            let delete = |answer| Request::Delete { topic, partition, below, answer };
            deleted += self.ask(delete).await?;
            place = below;
        }
        Ok(deleted)
    }
}
