//! The store on PostgreSQL 15 or newer.
//!
//! Here: connections, their settings and their end. `write` stores a batch, `progress` keeps the
//! places of the partitions, `days` the partitions of the table, `ids` their index by id, `keys` the
//! keys, `query` reads back.
//!
//! Two rules hold for every call. It has an end: waiting for a connection, for a lock and for the answer
//! are all bounded, so a database that hangs is [`StoreError::Transient`] and not a hang. And a
//! connection on which anything went wrong, or whose caller went away, is closed, never used again
//! (`Session`): the server rolls back what was open.

mod copy;
mod days;
#[cfg(test)]
mod documented;
mod encode;
mod error;
mod ids;
#[cfg(any(test, feature = "testing"))]
pub mod inspect;
mod keys;
mod letters;
mod progress;
mod query;
mod snapshot;
#[cfg(test)]
mod tests;
mod unsure;
mod write;

use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool, Postgres};

use self::days::KnownDays;
use self::error::{failure, store_error};
use self::unsure::NewestLoss;
use self::write::Repeats;
use super::settle::{Failure, transient};
use super::{
    DeadLetterSink, EventStore, Maintenance, Progress, StoreBatch, StoreError, Written, schema,
};

static MIGRATOR: Migrator = sqlx::migrate!("../migrations/postgres");

/// Oldest server that has what we use (`DETACH … CONCURRENTLY` is 14; older ones are not tested).
const OLDEST_SERVER: i32 = 150_000;
/// How long to look for the reason when there is no connection.
const WHY_TIMEOUT: Duration = Duration::from_secs(2);
const NO_ANSWER: &str = "the database did not answer in time";

/// How to reach the database and how long to keep events.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database`.
    pub url: String,
    /// Connections at most; writers, key look-ups and maintenance share them.
    pub max_connections: u32,
    /// Days events are kept.
    pub retention_days: u32,
    /// Days for which partitions are made ahead.
    pub days_ahead: u32,
    /// Longest wait for a connection.
    pub acquire_timeout: Duration,
    /// Longest wait for a lock: the row of a partition's offset while another writer has it.
    pub lock_timeout: Duration,
    /// Longest pause within a transaction, judged by the server: a frozen process must not keep the
    /// place of its partitions from their new owner. Longer than a dead-letter sink may take.
    pub idle_in_transaction_timeout: Duration,
    /// Longest single statement, judged by the server.
    pub statement_timeout: Duration,
    /// Longest call as a whole, judged by us: also ends what a dead server never answers.
    pub call_timeout: Duration,
    /// Connections for queries at most, beside the others: reading takes none from writing.
    pub query_connections: u32,
    /// Longest statement of a query, judged by the server.
    pub query_timeout: Duration,
}

impl PostgresConfig {
    /// The settings we measured with, for a database.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            max_connections: 8,
            retention_days: 14,
            days_ahead: 4,
            acquire_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(2),
            idle_in_transaction_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            call_timeout: Duration::from_secs(40),
            query_connections: 4,
            query_timeout: Duration::from_secs(5),
        }
    }

    fn connect_options(&self) -> Result<PgConnectOptions, StoreError> {
        let millis = |duration: Duration| duration.as_millis().to_string();
        Ok(parse(&self.url)?.options([
            ("lock_timeout", millis(self.lock_timeout)),
            ("statement_timeout", millis(self.statement_timeout)),
            ("idle_in_transaction_session_timeout", millis(self.idle_in_transaction_timeout)),
            // A host that vanished is noticed within half a minute.
            ("tcp_keepalives_idle", "10".to_owned()),
            ("tcp_keepalives_interval", "5".to_owned()),
            ("tcp_keepalives_count", "3".to_owned()),
            ("tcp_user_timeout", "25000".to_owned()),
            ("timezone", "UTC".to_owned()),
            // Thousands of look-ups by key cost enough on paper for the server to compile them, which
            // takes five times as long as doing them.
            ("jit", "off".to_owned()),
        ]))
    }
}

fn parse(url: &str) -> Result<PgConnectOptions, StoreError> {
    let ours = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let options = PgConnectOptions::from_str(url).ok().filter(|_| ours).ok_or_else(|| {
        // Not the driver's sentence: it may repeat the URL, and with it the password.
        StoreError::Deployment("the database URL is not a valid postgres:// URL".to_owned())
    })?;
    Ok(options.application_name("pulsestream").disable_statement_logging())
}

/// The store on PostgreSQL. Cheap to share: one pool, no lock held across a call.
pub struct PostgresStore {
    pool: PgPool,
    queries: PgPool,
    config: PostgresConfig,
    days: KnownDays,
    newest_loss: NewestLoss,
    repeats: Repeats,
}

