//! The conformance suite on a file, and what only SQLite can do wrong.

use std::sync::Arc;

use super::*;
use crate::store::query::QueryError;
use crate::store::{EventQuery as _, StoreRow};
use crate::testing::store::{Copies, Fixture, RETENTION_DAYS, batch, place, rows, stored};

crate::store_conformance!(conforms);
crate::query_conformance!(conforms);

/// The same suite through the fault wrapper.
mod failing {
    use super::{Fixture, conforms};

    crate::store_conformance!(conforms_while_failing);

    async fn conforms_while_failing<F>(rule: impl FnOnce(Fixture) -> F)
    where
        F: Future<Output = ()>,
    {
        conforms(|fixture| rule(fixture.failing())).await;
    }
}

async fn conforms<F>(rule: impl FnOnce(Fixture) -> F)
where
    F: Future<Output = ()>,
{
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    migrate(&path).await.unwrap();
    let store = Arc::new(open(&path).await);
    let other = Arc::new(open(&path).await);
    let fixture =
        Fixture { store: store.clone(), query: store.clone(), other: other.clone(), poison };
    rule(fixture).await;
    store.close().await;
    other.close().await;
}

mod behind_the_fault_wrapper {
    use super::*;
    use crate::testing::faults::{FaultQuery, Faults};

    crate::query_conformance!(wrapped);

    async fn wrapped<F: Future<Output = ()>>(rule: impl FnOnce(Fixture) -> F) {
        conforms(|fixture| {
            let query = Arc::new(FaultQuery::new(fixture.query.clone(), Faults::default()));
            rule(Fixture { query, ..fixture })
        })
        .await;
    }
}

fn config(path: &Path) -> SqliteConfig {
    SqliteConfig { retention_days: RETENTION_DAYS, ..SqliteConfig::new(path) }
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(config(path)).await.unwrap()
}

/// What is refused: NUL in text, as its CHECK says, NaN because it is null to SQLite.
fn poison(row: &mut StoreRow, kind: usize) {
    if kind.is_multiple_of(2) {
        row.event.event_type.push('\0');
    } else {
        row.event.value = f64::NAN;
    }
}

fn refusal(opened: Result<SqliteStore, StoreError>) -> String {
    let error = opened.err().expect("it must not open");
    assert!(matches!(error, StoreError::Deployment(_)), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_file_that_is_not_ours_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    assert!(refusal(SqliteStore::open(config(&path)).await).contains("pulsestream migrate"));
    assert!(!path.exists(), "opening must not make a file");

    migrate(&path).await.unwrap();
    migrate(&path).await.unwrap();
    let store = open(&path).await;
    let execute = async |sql: &'static str| {
        sqlx::query(sql).execute(&store.writer).await.unwrap();
    };
    execute("insert into _sqlx_migrations values (9999, 'later', '2026-01-01', true, x'00', 1)")
        .await;
    assert!(refusal(SqliteStore::open(config(&path)).await).contains("newer"));
    assert!(migrate(&path).await.unwrap_err().to_string().contains("newer"));
    execute("delete from _sqlx_migrations where version > 2").await;
    assert!(refusal(SqliteStore::open(config(&path)).await).contains("pulsestream migrate"));
    store.close().await;

    let text = folder.path().join("text.db");
    tokio::fs::write(&text, "no database, but long enough to be taken for one".repeat(100))
        .await
        .unwrap();
    refusal(SqliteStore::open(config(&text)).await);
}

#[tokio::test]
async fn a_file_another_process_writes_is_transient_and_readers_do_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    migrate(&path).await.unwrap();
    let busy_timeout = Duration::from_millis(100);
    let store = SqliteStore::open(SqliteConfig { busy_timeout, ..config(&path) }).await.unwrap();
    store.place("g", None, place(0, 0)).await.unwrap();
    let other = open(&path).await;
    let lock = other.writer.begin_with("begin immediate").await.unwrap();

    let one = StoreBatch { group: "g", ..batch(0, 3, rows(0, 1..=3)) };
    let error = store.write(&one, &Copies::default()).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(store.progress("g").await.unwrap(), [place(0, 0)]);

    lock.rollback().await.unwrap();
    assert_eq!(store.write(&one, &Copies::default()).await.unwrap(), stored(3, 0));
}

#[tokio::test]
async fn what_was_committed_is_there_after_the_file_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    migrate(&path).await.unwrap();
    let store = open(&path).await;
    store.place("g", None, place(0, 0)).await.unwrap();
    let one = StoreBatch { group: "g", ..batch(0, 3, rows(0, 1..=3)) };
    store.write(&one, &Copies::default()).await.unwrap();
    drop(store);
    let store = open(&path).await;
    assert_eq!(store.progress("g").await.unwrap(), [place(0, 3)]);
    assert_eq!(store.write(&one, &Copies::default()).await.unwrap(), crate::store::Written::Fenced);
}

#[tokio::test]
async fn a_query_whose_time_is_over_is_ended_and_the_next_one_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    migrate(&path).await.unwrap();
    let writer = open(&path).await;
    writer.place("g", None, place(0, 0)).await.unwrap();
    let many = StoreBatch { group: "g", ..batch(0, 20_000, rows(0, 1..=20_000)) };
    writer.write(&many, &Copies::default()).await.unwrap();

    let hasty = SqliteConfig { query_timeout: Duration::ZERO, ..config(&path) };
    let hasty = SqliteStore::open(hasty).await.unwrap();
    let series = crate::testing::store::query::series(1_000);
    for _ in 0..hasty.config.query_connections + 1 {
        let error = hasty.series(&series).await.unwrap_err();
        assert!(matches!(error, QueryError::TooSlow), "{error}");
    }
    let id = crate::event::EventId(uuid::Uuid::from_u128(1));
    assert!(hasty.event(crate::event::ClientId(1), id).await.unwrap().is_some());
}

#[tokio::test]
async fn views_write_ids_and_times_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    migrate(&path).await.unwrap();
    let store = open(&path).await;
    store.place("g", None, place(0, 0)).await.unwrap();
    let rows = rows(0, 1..=1);
    let event = rows[0].event.clone();
    sqlx::query("insert into clients values (?, 'acme', 0)")
        .bind(rows[0].client.0)
        .execute(&store.writer)
        .await
        .unwrap();
    let one = StoreBatch { group: "g", ..batch(0, 1, rows) };
    store.write(&one, &Copies::default()).await.unwrap();
    let view = "select client, device_id, cast(round(unixepoch(ts, 'subsec') * 1000) as integer) from client_events";
    let seen: (String, String, i64) = sqlx::query_as(view).fetch_one(&store.writer).await.unwrap();
    assert_eq!(seen, ("acme".to_owned(), event.device_id.to_string(), event.timestamp_ms));
    let letter = "insert into dead_letters (topic, part, epoch, off, reason, detail, created_at)
                  values ('metrics.raw', 0, zeroblob(16), 1, 'malformed', 'value: not JSON', 0)";
    sqlx::query(letter).execute(&store.writer).await.unwrap();
    let view = "select id, device_id, created_at from client_dead_letters";
    let seen: (Option<String>, Option<String>, String) =
        sqlx::query_as(view).fetch_one(&store.writer).await.unwrap();
    assert_eq!(seen, (None, None, "1970-01-01T00:00:00.000Z".to_owned()));
    store.close().await;
}
