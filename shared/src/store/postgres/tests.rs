//! The conformance suite on a real server, and what only PostgreSQL can do wrong.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::inspect::ScratchDatabase;
use super::*;
use crate::metadata::Metadata;
use crate::store::query::QueryError;
use crate::store::{EventQuery as _, StoreRow};
use crate::testing::services::database_url;
use crate::testing::store::{
    Copies, Fixture, NOW_MS, RETENTION_DAYS, batch, copy_of, place, rows, stored,
};

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
    on_scratch(async |scratch: &ScratchDatabase| {
        let store = Arc::new(open(scratch).await);
        let other = Arc::new(open(scratch).await);
        let fixture =
            Fixture { store: store.clone(), query: store.clone(), other: other.clone(), poison };
        rule(fixture).await;
        store.close().await;
        other.close().await;
    })
    .await;
}

/// Runs a test on a database of its own and drops it, also when the test fails.
pub(super) async fn on_scratch(test: impl AsyncFnOnce(&ScratchDatabase)) {
    let scratch = ScratchDatabase::create(&database_url()).await.unwrap();
    let outcome = AssertUnwindSafe(test(&scratch)).catch_unwind().await;
    scratch.remove().await.unwrap();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn config(scratch: &ScratchDatabase) -> PostgresConfig {
    PostgresConfig {
        retention_days: RETENTION_DAYS,
        max_connections: 3,
        ..PostgresConfig::new(&scratch.url)
    }
}

pub(super) async fn open(scratch: &ScratchDatabase) -> PostgresStore {
    PostgresStore::open(config(scratch)).await.unwrap()
}

/// What the server refuses and an event may hold: text with NUL when the statement is bound, a number
/// with more digits than `numeric` keeps when the metadata becomes jsonb.
fn poison(row: &mut StoreRow, kind: usize) {
    if kind.is_multiple_of(2) {
        row.event.event_type.push('\0');
        return;
    }
    let long = format!("{{\"a\":0.{}}}", "1".repeat(20_000));
    row.event.metadata = Some(Metadata::from_json(serde_json::from_str(&long).unwrap()).unwrap());
}

pub(super) async fn begin(store: &PostgresStore) {
    store.place("g", None, place(0, 0)).await.unwrap();
}

fn refusal(opened: Result<PostgresStore, StoreError>) -> String {
    let error = opened.err().expect("it must not open");
    assert!(matches!(error, StoreError::Deployment(_)), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_schema_that_is_not_ours_is_refused_with_what_to_do() {
    on_scratch(async |scratch| {
        migrate(&scratch.url).await.unwrap();
        open(scratch).await.close().await;

        let foreign = "insert into _sqlx_migrations values (9999, 'later', now(), true, 'x', 1)";
        scratch.execute(foreign).await.unwrap();
        let sentence = refusal(PostgresStore::open(config(scratch)).await);
        assert!(sentence.contains("newer"), "{sentence}");
        assert!(migrate(&scratch.url).await.unwrap_err().to_string().contains("newer"));

        scratch.execute("delete from _sqlx_migrations where version > 2").await.unwrap();
        let sentence = refusal(PostgresStore::open(config(scratch)).await);
        assert!(sentence.contains("pulsestream migrate"), "{sentence}");

        scratch.execute("drop table _sqlx_migrations").await.unwrap();
        let sentence = refusal(PostgresStore::open(config(scratch)).await);
        assert!(sentence.contains("pulsestream migrate"), "{sentence}");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_transient_and_an_unknown_database_is_not() {
    let gone = PostgresStore::open(PostgresConfig {
        acquire_timeout: Duration::from_millis(300),
        ..PostgresConfig::new("postgres://postgres@127.0.0.1:1/none")
    });
    assert!(gone.await.err().unwrap().is_retryable());
    let mut url = url::Url::parse(&database_url()).unwrap();
    url.set_path("no_such_database");
    refusal(PostgresStore::open(PostgresConfig::new(url)).await);
    refusal(PostgresStore::open(PostgresConfig::new("mysql://x")).await);
}

#[tokio::test]
async fn a_writer_behind_a_locked_place_gives_up_soon_and_stores_later() {
    on_scratch(async |scratch| {
        let lock_timeout = Duration::from_millis(200);
        let store =
            PostgresStore::open(PostgresConfig { lock_timeout, ..config(scratch) }).await.unwrap();
        begin(&store).await;
        let mut frozen = store.pool.begin().await.unwrap();
        sqlx::query("select from consumer_offsets for update").execute(&mut *frozen).await.unwrap();

        let one = crate::store::StoreBatch { group: "g", ..batch(0, 3, rows(0, 1..=3)) };
        let begun = Instant::now();
        let error = store.write(&one, &Copies::default()).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());

        frozen.rollback().await.unwrap();
        assert_eq!(store.write(&one, &Copies::default()).await.unwrap(), stored(3, 0));
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_frozen_owner_keeps_its_place_from_the_new_one_for_a_moment_only() {
    on_scratch(async |scratch| {
        let idle_in_transaction_timeout = Duration::from_millis(500);
        let frozen_config = PostgresConfig { idle_in_transaction_timeout, ..config(scratch) };
        let frozen = PostgresStore::open(frozen_config).await.unwrap();
        begin(&frozen).await;
        let mut open_batch = frozen.pool.begin().await.unwrap();
        let swap = "update consumer_offsets set next = 99";
        sqlx::query(swap).execute(&mut *open_batch).await.unwrap();

        let lock_timeout = Duration::from_millis(100);
        let owner =
            PostgresStore::open(PostgresConfig { lock_timeout, ..config(scratch) }).await.unwrap();
        let one = crate::store::StoreBatch { group: "g", ..batch(0, 3, rows(0, 1..=3)) };
        crate::testing::wait_for("the new owner to store", Duration::from_secs(5), || async {
            match owner.write(&one, &Copies::default()).await {
                Ok(written) => written == stored(3, 0),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    false
                }
            }
        })
        .await;
        assert!(open_batch.commit().await.is_err(), "it wakes too late");
        assert_eq!(owner.progress("g").await.unwrap(), [place(0, 3)]);
        owner.close().await;
        frozen.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_statement_without_an_answer_is_transient_and_its_connection_is_not_used_again() {
    on_scratch(async |scratch| {
        let call_timeout = Duration::from_millis(300);
        let settings = PostgresConfig { call_timeout, max_connections: 1, ..config(scratch) };
        let store = PostgresStore::open(settings).await.unwrap();
        let mut session = store.session().await.unwrap();
        let sleep = sqlx::query("select pg_sleep(20)").execute(session.connection());
        assert!(store.within(sleep).await.unwrap_err().is_retryable());
        drop(session);
        assert_eq!(store.progress("g").await.unwrap(), []);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_dies_within_a_batch_loses_and_repeats_nothing() {
    on_scratch(async |scratch| {
        let store = open(scratch).await;
        begin(&store).await;
        let mut one = crate::store::StoreBatch { group: "g", ..batch(0, 3, rows(0, 1..=3)) };
        one.rows[2].event.timestamp_ms = 1; // out of range: the sink is called
        let error = store.write(&one, &Killer(scratch)).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert_eq!(store.progress("g").await.unwrap(), [place(0, 0)]);
        let crate::store::Written::Stored { new, duplicates, dead } =
            store.write(&one, &Copies::default()).await.unwrap()
        else {
            panic!("fenced")
        };
        assert_eq!((new, duplicates, dead.len()), (2, 0, 1));
        store.close().await;
    })
    .await;
}

/// A sink that ends every other connection of the database while the batch waits for it.
struct Killer<'a>(&'a ScratchDatabase);

#[async_trait]
impl DeadLetterSink for Killer<'_> {
    async fn accept(
        &self,
        letters: &[crate::store::DeadLetter],
    ) -> Result<Vec<crate::store::DeadCopy>, crate::log::LogError> {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity
                    where datname = current_database() and pid <> pg_backend_pid()";
        self.0.execute(sql).await.unwrap();
        Ok(letters.iter().map(copy_of).collect())
    }
}

#[tokio::test]
async fn a_detach_that_was_interrupted_is_finished() {
    on_scratch(async |scratch| {
        let lock_timeout = Duration::from_millis(200);
        let store =
            PostgresStore::open(PostgresConfig { lock_timeout, ..config(scratch) }).await.unwrap();
        store.maintain(NOW_MS).await.unwrap();
        // A reader that stays in its transaction: the detach waits for it and gives up half-way.
        let mut reader = store.pool.begin().await.unwrap();
        sqlx::query("select from events").execute(&mut *reader).await.unwrap();
        let much_later_ms = NOW_MS + 30 * crate::testing::store::DAY_MS;
        let error = store.maintain(much_later_ms).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");

        reader.rollback().await.unwrap();
        let pending = "select count(*) from pg_inherits where inhdetachpending";
        let pending: i64 = sqlx::query_scalar(pending).fetch_one(&store.pool).await.unwrap();
        assert_eq!(pending, 1, "the test must interrupt a detach");
        assert_eq!(store.maintain(much_later_ms).await.unwrap().dropped_days, 6);
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_query_whose_time_is_over_is_ended_and_writers_keep_their_connections() {
    on_scratch(async |scratch| {
        let hasty = PostgresConfig {
            max_connections: 1,
            query_connections: 1,
            query_timeout: Duration::from_millis(100),
            ..config(scratch)
        };
        let store = PostgresStore::open(hasty).await.unwrap();
        let client = crate::event::ClientId(1);
        let device = crate::event::DeviceId(uuid::Uuid::from_u128(7));
        let mut lock = store.pool.begin().await.unwrap();
        sqlx::query("lock table events in access exclusive mode")
            .execute(&mut *lock)
            .await
            .unwrap();
        let started = Instant::now();
        let error = store.device(client, device, 0).await.unwrap_err();
        assert!(matches!(error, QueryError::TooSlow), "{error}");
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        lock.rollback().await.unwrap();
        assert_eq!(store.device(client, device, 0).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_query_on_a_server_that_is_gone_fails_soon() {
    on_scratch(async |scratch| {
        let proxy = crate::testing::proxy::TcpProxy::start(address(&scratch.url)).await.unwrap();
        let mut url = url::Url::parse(&scratch.url).unwrap();
        url.set_port(Some(proxy.addr().port())).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        let through_proxy = PostgresConfig { url: url.into(), ..config(scratch) };
        let store = PostgresStore::open(through_proxy).await.unwrap();
        proxy.kill();
        let started = Instant::now();
        let id = crate::event::EventId(uuid::Uuid::from_u128(1));
        let error = store.event(crate::event::ClientId(1), id).await.unwrap_err();
        assert!(matches!(error, QueryError::Store(StoreError::Transient(_))), "{error}");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    })
    .await;
}

fn address(url: &str) -> String {
    let url = url::Url::parse(url).unwrap();
    format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432))
}
