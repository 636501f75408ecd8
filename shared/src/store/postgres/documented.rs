//! docs/schema.md is held to the tables: it names every column, and its queries run and find something.

use sqlx::{AssertSqlSafe, Connection as _, Row};

use super::PostgresStore;
use super::inspect::ScratchDatabase;
use super::tests::{begin, on_scratch, open};
use crate::clock;
use crate::store::EventStore as _;

const PAGE: &str = include_str!("../../../../docs/schema.md");

/// Something for every query to find.
const SAMPLES: &[&str] = &[
    "insert into clients (id, name, created_at) values (1, 'acme', now())",
    "insert into events
     select gen_random_uuid(), 1, '73d7049a-9f6b-4a36-8d6c-0d6a8a4a4a4a', 'temperature', n, now() - n * interval '1 minute',
            '{\"firmware\": \"2.1\"}', now(), n
       from generate_series(1, 20) n",
    "insert into events
     values (gen_random_uuid(), 1, gen_random_uuid(), 'humidity', 40, now() - interval '2 hours', null, now(), 99)",
    "insert into dead_letters (topic, part, epoch, off, reason, detail, created_at)
     values ('metrics.raw', 0, gen_random_uuid(), 1, 'malformed', 'value: not JSON', now())",
    "update consumer_offsets set grp = 'pulsestream-store'",
];

/// A store that holds the samples.
async fn filled(scratch: &ScratchDatabase) -> PostgresStore {
    let store = open(scratch).await;
    begin(&store).await;
    store.maintain(clock::unix_ms()).await.unwrap();
    for sample in SAMPLES {
        scratch.execute(sample).await.unwrap();
    }
    store
}

/// The page's blocks of SQL.
fn queries() -> Vec<&'static str> {
    let blocks = PAGE.split("```sql\n").skip(1);
    blocks.filter_map(|block| block.split("```").next()).collect()
}

#[tokio::test]
async fn every_query_of_the_page_finds_something() {
    on_scratch(async |scratch| {
        let store = filled(scratch).await;
        let queries = queries();
        assert!(queries.len() >= 9, "{}", queries.len());
        for query in queries {
            let found = sqlx::raw_sql(query).fetch_all(&store.pool).await;
            let found = found.unwrap_or_else(|error| panic!("{error}:\n{query}"));
            assert!(!found.is_empty(), "nothing:\n{query}");
        }
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn the_page_names_every_table_and_column() {
    on_scratch(async |scratch| {
        let store = open(scratch).await;
        let columns = "select table_name::text, column_name::text from information_schema.columns
                        where table_schema = 'public' and table_name !~ '^(events_\\d+|_sqlx_.*)$'";
        let columns = sqlx::query(columns).fetch_all(&store.pool).await.unwrap();
        assert!(columns.len() > 40, "{}", columns.len());
        for column in columns {
            let (table, column): (String, String) = (column.get(0), column.get(1));
            for name in [&table, &column] {
                assert!(PAGE.contains(&format!("`{name}`")), "{table}.{column}: {name}");
            }
        }
        store.close().await;
    })
    .await;
}

#[tokio::test]
async fn the_role_that_reads_sees_the_views_and_nothing_else() {
    on_scratch(async |scratch| {
        let store = filled(scratch).await;
        let mut reader = store.pool.acquire().await.unwrap().detach();
        sqlx::query("set role pulsestream_reader").execute(&mut reader).await.unwrap();
        for view in ["client_events", "client_dead_letters", "stored_places"] {
            let rows = sqlx::raw_sql(AssertSqlSafe(format!("select * from {view}")));
            assert!(!rows.fetch_all(&mut reader).await.unwrap().is_empty(), "{view}");
        }
        let refused = [
            "select from events",
            "select from api_keys",
            "select from settings",
            "select from clients",
            "select from dead_letters",
            "update stored_places set next = 0",
        ];
        for statement in refused {
            let error = sqlx::raw_sql(statement).execute(&mut reader).await.unwrap_err();
            let code = error.as_database_error().and_then(|error| error.code()).unwrap();
            assert_eq!(code, "42501", "{statement}: {error}");
        }
        reader.close().await.unwrap();
        store.close().await;
    })
    .await;
}
