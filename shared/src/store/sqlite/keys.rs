//! Clients and keys in SQLite.

use async_trait::async_trait;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::SqliteStore;
use super::error::is_duplicate;
use crate::event::ClientId;
use crate::store::keys::{KeyError, random_number};
use crate::store::settle::transient;
use crate::store::{
    CHANGES_AT_ONCE, KeyChange, KeyHash, KeyRecord, KeyStore, NewKey, Scope, StoreError,
};

const COLUMNS_BY_HASH: &str = "
select hash, prefix, client_id, name, scopes, rate, burst, api_keys.created_at, expires_at, revoked_at
  from api_keys join clients on clients.id = client_id
 where hash = ?";

const COLUMNS_OF_ALL: &str = "
select hash, prefix, client_id, name, scopes, rate, burst, api_keys.created_at, expires_at, revoked_at
  from api_keys join clients on clients.id = client_id
 order by api_keys.created_at desc, prefix";

const INSERT: &str = "
insert into api_keys (hash, prefix, client_id, scopes, rate, burst, created_at, expires_at, change)
values (?, ?, ?, ?, ?, ?, ?, ?, (select coalesce(max(change), 0) + 1 from api_keys))";

const REVOKE: &str = "
update api_keys
   set revoked_at = coalesce(revoked_at, ?1),
       change = (select max(change) + 1 from api_keys)
 where prefix = ?2 returning hash";

const EXPIRE: &str = "
update api_keys
   set expires_at = min(coalesce(expires_at, ?1), ?1),
       change = (select max(change) + 1 from api_keys)
 where prefix = ?2 returning hash";

const CHANGES: &str = "
select change, hash from api_keys where change > ? order by change limit ?";

#[async_trait]
impl KeyStore for SqliteStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let query = sqlx::query(COLUMNS_BY_HASH).bind(hash.0.to_vec()).try_map(record);
        self.within(query.fetch_optional(&self.reader)).await
    }

    async fn create(&self, key: NewKey) -> Result<KeyRecord, KeyError> {
        match self.within(self.insert(&key)).await? {
            Inserted::Yes => {
                let record = self.find(&key.hash).await?;
                Ok(record.ok_or_else(|| transient("the new key vanished"))?)
            }
            Inserted::Exists => Err(KeyError::Exists),
            Inserted::NoNumber => Err(transient("no free client number was found").into()),
        }
    }

    async fn list(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let query = sqlx::query(COLUMNS_OF_ALL).try_map(record);
        self.within(query.fetch_all(&self.reader)).await
    }

    async fn revoke(&self, prefix: &str, now_ms: i64) -> Result<KeyRecord, KeyError> {
        self.change(REVOKE, prefix, now_ms).await
    }

    async fn expire(&self, prefix: &str, at_ms: i64) -> Result<KeyRecord, KeyError> {
        self.change(EXPIRE, prefix, at_ms).await
    }

    async fn changes(&self, after: i64) -> Result<Vec<KeyChange>, StoreError> {
        let query = sqlx::query(CHANGES).bind(after).bind(CHANGES_AT_ONCE);
        let query = query.try_map(|row: SqliteRow| {
            Ok(KeyChange { number: row.try_get("change")?, hash: hash(&row)? })
        });
        self.within(query.fetch_all(&self.watcher)).await
    }

    async fn known_clients(&self, clients: &[ClientId]) -> Result<Vec<ClientId>, StoreError> {
        // Numbers have no quotes to escape, and a JSON array is one bound value whatever its length.
        let numbers: Vec<String> = clients.iter().map(ToString::to_string).collect();
        let query = sqlx::query_scalar(
            "select id from clients where id in (select value from json_each(?))",
        )
        .bind(format!("[{}]", numbers.join(",")));
        let known: Vec<i32> = self.within(query.fetch_all(&self.reader)).await?;
        Ok(known.into_iter().map(ClientId).collect())
    }

    async fn pepper(&self) -> Result<Vec<u8>, StoreError> {
        let query = sqlx::query_scalar("select value from settings where name = 'pepper'");
        let pepper = self.within(query.fetch_optional(&self.reader)).await?;
        pepper.ok_or_else(|| StoreError::Deployment("the store has lost its pepper".to_owned()))
    }
}