impl PostgresStore {
    /// Connects and checks that server and schema are the ones this binary was written for.
    ///
    /// # Errors
    /// [`StoreError::Transient`] when the server does not answer, [`StoreError::Deployment`] when it is
    /// too old or its schema is not this binary's.
    pub async fn open(config: PostgresConfig) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(config.max_connections)
            .acquire_timeout(config.acquire_timeout)
            .connect_lazy_with(config.connect_options()?);
        let queries = query::pool(&config)?;
        let store = Self {
            pool,
            queries,
            config,
            days: KnownDays::default(),
            newest_loss: NewestLoss::default(),
            repeats: Repeats::default(),
        };
        store.check_schema().await?;
        Ok(store)
    }

    /// Closes the connections; calls under way end first.
    pub async fn close(&self) {
        self.pool.close().await;
        self.queries.close().await;
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let mut session = self.session().await?;
        self.within(check_server(session.connection())).await?;
        let there: bool = self
            .within(
                sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
                    .fetch_one(session.connection()),
            )
            .await?;
        let mut applied = Vec::new();
        if there {
            let query = sqlx::query_as("select version, checksum, success from _sqlx_migrations");
            applied = self.within(query.fetch_all(session.connection())).await?;
        }
        session.keep();
        schema::judge(&MIGRATOR, &applied)
    }

    async fn session(&self) -> Result<Session, StoreError> {
        match self.pool.acquire().await {
            Ok(connection) => Ok(Session(Some(connection))),
            Err(sqlx::Error::PoolTimedOut) => Err(self.why_no_connection().await),
            Err(error) => Err(store_error(error)),
        }
    }

    /// The pool keeps to itself what its attempts to connect met, so one more is made.
    async fn why_no_connection(&self) -> StoreError {
        let options = self.pool.connect_options();
        match tokio::time::timeout(WHY_TIMEOUT, options.connect()).await {
            Ok(Ok(_)) => transient("every connection of this process to the database is in use"),
            Ok(Err(error)) => store_error(error),
            Err(_) => transient(NO_ANSWER),
        }
    }

    /// Runs a part of a call that talks to the database, within the time of a call.
    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let work = async { work.await.map_err(failure) };
        Ok(self.bounded(work).await?)
    }

    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.config.call_timeout, work).await {
            Ok(outcome) => outcome,
            Err(_) => Err(transient(NO_ANSWER).into()),
        }
    }
}

async fn check_server(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(connection)
        .await?;
    if version >= OLDEST_SERVER {
        return Ok(());
    }
    Err(sqlx::Error::Configuration(
        format!("PostgreSQL 15 or newer is needed, not {version}").into(),
    ))
}

/// Applies what is missing of the schema. Safe to call from several processes at once: one waits for the
/// other.
///
/// # Errors
/// [`StoreError::Transient`] when the server does not answer; else [`StoreError::Deployment`].
pub async fn migrate(url: &str) -> Result<(), StoreError> {
    let mut connection = parse(url)?.connect().await.map_err(store_error)?;
    check_server(&mut connection).await.map_err(store_error)?;
    MIGRATOR.run(&mut connection).await.map_err(|error| schema::migrating(error, store_error))?;
    connection.close().await.map_err(store_error)
}

/// A connection that goes back to the pool only when its caller says that all went well. Dropped before
/// that (error, timeout, cancelled call) the socket is closed: nobody can inherit an open transaction or
/// an answer that was still on its way, and a server that hangs cannot take the pool's places.
struct Session(Option<PoolConnection<Postgres>>);

impl Session {
    fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("taken only by `keep` and `drop`")
    }

    fn keep(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

#[async_trait]
impl EventStore for PostgresStore {
    async fn write(
        &self,
        batch: &StoreBatch<'_>,
        dead_letters: &dyn DeadLetterSink,
    ) -> Result<Written, StoreError> {
        self.write_batch(batch, dead_letters).await
    }

    fn writes_in_parallel(&self) -> bool {
        true
    }

    async fn progress(&self, group: &str) -> Result<Vec<Progress>, StoreError> {
        self.read_progress(group).await
    }

    async fn place(
        &self,
        group: &str,
        seen: Option<Progress>,
        new: Progress,
    ) -> Result<Progress, StoreError> {
        self.place_partition(group, seen, new).await
    }

    async fn maintain(&self, now_ms: i64) -> Result<Maintenance, StoreError> {
        self.maintain_days(now_ms).await
    }
}
