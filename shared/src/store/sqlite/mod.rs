//! The store in one SQLite file.
//!
//! Here: the file, its connections and their settings. `write` stores a batch, `progress` keeps the
//! places of the partitions and the days, `keys` the keys, `query` and `snapshot` read back.
//!
//! WAL, so that reading and writing do not wait for each other, and `synchronous=FULL`, so that a commit
//! is on the disk. One connection writes: SQLite has one writer anyway, and waiting in our own queue is
//! fair where its busy handler is not. Other processes (operator commands) may open the same file.

mod error;
#[cfg(any(test, feature = "testing"))]
pub mod inspect;
mod keys;
mod letters;
mod progress;
mod query;
mod rows;
mod snapshot;
#[cfg(test)]
mod tests;
mod write;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqlitePool};

use self::error::{failure, store_error};
use super::settle::{Failure, transient};
use super::{
    DeadLetterSink, EventStore, Maintenance, Progress, StoreBatch, StoreError, Stretch, Written,
    schema,
};

static MIGRATOR: Migrator = sqlx::migrate!("../migrations/sqlite");

/// Where the file is and how long to keep events.
#[derive(Debug, Clone)]
pub struct SqliteConfig {
    /// The file; SQLite puts `-wal` and `-shm` beside it.
    pub path: PathBuf,
    /// Connections that read.
    pub readers: u32,
    /// Days events are kept.
    pub retention_days: u32,
    /// Longest wait for another process that writes.
    pub busy_timeout: Duration,
    /// Longest call as a whole.
    pub call_timeout: Duration,
    /// Connections for queries, beside the readers.
    pub query_connections: u32,
    /// Longest statement of a query.
    pub query_timeout: Duration,
}

impl SqliteConfig {
    /// The settings we measured with, for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readers: 4,
            retention_days: 14,
            busy_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            query_connections: 4,
            query_timeout: Duration::from_secs(5),
        }
    }
}

fn connect_options(path: &Path, busy_timeout: Duration) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(busy_timeout)
        // A burst must not leave its WAL on the disk for ever.
        .pragma("journal_size_limit", "67108864")
        .disable_statement_logging()
}

/// The store in one SQLite file. Cheap to share.
pub struct SqliteStore {
    reader: SqlitePool,
    queries: SqlitePool,
    writer: SqlitePool,
    /// One connection for looks at what changed, which must not wait behind other readers.
    watcher: SqlitePool,
    /// The last batch had new rows alone, so the next is taken for such a one.
    expects_new: AtomicBool,
    config: SqliteConfig,
}

impl SqliteStore {
    /// Opens a migrated file.
    ///
    /// # Errors
    /// [`StoreError::Deployment`] when the file is absent, no database, or its schema is not this
    /// binary's; [`StoreError::Transient`] when it cannot be opened now.
    pub async fn open(config: SqliteConfig) -> Result<Self, StoreError> {
        if !tokio::fs::try_exists(&config.path).await.unwrap_or(true) {
            let sentence = "there is no database yet: run `pulsestream migrate`";
            return Err(StoreError::Deployment(sentence.to_owned()));
        }
        let options = connect_options(&config.path, config.busy_timeout);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(config.call_timeout)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
        };
        let reader = options.clone().pragma("query_only", "on");
        let writing = options
            // The indexes are met at random: with SQLite's 2 MB their pages are read again and again, and
            // with its 4 MB between checkpoints each is written back more often than need be. A batch of a busy
            // second dirties 26 MB.
            .pragma("cache_size", "-65536") // KiB
            .pragma("wal_autocheckpoint", "16000") // pages of 4 KiB
            // `rows` checks by itself. A CHECK with a function in it makes SQLite copy every page that a
            // statement meets, which cost a quarter of the time of storing.
            .pragma("ignore_check_constraints", "on");
        let store = Self {
            watcher: pool(1).connect_lazy_with(reader.clone()),
            queries: pool(config.query_connections).connect_lazy_with(reader.clone()),
            reader: pool(config.readers).connect_lazy_with(reader),
            writer: pool(1).connect_lazy_with(writing),
            expects_new: AtomicBool::new(true),
            config,
        };
        store.check_schema().await?;
        Ok(store)
    }

    /// Closes the file; calls under way end first.
    pub async fn close(&self) {
        self.watcher.close().await;
        self.reader.close().await;
        self.queries.close().await;
        self.writer.close().await;
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let there: bool = self
            .within(
                sqlx::query_scalar(
                    "select exists (select 1 from sqlite_schema where name = '_sqlx_migrations')",
                )
                .fetch_one(&self.writer),
            )
            .await?;
        let mut applied = Vec::new();
        if there {
            let query = sqlx::query_as("select version, checksum, success from _sqlx_migrations");
            applied = self.within(query.fetch_all(&self.writer)).await?;
        }
        schema::judge(&MIGRATOR, &applied)
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
            Err(_) => Err(transient("the database file did not answer in time").into()),
        }
    }
}

/// Creates the file if need be and applies what is missing of the schema.
///
/// # Errors
/// [`StoreError`], by result code.
pub async fn migrate(path: &Path) -> Result<(), StoreError> {
    let options = connect_options(path, Duration::from_secs(5)).create_if_missing(true);
    let mut connection = options.connect().await.map_err(store_error)?;
    MIGRATOR.run(&mut connection).await.map_err(|error| schema::migrating(error, store_error))?;
    connection.close().await.map_err(store_error)
}

#[async_trait]
impl EventStore for SqliteStore {
    async fn write(
        &self,
        batch: &StoreBatch<'_>,
        dead_letters: &dyn DeadLetterSink,
    ) -> Result<Written, StoreError> {
        self.write_batch(batch, dead_letters).await
    }

    fn writes_in_parallel(&self) -> bool {
        false
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

    fn stretch(&self) -> Stretch {
        // Less than eight, and a batch that was large makes the next one small.
        Stretch { times: 16, wait: Duration::from_secs(1), share: 8 }
    }

    async fn maintain(&self, now_ms: i64) -> Result<Maintenance, StoreError> {
        self.delete_expired(now_ms).await
    }
}
