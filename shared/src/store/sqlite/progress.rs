//! The places of the partitions outside of a batch, and retention.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::SqliteStore;
use crate::clock::unix_us;
use crate::event::EventId;
use crate::log::Topic;
use crate::store::settle::{DAY_MS, transient};
use crate::store::{Maintenance, Progress, StoreError};

const READ: &str = "
select part, epoch, next, last_id from consumer_offsets where grp = ? and topic = ? order by part";

const READ_ONE: &str = "
select part, epoch, next, last_id from consumer_offsets where grp = ? and topic = ? and part = ?";

const FIRST: &str = "
insert into consumer_offsets (epoch, next, last_id, updated_at, grp, topic, part)
values (?, ?, ?, ?, ?, ?, ?)
on conflict do nothing";

const REPLACE: &str = "
update consumer_offsets set epoch = ?, next = ?, last_id = ?, updated_at = ?
 where grp = ? and topic = ? and part = ? and epoch = ? and next = ?";

/// Few enough rows that writers wait a moment only, many enough to be worth a commit.
const DELETE_CHUNK: &str = "
delete from events where rowid in (select rowid from events where ts < ? limit 5000)";

const EXPIRED_DAYS: &str = "select count(distinct ts / 86400000000) from events where ts < ?";

impl SqliteStore {
    pub(super) async fn read_progress(&self, group: &str) -> Result<Vec<Progress>, StoreError> {
        self.within(read(&self.reader, group)).await
    }

    /// Two statements without a transaction: whatever comes between them, the second tells the truth.
    pub(super) async fn place_partition(
        &self,
        group: &str,
        seen: Option<Progress>,
        new: Progress,
    ) -> Result<Progress, StoreError> {
        let mut query = sqlx::query(if seen.is_some() { REPLACE } else { FIRST })
            .bind(new.epoch)
            .bind(new.next)
            .bind(new.last_id.map(|id| id.0))
            .bind(unix_us())
            .bind(group.to_owned())
            .bind(Topic::Raw.name())
            .bind(new.partition);
        if let Some(seen) = seen {
            query = query.bind(seen.epoch).bind(seen.next);
        }
        self.within(query.execute(&self.writer)).await?;
        let query = sqlx::query(READ_ONE)
            .bind(group.to_owned())
            .bind(Topic::Raw.name())
            .bind(new.partition)
            .try_map(progress);
        let stands = self.within(query.fetch_optional(&self.writer)).await?;
        stands.ok_or_else(|| transient("the place of the partition vanished: read it again"))
    }

    /// Deletes whole days past retention. Nothing has to be made ahead, so the horizon has no end.
    ///
    /// The pages become free within the file and are used again; the file does not shrink.
    pub(super) async fn delete_expired(&self, now_ms: i64) -> Result<Maintenance, StoreError> {
        let retention_ms = i64::from(self.config.retention_days) * DAY_MS;
        let kept_from_us = (now_ms - retention_ms).div_euclid(DAY_MS) * DAY_MS * 1_000;
        let days = sqlx::query_scalar(EXPIRED_DAYS).bind(kept_from_us);
        let dropped_days: u32 = self.within(days.fetch_one(&self.reader)).await?;
        loop {
            let chunk = sqlx::query(DELETE_CHUNK).bind(kept_from_us);
            let deleted = self.within(chunk.execute(&self.writer)).await?.rows_affected();
            if deleted == 0 {
                return Ok(Maintenance { horizon_ms: i64::MAX, dropped_days });
            }
        }
    }
}

/// The places of a group's partitions, as of the executor's transaction if it is in one.
pub(super) async fn read(
    executor: impl sqlx::SqliteExecutor<'_>,
    group: &str,
) -> Result<Vec<Progress>, sqlx::Error> {
    let query = sqlx::query(READ).bind(group.to_owned()).bind(Topic::Raw.name());
    query.try_map(progress).fetch_all(executor).await
}

fn progress(row: SqliteRow) -> Result<Progress, sqlx::Error> {
    Ok(Progress {
        partition: row.try_get("part")?,
        epoch: row.try_get("epoch")?,
        next: row.try_get("next")?,
        last_id: row.try_get::<Option<_>, _>("last_id")?.map(EventId),
    })
}
