//! The places of the partitions, outside of a batch.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::PostgresStore;
use crate::event::EventId;
use crate::log::Topic;
use crate::store::settle::transient;
use crate::store::{Progress, StoreError};

const READ: &str = "
select part, epoch, next, last_id from consumer_offsets where grp = $1 and topic = $2 order by part";

const READ_ONE: &str = "
select part, epoch, next, last_id from consumer_offsets where grp = $1 and topic = $2 and part = $3";

const FIRST: &str = "
insert into consumer_offsets (grp, topic, part, epoch, next, last_id, updated_at)
values ($1, $2, $3, $4, $5, $6, now())
on conflict do nothing";

const REPLACE: &str = "
update consumer_offsets set epoch = $4, next = $5, last_id = $6, updated_at = now()
 where grp = $1 and topic = $2 and part = $3 and epoch = $7 and next = $8";

impl PostgresStore {
    pub(super) async fn read_progress(&self, group: &str) -> Result<Vec<Progress>, StoreError> {
        let mut session = self.session().await?;
        let places = self.within(read(session.connection(), group)).await?;
        session.keep();
        Ok(places)
    }

    /// Two statements without a transaction: whatever comes between them, the second tells the truth.
    pub(super) async fn place_partition(
        &self,
        group: &str,
        seen: Option<Progress>,
        new: Progress,
    ) -> Result<Progress, StoreError> {
        let mut session = self.session().await?;
        let mut query = sqlx::query(if seen.is_some() { REPLACE } else { FIRST })
            .bind(group)
            .bind(Topic::Raw.name())
            .bind(new.partition)
            .bind(new.epoch)
            .bind(new.next)
            .bind(new.last_id.map(|id| id.0));
        if let Some(seen) = seen {
            query = query.bind(seen.epoch).bind(seen.next);
        }
        self.within(query.execute(session.connection())).await?;
        let query = sqlx::query(READ_ONE).bind(group).bind(Topic::Raw.name()).bind(new.partition);
        let stands =
            self.within(query.try_map(progress).fetch_optional(session.connection())).await?;
        session.keep();
        stands.ok_or_else(|| transient("the place of the partition vanished: read it again"))
    }
}

/// The places of a group's partitions, as of the executor's transaction if it is in one.
pub(super) async fn read(
    executor: impl sqlx::PgExecutor<'_>,
    group: &str,
) -> Result<Vec<Progress>, sqlx::Error> {
    let query = sqlx::query(READ).bind(group).bind(Topic::Raw.name());
    query.try_map(progress).fetch_all(executor).await
}

fn progress(row: PgRow) -> Result<Progress, sqlx::Error> {
    Ok(Progress {
        partition: row.try_get("part")?,
        epoch: row.try_get("epoch")?,
        next: row.try_get("next")?,
        last_id: row.try_get::<Option<_>, _>("last_id")?.map(EventId),
    })
}
