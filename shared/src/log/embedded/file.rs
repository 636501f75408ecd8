//! The file `log.db`: its tables, its version, and how connections to it are opened.
//!
//! | table | holds |
//! |---|---|
//! | `meta` | epoch and partition count |
//! | `records` | the records in batches, clustered by topic, partition, first offset; see `record_batch` |
//! | `places` | per topic and partition the lowest offset the next record may get, so that deleting the newest records never gives an offset out twice |
//! | `groups` | committed places of consumer groups |
//! | `outcome_groups`, `outcome_pages`, `outcome_runs` | idempotency outcomes, see `outcomes` |
//!
//! Write-ahead log with `synchronous=FULL`: a commit is flushed before it is answered.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, SqliteConnection};
use uuid::Uuid;

use super::fault::Fault;
use crate::log::{Identity, LogError, Topic};

/// Version of the tables, in `PRAGMA user_version`.
const VERSION: i64 = 2;

/// Version 1 had one record a row. Such rows stay as they are: their `count` is null.
const SECOND: &str = "ALTER TABLE records ADD COLUMN count INTEGER; PRAGMA user_version = 2";

/// How long a statement waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Readers beside the writer: catch-up reads are shared by few callers.
const READERS: u32 = 3;

/// Rows a reader's thread may be ahead of whoever takes them: 64 KiB each, when the log was busy.
const ROW_BUFFER: usize = 64;

/// Distinct statements of the writer; see `statements`.
const STATEMENTS: usize = 256;

const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL,
    logged_at_ms INTEGER NOT NULL, key BLOB, value BLOB NOT NULL, headers BLOB NOT NULL, count INTEGER,
    PRIMARY KEY (topic, partition, offset)) WITHOUT ROWID;
CREATE TABLE places (
    topic INTEGER NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)) WITHOUT ROWID;
CREATE TABLE groups (
    name TEXT NOT NULL, partition INTEGER NOT NULL, next INTEGER NOT NULL,
    PRIMARY KEY (name, partition)) WITHOUT ROWID;
CREATE TABLE outcome_groups (seq INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE outcome_pages (id INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE outcome_runs (
    run INTEGER PRIMARY KEY, newest_ms INTEGER NOT NULL, filter BLOB NOT NULL);
";

/// Number of a topic in the tables.
pub(super) const fn topic_number(topic: Topic) -> i64 {
    match topic {
        Topic::Raw => 0,
        Topic::Dlq => 1,
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("log.db")
}

/// Bytes that a pipeline which did not close the file left to be recovered.
pub(super) fn left_bytes(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("log.db-wal")).map_or(0, |file| file.len())
}

fn options(dir: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path(dir))
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(false)
        .disable_statement_logging()
}

/// Opens the connection that writes, creating file and tables when there is no file.
///
/// # Errors
/// [`LogError::Unusable`]: damaged, not writable, from a newer version, of another partition count.
pub(super) async fn open(dir: &Path, partitions: u32) -> Result<SqliteConnection, LogError> {
    let options = options(dir)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "4000") // 16 MiB: half the checkpoints' cost at full speed
        .pragma("journal_size_limit", "67108864")
        .statement_cache_capacity(STATEMENTS);
    let unusable = |error| LogError::Unusable(sentence(dir, &Fault::of(&error)));
    let mut connection = options.connect().await.map_err(unusable)?;
    let version = version(&mut connection).await.map_err(unusable)?;
    if version > VERSION {
        return Err(LogError::Unusable(newer(dir, version)));
    }
    if version == 0 {
        create(&mut connection, partitions).await.map_err(unusable)?;
    }
    if version == 1 {
        upgrade(&mut connection).await.map_err(unusable)?;
    }
    let found = identity(&mut connection).await.map_err(unusable)?.ok_or_else(|| no_log(dir))?;
    if found.partitions != partitions {
        return Err(LogError::Unusable(format!(
            "the log in {} has {} partitions, the configuration says {partitions}; \
             the partition count of a log never changes",
            dir.display(),
            found.partitions
        )));
    }
    Ok(connection)
}

/// Opens a connection that writes beside a running pipeline; creates nothing.
///
/// # Errors
/// [`LogError::Unusable`]: no log there, damaged, from another version.
pub(super) async fn attach(dir: &Path) -> Result<(SqliteConnection, Identity), LogError> {
    if !path(dir).is_file() {
        return Err(no_log(dir));
    }
    let options = options(dir).synchronous(SqliteSynchronous::Full);
    let unusable = |error| LogError::Unusable(sentence(dir, &Fault::of(&error)));
    let mut connection = options.connect().await.map_err(unusable)?;
    match version(&mut connection).await.map_err(unusable)? {
        VERSION => {}
        0 => return Err(no_log(dir)),
        version if version < VERSION => return Err(LogError::Unusable(older(dir))),
        version => return Err(LogError::Unusable(newer(dir, version))),
    }
    let found = identity(&mut connection).await.map_err(unusable)?.ok_or_else(|| no_log(dir))?;
    Ok((connection, found))
}

/// Connections that only read, made when first needed.
pub(super) fn readers(dir: &Path) -> SqlitePool {
    let options = options(dir).read_only(true).row_buffer_size(ROW_BUFFER);
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(BUSY_TIMEOUT)
        .connect_lazy_with(options)
}

async fn version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("PRAGMA user_version").fetch_one(connection).await
}

async fn upgrade(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(SECOND).execute(&mut *transaction).await?;
    transaction.commit().await
}

async fn create(connection: &mut SqliteConnection, partitions: u32) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(TABLES).execute(&mut *transaction).await?;
    for (name, value) in
        [("epoch", Uuid::new_v4().to_string()), ("partitions", partitions.to_string())]
    {
        let insert = sqlx::query("INSERT INTO meta VALUES (?, ?)").bind(name).bind(value);
        insert.execute(&mut *transaction).await?;
    }
    for topic in [Topic::Raw, Topic::Dlq] {
        for partition in 0..partitions {
            let insert = sqlx::query("INSERT INTO places VALUES (?, ?, 0)");
            let insert = insert.bind(topic_number(topic)).bind(i64::from(partition));
            insert.execute(&mut *transaction).await?;
        }
    }
    let version = AssertSqlSafe(format!("PRAGMA user_version = {VERSION}"));
    sqlx::raw_sql(version).execute(&mut *transaction).await?;
    transaction.commit().await
}

/// Reads epoch and partition count; `None` when they are not there or not readable.
pub(super) async fn identity(
    connection: &mut SqliteConnection,
) -> Result<Option<Identity>, sqlx::Error> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT name, value FROM meta").fetch_all(connection).await?;
    let value = |wanted| rows.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let epoch = value("epoch").and_then(|text| Uuid::parse_str(text).ok());
    let partitions = value("partitions").and_then(|text| text.parse().ok());
    Ok(epoch.zip(partitions).map(|(epoch, partitions)| Identity { epoch, partitions }))
}

fn no_log(dir: &Path) -> LogError {
    LogError::Unusable(format!("data folder {} holds no log of this program", dir.display()))
}

fn older(dir: &Path) -> String {
    format!(
        "the log in {} was written by an older version: start this version's pipeline on it first",
        dir.display()
    )
}

fn newer(dir: &Path, version: i64) -> String {
    format!(
        "the log in {} was written by a newer version (file version {version}, this one knows {VERSION})",
        dir.display()
    )
}

fn sentence(dir: &Path, fault: &Fault) -> String {
    format!("data folder {}: {}", dir.display(), fault.sentence())
}
