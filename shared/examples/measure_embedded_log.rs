//! Measures the embedded log on a folder: `measure_embedded_log FOLDER [SECONDS]`.
//!
//! Appends with every commit flushed, in groups of fixed size and from many callers at once, with and
//! without idempotency outcomes; then consumes what was appended, from the file and at the end. Prints
//! one line a case: records/s, commits/s, microseconds of CPU a record.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]
#![expect(clippy::unwrap_used, reason = "a measurement that fails shall stop")]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pulsestream_shared::cache::embedded::{EmbeddedCache, EmbeddedCacheBounds};
use pulsestream_shared::cache::{
    Cache, Fingerprint, LockKey, LockRecord, LockRequest, LockState, Outcome, Owner,
};
use pulsestream_shared::clock::unix_ms;
use pulsestream_shared::event::{ClientId, EventId};
use pulsestream_shared::log::embedded::{EmbeddedConfig, EmbeddedLog};
use pulsestream_shared::log::{EventLog, Headers, LogEvent, NewRecord, Topic, partition_of};
use uuid::Uuid;

const PARTITIONS: u32 = 12;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| "/tmp/measure-embedded-log".to_owned());
    let seconds = arguments.next().map_or(3, |text| text.parse().unwrap());
    let time = Duration::from_secs(seconds);
    for group in [1, 16, 64, 512, 4_096] {
        for outcomes in [false, true] {
            let log = fresh(Path::new(&folder)).await;
            let before = Usage::now();
            let end = Instant::now() + time;
            while Instant::now() < end {
                take(log.append(Topic::Raw, batch(group, outcomes)).await);
            }
            report(&format!("groups of {group}, outcomes {outcomes}"), &log, &before);
            log.close().await;
        }
    }
    for callers in [64, 256] {
        let log = fresh(Path::new(&folder)).await;
        let before = Usage::now();
        let bounds = EmbeddedCacheBounds { locks: 100_000, keys: 100 };
        let cache = std::sync::Arc::new(EmbeddedCache::new(&log, bounds));
        let end = Instant::now() + time;
        let tasks: Vec<_> = (0..callers)
            .map(|_| {
                let (log, cache) = (log.clone(), cache.clone());
                tokio::spawn(async move {
                    while Instant::now() < end {
                        let records = batch(1, true);
                        lock(&cache, &records).await;
                        take(log.append(Topic::Raw, records).await);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        report(&format!("{callers} callers, lock and append"), &log, &before);
        if callers == 256 {
            consume(&log).await;
        }
        log.close().await;
    }
}

async fn fresh(folder: &Path) -> EmbeddedLog {
    if folder.exists() {
        std::fs::remove_dir_all(folder).unwrap();
    }
    EmbeddedLog::open(EmbeddedConfig {
        dir: folder.to_owned(),
        partitions: PARTITIONS,
        retention: Duration::from_secs(3_600),
        max_bytes: u64::MAX,
        append_timeout: Duration::from_secs(30),
    })
    .await
    .unwrap()
}

fn batch(count: usize, outcomes: bool) -> Vec<NewRecord> {
    (0..count).map(|_| record(outcomes)).collect()
}

fn record(outcomes: bool) -> NewRecord {
    let (id, device) = (Uuid::new_v4(), Uuid::new_v4().to_string());
    let value = format!(
        "{{\"id\":\"{id}\",\"deviceId\":\"{device}\",\"eventType\":\"temperature\",\
         \"value\":21.5,\"timestamp\":1795194569018,\"metadata\":{{\"site\":\"north\"}}}}"
    );
    let headers =
        Headers::builder().with("client", b"193742").with("received-at", b"1795194569018123");
    let now = unix_ms();
    let outcome = outcomes.then(|| Outcome {
        key: LockKey { client: ClientId(7), id: EventId(id) },
        record: LockRecord {
            state: LockState::Done,
            fingerprint: Fingerprint([1; 16]),
            owner: Owner(1),
            first_at_ms: now,
            lease_until_ms: now + 15_000,
        },
    });
    NewRecord {
        partition: partition_of(device.as_bytes(), PARTITIONS),
        key: Some(Bytes::from(device)),
        value: Bytes::from(value),
        headers: headers.build(),
        outcomes: outcome.into_iter().collect(),
    }
}

async fn lock(cache: &EmbeddedCache, records: &[NewRecord]) {
    let outcomes = records.iter().flat_map(|record| &record.outcomes);
    let request = |it: &Outcome| LockRequest {
        key: it.key,
        record: Some(LockRecord { state: LockState::InFlight, ..it.record }),
    };
    let requests: Vec<_> = outcomes.map(request).collect();
    cache.lock(&requests).await.unwrap();
}

fn take(results: Vec<pulsestream_shared::log::AppendResult>) {
    for result in results {
        result.unwrap();
    }
}

async fn consume(log: &EmbeddedLog) {
    let total = log.stats().records;
    let (start, cpu) = (Instant::now(), cpu());
    let mut member = log.consume("measure").await.unwrap();
    let mut seen = 0;
    while seen < total {
        match member.next().await.unwrap() {
            LogEvent::Assigned(partitions) => partitions.iter().for_each(|p| member.seek(*p, 0)),
            LogEvent::Records(_, records) => seen += records.len() as u64,
            other => println!("{other:?}"),
        }
    }
    let rate = seen as f64 / start.elapsed().as_secs_f64();
    let cpu_us = (self::cpu() - cpu).as_secs_f64() * 1e6 / seen as f64;
    println!(
        "{:<34} {rate:>9.0} records/s {:>22.2} us CPU a record",
        "consume from the file", cpu_us
    );
}

struct Usage {
    at: Instant,
    cpu: Duration,
}

impl Usage {
    fn now() -> Self {
        Self { at: Instant::now(), cpu: cpu() }
    }
}

/// CPU time of this process, user and system.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn report(name: &str, log: &EmbeddedLog, before: &Usage) {
    let stats = log.stats();
    let seconds = before.at.elapsed().as_secs_f64();
    let cpu_us = (cpu() - before.cpu).as_secs_f64() * 1e6;
    println!(
        "{name:<34} {:>9.0} records/s {:>7.0} commits/s {cpu:>6.2} us CPU a record",
        stats.records as f64 / seconds,
        stats.commits as f64 / seconds,
        cpu = cpu_us / stats.records as f64,
    );
}
