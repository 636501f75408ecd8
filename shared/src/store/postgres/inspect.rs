//! For tests: what the tables hold, and databases that live as long as one test.

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row};
use std::str::FromStr;

use super::error::store_error;
use super::{PostgresStore, query};
use crate::event::{ClientId, EventId};
use crate::store::{StoreError, StoredEvent};
use crate::testing::store::{BuriedRecord, Inspect};

#[async_trait]
impl Inspect for PostgresStore {
    async fn count_events(&self) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar("select count(*) from events")
            .fetch_one(&self.pool)
            .await
            .map_err(store_error)?;
        Ok(count.cast_unsigned())
    }

    async fn stored_events(&self) -> Result<Vec<StoredEvent>, StoreError> {
        sqlx::query("select *, metadata::text as map from events order by client_id, id, ts")
            .try_map(query::event)
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)
    }

    async fn buried_records(&self) -> Result<Vec<BuriedRecord>, StoreError> {
        sqlx::query("select * from dead_letters order by part, epoch, off")
            .try_map(buried)
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)
    }

    async fn client_names(&self) -> Result<Vec<String>, StoreError> {
        let query = sqlx::query_scalar("select name from clients order by name");
        query.fetch_all(&self.pool).await.map_err(store_error)
    }

    async fn restore_client(&self, number: ClientId, name: &str) -> Result<(), StoreError> {
        let insert = "insert into clients (id, name, created_at) values ($1, $2, now())";
        let query = sqlx::query(insert).bind(number.0).bind(name);
        query.execute(&self.pool).await.map(drop).map_err(store_error)
    }
}

fn buried(row: PgRow) -> Result<BuriedRecord, sqlx::Error> {
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

/// A migrated database of its own, beside the one that `base_url` names.
pub struct ScratchDatabase {
    base_url: String,
    name: String,
    /// Where it is.
    pub url: String,
}

impl ScratchDatabase {
    /// Creates and migrates it.
    ///
    /// # Errors
    /// [`StoreError`], as the server says.
    pub async fn create(base_url: &str) -> Result<Self, StoreError> {
        let name = format!("test_{}", uuid::Uuid::new_v4().simple());
        administer(base_url, format!("create database {name}")).await?;
        let mut url =
            url::Url::parse(base_url).map_err(|error| StoreError::Deployment(error.to_string()))?;
        url.set_path(&name);
        let scratch = Self { base_url: base_url.to_owned(), name, url: url.into() };
        super::migrate(&scratch.url).await?;
        Ok(scratch)
    }

    /// Runs one statement in it: for tests that break something on purpose.
    ///
    /// # Errors
    /// [`StoreError`], as the server says.
    pub async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        administer(&self.url, sql.to_owned()).await
    }

    /// Drops it, whoever is connected.
    ///
    /// # Errors
    /// [`StoreError`], as the server says.
    pub async fn remove(self) -> Result<(), StoreError> {
        let Self { base_url, name, .. } = self;
        administer(&base_url, format!("drop database if exists {name} with (force)")).await
    }
}

async fn administer(url: &str, sql: String) -> Result<(), StoreError> {
    let options = PgConnectOptions::from_str(url).map_err(store_error)?;
    let mut connection: PgConnection = options.connect().await.map_err(store_error)?;
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.map_err(store_error)?;
    connection.close().await.map_err(store_error)
}
