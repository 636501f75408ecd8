//! For tests: what the tables hold.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::error::store_error;
use super::{SqliteStore, query};
use crate::event::{ClientId, EventId};
use crate::store::{StoreError, StoredEvent};
use crate::testing::store::{BuriedRecord, Inspect};

#[async_trait]
impl Inspect for SqliteStore {
    async fn count_events(&self) -> Result<u64, StoreError> {
        let query = sqlx::query_scalar::<_, i64>("select count(*) from events");
        Ok(query.fetch_one(&self.reader).await.map_err(store_error)?.cast_unsigned())
    }

    async fn stored_events(&self) -> Result<Vec<StoredEvent>, StoreError> {
        let all = sqlx::query("select * from events order by client_id, id, ts");
        all.try_map(query::event).fetch_all(&self.reader).await.map_err(store_error)
    }

    async fn buried_records(&self) -> Result<Vec<BuriedRecord>, StoreError> {
        let query = sqlx::query("select * from dead_letters order by part, epoch, off");
        query.try_map(buried).fetch_all(&self.reader).await.map_err(store_error)
    }

    async fn client_names(&self) -> Result<Vec<String>, StoreError> {
        let query = sqlx::query_scalar("select name from clients order by name");
        query.fetch_all(&self.reader).await.map_err(store_error)
    }

    async fn restore_client(&self, number: ClientId, name: &str) -> Result<(), StoreError> {
        let insert = "insert into clients (id, name, created_at) values (?, ?, 0)";
        let query = sqlx::query(insert).bind(number.0).bind(name.to_owned());
        query.execute(&self.writer).await.map(drop).map_err(store_error)
    }
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
