//! Clients and keys on PostgreSQL.

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::types::time::OffsetDateTime;
use sqlx::{Connection, Row};

use super::encode::{from_ms, to_ms};
use super::error::is_duplicate;
use super::{PostgresStore, Session};
use crate::event::ClientId;
use crate::store::keys::{KeyError, random_number};
use crate::store::settle::transient;
use crate::store::{KeyHash, KeyRecord, KeyStore, NewKey, Scope, StoreError};

const COLUMNS_BY_HASH: &str = "
select hash, prefix, client_id, name, scopes, rate, burst, api_keys.created_at, expires_at, revoked_at
  from api_keys join clients on clients.id = client_id
 where hash = $1";

const COLUMNS_OF_ALL: &str = "
select hash, prefix, client_id, name, scopes, rate, burst, api_keys.created_at, expires_at, revoked_at
  from api_keys join clients on clients.id = client_id
 order by api_keys.created_at desc, prefix";

const INSERT: &str = "
insert into api_keys
       (hash, prefix, client_id, scopes, rate, burst, created_at, expires_at)
values ($1, $2, $3, $4, $5, $6, $7, $8)";

const REVOKE: &str = "
update api_keys set revoked_at = coalesce(revoked_at, $2) where prefix = $1 returning hash";

#[async_trait]
impl KeyStore for PostgresStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let mut session = self.session().await?;
        let found = self.by_hash(&mut session, &hash.0).await?;
        session.keep();
        Ok(found)
    }

    async fn create(&self, key: NewKey) -> Result<KeyRecord, KeyError> {
        let mut session = self.session().await?;
        let outcome = self.within(insert(session.connection(), &key)).await?;
        let record = match outcome {
            Inserted::Yes => self.by_hash(&mut session, &key.hash.0).await?,
            Inserted::Exists => {
                session.keep();
                return Err(KeyError::Exists);
            }
            Inserted::NoNumber => None,
        };
        session.keep();
        Ok(record.ok_or_else(|| transient("no free client number was found"))?)
    }

    async fn list(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let mut session = self.session().await?;
        let query = sqlx::query(COLUMNS_OF_ALL).try_map(record);
        let keys = self.within(query.fetch_all(session.connection())).await?;
        session.keep();
        Ok(keys)
    }

    async fn revoke(&self, prefix: &str, now_ms: i64) -> Result<(KeyHash, KeyRecord), KeyError> {
        let mut session = self.session().await?;
        let query = sqlx::query_scalar::<_, Vec<u8>>(REVOKE).bind(prefix).bind(from_ms(now_ms));
        let hash = self.within(query.fetch_optional(session.connection())).await?;
        let mut revoked = None;
        if let Some(hash) = hash.and_then(|hash| <[u8; 32]>::try_from(hash).ok()) {
            revoked = self.by_hash(&mut session, &hash).await?.map(|key| (KeyHash(hash), key));
        }
        session.keep();
        revoked.ok_or(KeyError::Unknown)
    }

    async fn known_clients(&self, clients: &[ClientId]) -> Result<Vec<ClientId>, StoreError> {
        let mut session = self.session().await?;
        let numbers: Vec<i32> = clients.iter().map(|client| client.0).collect();
        let query = sqlx::query_scalar("select id from clients where id = any($1)").bind(numbers);
        let known: Vec<i32> = self.within(query.fetch_all(session.connection())).await?;
        session.keep();
        Ok(known.into_iter().map(ClientId).collect())
    }

    async fn pepper(&self) -> Result<Vec<u8>, StoreError> {
        let mut session = self.session().await?;
        let query = sqlx::query_scalar("select value from settings where name = 'pepper'");
        let pepper = self.within(query.fetch_optional(session.connection())).await?;
        session.keep();
        pepper.ok_or_else(|| StoreError::Deployment("the store has lost its pepper".to_owned()))
    }
}

impl PostgresStore {
    async fn by_hash(
        &self,
        session: &mut Session,
        hash: &[u8; 32],
    ) -> Result<Option<KeyRecord>, StoreError> {
        let query = sqlx::query(COLUMNS_BY_HASH).bind(&hash[..]).try_map(record);
        self.within(query.fetch_optional(session.connection())).await
    }
}

enum Inserted {
    Yes,
    Exists,
    /// Every number that was tried belongs to another client.
    NoNumber,
}

async fn insert(connection: &mut PgConnection, key: &NewKey) -> Result<Inserted, sqlx::Error> {
    let mut tx = connection.begin().await?;
    let Some(client) = client_number(&mut tx, key).await? else {
        return Ok(Inserted::NoNumber);
    };
    let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    let number = |value: Option<u32>| value.map(|value| i32::try_from(value).unwrap_or(i32::MAX));
    let query = sqlx::query(INSERT)
        .bind(&key.hash.0[..])
        .bind(&key.prefix)
        .bind(client)
        .bind(scopes)
        .bind(number(key.rate))
        .bind(number(key.burst))
        .bind(from_ms(key.created_at_ms))
        .bind(key.expires_at_ms.map(from_ms));
    match query.execute(&mut *tx).await {
        Ok(_) => tx.commit().await.map(|()| Inserted::Yes),
        // The client goes with the transaction if it was made for this key.
        Err(error) if is_duplicate(&error) => tx.rollback().await.map(|()| Inserted::Exists),
        Err(error) => Err(error),
    }
}

/// The number of the key's client, made if the name is new.
async fn client_number(
    connection: &mut PgConnection,
    key: &NewKey,
) -> Result<Option<i32>, sqlx::Error> {
    for _ in 0..8 {
        sqlx::query(
            "insert into clients (id, name, created_at) values ($1, $2, $3) on conflict do nothing",
        )
        .bind(random_number())
        .bind(&key.client_name)
        .bind(from_ms(key.created_at_ms))
        .execute(&mut *connection)
        .await?;
        let found = sqlx::query_scalar("select id from clients where name = $1")
            .bind(&key.client_name)
            .fetch_optional(&mut *connection)
            .await?;
        // None: the number was taken by another name.
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn record(row: PgRow) -> Result<KeyRecord, sqlx::Error> {
    let scopes: Vec<String> = row.try_get("scopes")?;
    let limit = |column| {
        Ok::<_, sqlx::Error>(row.try_get::<Option<i32>, _>(column)?.map(i32::cast_unsigned))
    };
    let time =
        |column| Ok::<_, sqlx::Error>(row.try_get::<Option<OffsetDateTime>, _>(column)?.map(to_ms));
    Ok(KeyRecord {
        prefix: row.try_get("prefix")?,
        client: ClientId(row.try_get("client_id")?),
        client_name: row.try_get("name")?,
        // A scope that a newer version wrote grants nothing here.
        scopes: scopes.iter().filter_map(|scope| Scope::parse(scope)).collect(),
        rate: limit("rate")?,
        burst: limit("burst")?,
        created_at_ms: to_ms(row.try_get("created_at")?),
        expires_at_ms: time("expires_at")?,
        revoked_at_ms: time("revoked_at")?,
    })
}
