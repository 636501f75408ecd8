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
use crate::store::{
    CHANGES_AT_ONCE, KeyChange, KeyHash, KeyRecord, KeyStore, NewKey, Scope, StoreError,
};

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
       (hash, prefix, client_id, scopes, rate, burst, created_at, expires_at, change)
values ($1, $2, $3, $4, $5, $6, $7, $8, (select coalesce(max(change), 0) + 1 from api_keys))";

const REVOKE: &str = "
update api_keys
   set revoked_at = coalesce(revoked_at, $2),
       change = (select max(change) + 1 from api_keys)
 where prefix = $1 returning hash";

const EXPIRE: &str = "
update api_keys
   set expires_at = least(expires_at, $2),
       change = (select max(change) + 1 from api_keys)
 where prefix = $1 returning hash";

const CHANGES: &str = "
select change, hash from api_keys where change > $1 order by change limit $2";

/// Advisory lock of whoever changes a key, so that changes become visible in the order of their numbers.
const CHANGE_LOCK: i64 = 0x7075_6c73_0004;

#[async_trait]
impl KeyStore for PostgresStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        let mut session = self.session().await?;
        let found = self.by_hash(&mut session, hash).await?;
        session.keep();
        Ok(found)
    }

    async fn create(&self, key: NewKey) -> Result<KeyRecord, KeyError> {
        let mut session = self.session().await?;
        let outcome = self.within(insert(session.connection(), &key)).await?;
        let record = match outcome {
            Inserted::Yes => self.by_hash(&mut session, &key.hash).await?,
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

    async fn revoke(&self, prefix: &str, now_ms: i64) -> Result<KeyRecord, KeyError> {
        self.change(REVOKE, prefix, now_ms).await
    }

    async fn expire(&self, prefix: &str, at_ms: i64) -> Result<KeyRecord, KeyError> {
        self.change(EXPIRE, prefix, at_ms).await
    }

    async fn changes(&self, after: i64) -> Result<Vec<KeyChange>, StoreError> {
        let mut session = self.session().await?;
        let query = sqlx::query(CHANGES).bind(after).bind(i64::from(CHANGES_AT_ONCE));
        let query = query.try_map(|row: PgRow| {
            Ok(KeyChange { number: row.try_get("change")?, hash: hash(&row)? })
        });
        let changes = self.within(query.fetch_all(session.connection())).await?;
        session.keep();
        Ok(changes)
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
        hash: &KeyHash,
    ) -> Result<Option<KeyRecord>, StoreError> {
        let query = sqlx::query(COLUMNS_BY_HASH).bind(&hash.0[..]).try_map(record);
        self.within(query.fetch_optional(session.connection())).await
    }

    async fn change(
        &self,
        statement: &'static str,
        prefix: &str,
        at_ms: i64,
    ) -> Result<KeyRecord, KeyError> {
        let mut session = self.session().await?;
        let update = update(session.connection(), statement, prefix, at_ms);
        let mut changed = None;
        if let Some(hash) = self.within(update).await? {
            changed = self.by_hash(&mut session, &hash).await?;
        }
        session.keep();
        changed.ok_or(KeyError::Unknown)
    }
}

enum Inserted {
    Yes,
    Exists,
    /// Every number that was tried belongs to another client.
    NoNumber,
}

async fn update(
    connection: &mut PgConnection,
    statement: &'static str,
    prefix: &str,
    at_ms: i64,
) -> Result<Option<KeyHash>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    take_change_lock(&mut tx).await?;
    let query = sqlx::query(statement).bind(prefix).bind(from_ms(at_ms));
    let hash = query.try_map(|row: PgRow| hash(&row)).fetch_optional(&mut *tx).await?;
    tx.commit().await.map(|()| hash)
}

/// Held until the transaction ends. A statement of its own: the next one sees what was committed
/// meanwhile.
async fn take_change_lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let query = sqlx::query("select pg_advisory_xact_lock($1)").bind(CHANGE_LOCK);
    query.execute(connection).await.map(drop)
}

async fn insert(connection: &mut PgConnection, key: &NewKey) -> Result<Inserted, sqlx::Error> {
    let mut tx = connection.begin().await?;
    take_change_lock(&mut tx).await?;
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

fn hash(row: &PgRow) -> Result<KeyHash, sqlx::Error> {
    let hash: Vec<u8> = row.try_get("hash")?;
    hash.try_into().map(KeyHash).map_err(|_| sqlx::Error::Decode("a hash has 32 bytes".into()))
}

fn record(row: PgRow) -> Result<KeyRecord, sqlx::Error> {
    let scopes: Vec<String> = row.try_get("scopes")?;
    let limit = |column| {
        Ok::<_, sqlx::Error>(row.try_get::<Option<i32>, _>(column)?.map(i32::cast_unsigned))
    };
    let time =
        |column| Ok::<_, sqlx::Error>(row.try_get::<Option<OffsetDateTime>, _>(column)?.map(to_ms));
    Ok(KeyRecord {
        hash: hash(&row)?,
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
