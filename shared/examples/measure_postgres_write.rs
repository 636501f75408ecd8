//! Measures what it costs to store batches of 5,000 rows on PostgreSQL, by what is known of their locks:
//! `measure_postgres_write URL [BATCHES]`, beside the database of that URL.
//!
//! Each case is one writer on a database of its own whose rows lie in 6 days. Prints rows/s and milliseconds
//! a batch (median).

#![expect(clippy::print_stdout, reason = "its output is what it is for")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

use std::time::Instant;

use pulsestream_shared::codec::Unsure;
use pulsestream_shared::event::EventId;
use pulsestream_shared::store::postgres::inspect::ScratchDatabase;
use pulsestream_shared::store::postgres::{PostgresConfig, PostgresStore};
use pulsestream_shared::store::{EventStore, StoreRow};
use pulsestream_shared::testing::store::{Copies, DAY_MS, GROUP, NOW_MS, batch, place, row};
use uuid::Uuid;

const ROWS: usize = 5_000;

struct Case {
    name: &'static str,
    /// Batches accepted under local locks before.
    local_before: usize,
    unsure: Option<Unsure>,
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap();
    let batches = arguments.next().map_or(60, |text| text.parse().unwrap());
    let case = |name, local_before, unsure| Case { name, local_before, unsure };
    let forgotten = Some(Unsure::Forgotten { at_ms: NOW_MS - DAY_MS });
    let cases = [
        case("sure, no local lock before", 0, None),
        case("sure, 50,000 local locks before", 10, None),
        case("sure, 500,000 local locks before", 100, None),
        case("keys forgotten", 0, forgotten),
        case("local locks", 0, Some(Unsure::Local)),
    ];
    for _ in 0..2 {
        for case in &cases {
            measure(&url, case, batches).await;
        }
    }
}

async fn measure(url: &str, case: &Case, batches: usize) {
    let database = ScratchDatabase::create(url).await.unwrap();
    let store = PostgresStore::open(PostgresConfig::new(database.url.clone())).await.unwrap();
    store.place(GROUP, None, place(0, 0)).await.unwrap();
    let mut from = 0;
    for _ in 0..case.local_before {
        write(&store, &mut from, Some(Unsure::Local)).await;
    }
    let mut took: Vec<_> = Vec::new();
    for _ in 0..batches {
        took.push(write(&store, &mut from, case.unsure).await);
    }
    // The first ones make days and fill caches.
    took.drain(..batches / 4);
    took.sort_unstable_by(f64::total_cmp);
    let median = took[took.len() / 2];
    println!("{:34} {:7.0} rows/s  {:6.1} ms", case.name, ROWS as f64 / median, median * 1e3);
    store.close().await;
    database.remove().await.unwrap();
}

/// Seconds it took.
async fn write(store: &PostgresStore, from: &mut i64, unsure: Option<Unsure>) -> f64 {
    let rows: Vec<StoreRow> = (*from..).take(ROWS).map(|offset| fresh(offset, unsure)).collect();
    let to = *from + i64::try_from(ROWS).unwrap();
    let batch = batch(*from, to, rows);
    let started = Instant::now();
    store.write(&batch, &Copies::default()).await.unwrap();
    *from = to;
    started.elapsed().as_secs_f64()
}

fn fresh(offset: i64, unsure: Option<Unsure>) -> StoreRow {
    let mut row = row(0, offset, 0);
    row.event.id = EventId(Uuid::new_v4());
    // Most rows are of today; some of each day before, so that every day has a table.
    let day = if offset % 100 == 0 { offset / 100 % 6 } else { 0 };
    row.event.timestamp_ms = NOW_MS - day * DAY_MS;
    row.unsure = unsure;
    row
}
