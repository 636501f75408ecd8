//! For tests: what the tables hold.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::SqliteStore;
use super::error::store_error;
use crate::event::{ClientId, DeviceId, EventId};
use crate::store::StoreError;
use crate::testing::store::{BuriedRecord, Inspect, StoredEvent};

#[async_trait]
impl Inspect for SqliteStore {
    async fn count_events(&self) -> Result<u64, StoreError> {
        let query = sqlx::query_scalar::<_, i64>("select count(*) from events");
        Ok(query.fetch_one(&self.reader).await.map_err(store_error)?.cast_unsigned())
    }

    async fn stored_events(&self) -> Result<Vec<StoredEvent>, StoreError> {
        let query = sqlx::query("select * from events order by client_id, id, ts");
        query.try_map(event).fetch_all(&self.reader).await.map_err(store_error)
    }

    async fn buried_records(&self) -> Result<Vec<BuriedRecord>, StoreError> {
        let query = sqlx::query("select * from dead_letters order by part, epoch, off");
        query.try_map(buried).fetch_all(&self.reader).await.map_err(store_error)
    }

    async fn client_names(&self) -> Result<Vec<String>, StoreError> {
        let query = sqlx::query_scalar("select name from clients order by name");
        query.fetch_all(&self.reader).await.map_err(store_error)
    }
}

fn event(row: SqliteRow) -> Result<StoredEvent, sqlx::Error> {
    Ok(StoredEvent {
        client: ClientId(row.try_get("client_id")?),
        id: EventId(row.try_get("id")?),
        device: DeviceId(row.try_get("device_id")?),
        event_type: row.try_get("event_type")?,
        value: row.try_get("value")?,
        timestamp_ms: row.try_get::<i64, _>("ts")?.div_euclid(1_000),
        metadata: row.try_get("metadata")?,
        received_at_us: row.try_get("received_at")?,
        pos: row.try_get("pos")?,
    })
}

fn buried(row: SqliteRow) -> Result<BuriedRecord, sqlx::Error> {
    Ok(BuriedRecord {
        partition: row.try_get("part")?,
        epoch: row.try_get("epoch")?,
        offset: row.try_get("off")?,
        client: row.try_get::<Option<_>, _>("client_id")?.map(ClientId),
        id: row.try_get::<Option<_>, _>("id")?.map(EventId),
        reason: row.try_get("reason")?,
        sqlstate: row.try_get("sqlstate")?,
    })
}