enum Inserted {
    Yes,
    Exists,
    /// Every number that was tried belongs to another client.
    NoNumber,
}

impl SqliteStore {
    async fn change(
        &self,
        update: &'static str,
        prefix: &str,
        at_ms: i64,
    ) -> Result<KeyRecord, KeyError> {
        let query = sqlx::query(update)
            .bind(at_ms.saturating_mul(1_000))
            .bind(prefix.to_owned())
            .try_map(|row: SqliteRow| hash(&row));
        let changed = self.within(query.fetch_optional(&self.writer)).await?;
        self.find(&changed.ok_or(KeyError::Unknown)?).await?.ok_or(KeyError::Unknown)
    }

    async fn insert(&self, key: &NewKey) -> Result<Inserted, sqlx::Error> {
        let mut tx = self.writer.begin_with("begin immediate").await?;
        let Some(client) = client_number(&mut tx, key).await? else {
            return Ok(Inserted::NoNumber);
        };
        let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
        let query = sqlx::query(INSERT)
            .bind(key.hash.0.to_vec())
            .bind(key.prefix.clone())
            .bind(client)
            .bind(scopes.join(" "))
            .bind(key.rate)
            .bind(key.burst)
            .bind(key.created_at_ms.saturating_mul(1_000))
            .bind(key.expires_at_ms.map(|ms| ms.saturating_mul(1_000)));
        match query.execute(&mut *tx).await {
            Ok(_) => tx.commit().await.map(|()| Inserted::Yes),
            // The client goes with the transaction if it was made for this key.
            Err(error) if is_duplicate(&error) => tx.rollback().await.map(|()| Inserted::Exists),
            Err(error) => Err(error),
        }
    }
}

/// The number of the key's client, made if the name is new.
async fn client_number(
    connection: &mut SqliteConnection,
    key: &NewKey,
) -> Result<Option<i32>, sqlx::Error> {
    for _ in 0..8 {
        sqlx::query(
            "insert into clients (id, name, created_at) values (?, ?, ?) on conflict do nothing",
        )
        .bind(random_number())
        .bind(key.client_name.clone())
        .bind(key.created_at_ms.saturating_mul(1_000))
        .execute(&mut *connection)
        .await?;
        let found = sqlx::query_scalar("select id from clients where name = ?")
            .bind(key.client_name.clone())
            .fetch_optional(&mut *connection)
            .await?;
        // None: the number was taken by another name.
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn hash(row: &SqliteRow) -> Result<KeyHash, sqlx::Error> {
    let hash: Vec<u8> = row.try_get("hash")?;
    hash.try_into().map(KeyHash).map_err(|_| sqlx::Error::Decode("a hash has 32 bytes".into()))
}

fn record(row: SqliteRow) -> Result<KeyRecord, sqlx::Error> {
    let ms = |us: i64| us.div_euclid(1_000);
    let scopes: String = row.try_get("scopes")?;
    Ok(KeyRecord {
        hash: hash(&row)?,
        prefix: row.try_get("prefix")?,
        client: ClientId(row.try_get("client_id")?),
        client_name: row.try_get("name")?,
        // A scope that a newer version wrote grants nothing here.
        scopes: scopes.split(' ').filter_map(Scope::parse).collect(),
        rate: row.try_get("rate")?,
        burst: row.try_get("burst")?,
        created_at_ms: ms(row.try_get("created_at")?),
        expires_at_ms: row.try_get::<Option<_>, _>("expires_at")?.map(ms),
        revoked_at_ms: row.try_get::<Option<_>, _>("revoked_at")?.map(ms),
    })
}
