//! The engine under the conformance suite, and what only this engine promises.

use std::fs;

use bytes::Bytes;
use futures_util::future::join_all;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::log::{Headers, LogEvent, STORE_GROUP};
use crate::testing::log::{Fixture, PARTITIONS, PATIENCE};
use crate::testing::wait_for;

crate::log_conformance!(fixture);

/// A wrapper without a script must not be noticed: the same suite through the fault wrapper.
mod wrapped {
    use super::{Fixture, fixture};
    use crate::testing::faults::{FaultIdentity, FaultLog, Faults};

    crate::log_conformance!(wrapped);

    async fn wrapped() -> Fixture {
        wrap(fixture().await)
    }

    fn wrap(Fixture { log, identity, reopen }: Fixture) -> Fixture {
        let faults = Faults::default();
        Fixture {
            log: std::sync::Arc::new(FaultLog::new(log, faults.clone())),
            identity: std::sync::Arc::new(FaultIdentity::new(identity, faults)),
            reopen: Box::new(|| Box::pin(async { wrap(reopen().await) })),
        }
    }
}

async fn fixture() -> Fixture {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    fixture_of(dir, log)
}

fn fixture_of(dir: TempDir, log: EmbeddedLog) -> Fixture {
    let closing = log.clone();
    Fixture {
        log: Arc::new(log.clone()),
        identity: Arc::new(log),
        reopen: Box::new(|| {
            Box::pin(async move {
                closing.close().await;
                let log = open(&dir).await;
                fixture_of(dir, log)
            })
        }),
    }
}

fn config(dir: &TempDir) -> EmbeddedConfig {
    EmbeddedConfig {
        dir: dir.path().to_owned(),
        partitions: PARTITIONS,
        retention: Duration::from_secs(60),
        max_bytes: u64::MAX,
        append_timeout: Duration::from_secs(30),
    }
}

async fn open(dir: &TempDir) -> EmbeddedLog {
    EmbeddedLog::open(config(dir)).await.unwrap()
}

async fn refusal(config: EmbeddedConfig) -> String {
    match EmbeddedLog::open(config).await {
        Err(LogError::Unusable(sentence)) => sentence,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it opened"),
    }
}

fn record(partition: Partition, value: impl Into<Bytes>) -> NewRecord {
    let headers = Headers::default();
    NewRecord { partition, key: None, value: value.into(), headers, outcomes: Vec::new() }
}

async fn append(log: &EmbeddedLog, partition: Partition, count: usize) -> Vec<Offset> {
    let records = (0..count).map(|n| record(partition, n.to_string())).collect();
    let results = log.append(Topic::Raw, records).await;
    results.into_iter().map(|result| result.unwrap()).collect()
}

async fn sql(log: &EmbeddedLog, sql: &str) {
    let (answer, answered) = oneshot::channel();
    let request = Request::Sql { sql: sql.to_owned(), answer };
    assert!(log.requests.send(request).await.is_ok());
    answered.await.unwrap();
}

const MANY: ReadLimit = ReadLimit { records: 100_000, bytes: 1 << 30 };

#[tokio::test(flavor = "multi_thread")]
async fn appends_that_wait_together_share_commits() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    let appends = (0..100).map(|n| log.append(Topic::Raw, vec![record(n % 4, "value")]));
    for results in join_all(appends).await {
        results[0].as_ref().unwrap();
    }
    let stats = log.stats();
    assert_eq!(stats.records, 100);
    // All were queued before the writer could turn twice: one commit, or a few.
    assert!(stats.commits <= 10, "{stats:?}");
}

#[tokio::test]
async fn a_second_pipeline_on_the_same_folder_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    let (folder, process) = (dir.path().display(), std::process::id());
    let expected = format!("data folder {folder} is in use by process {process}");
    assert_eq!(refusal(config(&dir)).await, expected);
    log.close().await;
    open(&dir).await;
}

#[tokio::test]
async fn dropping_the_last_handle_gives_the_folder_up() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    append(&log, 0, 3).await;
    let mut member = log.consume(STORE_GROUP).await.unwrap();
    assert!(matches!(member.next().await, Ok(LogEvent::Assigned(_))));
    drop(log);
    // A member does not keep the log open; it is told.
    assert!(matches!(member.next().await, Err(LogError::Unusable(_))));
    wait_for("the folder to be free", PATIENCE, || async {
        EmbeddedLog::open(config(&dir)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_file_of_a_newer_version_or_of_another_kind_is_refused() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    sql(&log, "PRAGMA user_version = 3").await;
    log.close().await;
    let sentence = refusal(config(&dir)).await;
    assert!(sentence.contains("was written by a newer version"), "{sentence}");
    let other = TempDir::new().unwrap();
    fs::write(other.path().join("log.db"), vec![b'x'; 10_000]).unwrap();
    let sentence = refusal(config(&other)).await;
    assert!(sentence.contains("the log file is damaged"), "{sentence}");
}

#[tokio::test]
async fn a_file_of_the_first_version_is_read_and_goes_on() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    sql(&log, "ALTER TABLE records DROP COLUMN count; PRAGMA user_version = 1").await;
    sql(&log, "INSERT INTO records VALUES (0, 1, 0, 5, x'61', x'6263', x''), (0, 1, 1, 9, NULL, x'64', x'')").await;
    log.close().await;
    let attached = EmbeddedLog::attach(dir.path()).await.err().unwrap();
    assert!(attached.to_string().contains("older version"), "{attached}");
    let log = open(&dir).await;
    assert_eq!(log.locate(6).await.unwrap(), [0, 1, 0, 0]);
    assert_eq!(append(&log, 1, 3).await, [2, 3, 4]);
    let read = async |from, records| {
        let limit = ReadLimit { records, ..MANY };
        let read = log.read(Topic::Raw, 1, from, limit).await.unwrap();
        read.into_iter().map(|record| (record.offset, record.value)).collect::<Vec<_>>()
    };
    let all = [(0, "bc"), (1, "d"), (2, "0"), (3, "1"), (4, "2")];
    let all = all.map(|(offset, value)| (offset, Bytes::from(value)));
    assert_eq!(read(0, 9).await, all);
    assert_eq!(read(3, 1).await, all[3..4]);
    assert_eq!(read(5, 9).await, []);
    let first = log.read(Topic::Raw, 1, 0, MANY).await.unwrap().remove(0);
    assert_eq!((first.key.as_deref(), first.logged_at_ms), (Some(&b"a"[..]), 5));
    assert_eq!(log.truncate(Topic::Raw, 1, 3).await.unwrap(), 3);
    assert_eq!(read(0, 9).await, all[3..], "a batch may be cut in the middle");
    assert_eq!(log.bounds(Topic::Raw).await.unwrap()[1], Bounds { first: 3, next: 5 });
}

#[tokio::test]
async fn another_partition_count_is_refused_with_both_numbers() {
    let dir = TempDir::new().unwrap();
    open(&dir).await.close().await;
    let sentence = refusal(EmbeddedConfig { partitions: 12, ..config(&dir) }).await;
    assert!(sentence.contains("has 4 partitions") && sentence.contains("says 12"), "{sentence}");
}

#[tokio::test]
async fn a_folder_that_is_a_file_or_cannot_be_written_is_refused() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let sentence = refusal(EmbeddedConfig { dir: file.clone(), ..config(&dir) }).await;
    assert!(sentence.ends_with("is not a folder"), "{sentence}");
    let sentence = refusal(EmbeddedConfig { dir: file.join("below"), ..config(&dir) }).await;
    assert!(sentence.ends_with("is not a folder"), "{sentence}");
    // Nobody, not even root, creates files there.
    let sentence =
        refusal(EmbeddedConfig { dir: "/proc/pulsestream".into(), ..config(&dir) }).await;
    assert!(sentence.starts_with("data folder /proc/pulsestream cannot be"), "{sentence}");
}

#[tokio::test]
async fn a_full_disk_refuses_for_now_and_room_brings_it_back() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    append(&log, 0, 10).await;
    // SQLite's own limit fails as a full disk does, with the same code.
    sql(&log, "PRAGMA max_page_count = 40").await;
    let big = || log.append(Topic::Raw, vec![record(1, vec![b'x'; 500_000])]);
    for _ in 0..2 {
        let results = big().await;
        let Err(AppendError::Unavailable(sentence)) = &results[0] else { panic!("{results:?}") };
        assert!(sentence.contains("disk full"), "{sentence}");
    }
    assert_eq!(append(&log, 0, 1).await, [10], "what fits still goes in");
    assert_eq!(log.bounds(Topic::Raw).await.unwrap()[1].next, 0, "nothing was left behind");
    sql(&log, "PRAGMA max_page_count = 4294967294").await;
    assert!(matches!(big().await[..], [Ok(0)]));
}

#[tokio::test]
async fn a_full_log_is_unavailable_until_retention_makes_room() {
    let dir = TempDir::new().unwrap();
    let config = EmbeddedConfig { max_bytes: 2 << 20, ..config(&dir) };
    let log = EmbeddedLog::open(config).await.unwrap();
    let mut next = 0;
    let full = loop {
        match &log.append(Topic::Raw, vec![record(0, vec![b'x'; 50_000])]).await[0] {
            Ok(offset) => next = offset + 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(full.contains("log is full"), "{full}");
    assert!(next > 20, "{next}");
    let later = unix_ms() + 120_000;
    // The store has taken none: nothing may go, whatever its age.
    assert_eq!(log.retain(later, &[0, 0, 0, 0]).await.unwrap(), 0);
    assert!(log.append(Topic::Raw, vec![record(0, vec![b'x'; 50_000])]).await[0].is_err());
    assert_eq!(log.retain(later, &[next - 1, 0, 0, 0]).await.unwrap(), next as u64 - 1);
    assert_eq!(append(&log, 0, 1).await, [next]);
}

#[tokio::test]
async fn retention_passes_neither_the_floor_nor_the_age() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    for partition in 0..3 {
        append(&log, partition, 5_000).await;
    }
    let now = unix_ms();
    assert_eq!(log.retain(now, &[5_000; 4]).await.unwrap(), 0, "all are young");
    assert_eq!(log.retain(now + 120_000, &[4_321, 0, 5_000, 0]).await.unwrap(), 9_321);
    let bounds = log.bounds(Topic::Raw).await.unwrap();
    let expected = [(4_321, 5_000), (0, 5_000), (5_000, 5_000), (0, 0)];
    assert!(bounds.iter().map(|it| (it.first, it.next)).eq(expected), "{bounds:?}");
    let read = log.read(Topic::Raw, 0, 0, MANY).await.unwrap();
    assert_eq!((read[0].offset, read.len()), (4_321, 679), "below the first reads from the first");
    // An offset is never given out twice, not even when its record was the newest.
    log.close().await;
    let log = open(&dir).await;
    assert_eq!(append(&log, 2, 1).await, [5_000]);
}

#[tokio::test]
async fn a_place_that_retention_passed_is_told() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    append(&log, 0, 100).await;
    log.truncate(Topic::Raw, 0, 50).await.unwrap();
    let mut member = log.consume(STORE_GROUP).await.unwrap();
    assert!(matches!(member.next().await, Ok(LogEvent::Assigned(_))));
    member.seek(0, 49);
    assert!(matches!(member.next().await, Ok(LogEvent::OutOfRange(Some(0)))));
    member.seek(0, 50);
    let Ok(LogEvent::Records(0, records)) = member.next().await else { panic!("no records") };
    assert_eq!(records.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_command_and_the_pipeline_append_beside_each_other() {
    let dir = TempDir::new().unwrap();
    let log = open(&dir).await;
    let mut member = log.consume(STORE_GROUP).await.unwrap();
    assert!(matches!(member.next().await, Ok(LogEvent::Assigned(_))));
    member.seek(0, 0);
    let attached = EmbeddedLog::attach(dir.path()).await.unwrap();
    assert!(attached.consume(STORE_GROUP).await.is_err());
    assert_eq!(attached.identity().await.unwrap(), log.identity().await.unwrap());
    // One after the other, faster than the pipeline looks for others.
    for n in 0..5 {
        assert_eq!(append(&attached, 0, 1).await, [2 * n]);
        assert_eq!(append(&log, 0, 1).await, [2 * n + 1]);
    }
    let both = join_all([&log, &attached].map(|log| async move {
        let mut offsets = Vec::new();
        for _ in 0..50 {
            offsets.extend(append(log, 0, 2).await);
        }
        offsets
    }));
    let mut offsets = both.await.concat();
    offsets.sort_unstable();
    assert!(offsets.into_iter().eq(10..210), "each offset once");
    let mut consumed = consume_up_to(&mut member, 210).await;
    // An idle pipeline at the end of the log notices, too.
    assert!(futures_util::FutureExt::now_or_never(member.next()).is_none());
    append(&attached, 0, 1).await;
    consumed.extend(consume_up_to(&mut member, 1).await);
    assert!(consumed.into_iter().eq(0..211));
}

async fn consume_up_to(member: &mut Box<dyn LogConsumer>, count: usize) -> Vec<Offset> {
    let mut consumed = Vec::new();
    while consumed.len() < count {
        let event = tokio::time::timeout(PATIENCE, member.next()).await.unwrap().unwrap();
        let LogEvent::Records(0, records) = event else { panic!("{event:?}") };
        consumed.extend(records.iter().map(|record| record.offset));
    }
    consumed
}

#[tokio::test]
async fn a_log_closes_while_a_member_is_in_the_middle_of_a_read() {
    let dir = TempDir::new().unwrap();
    open(&dir).await.close().await;
    let log = open(&dir).await;
    append(&log, 0, 1_000).await;
    log.close().await;
    // Opened again, the end of the log is not in memory: the file is read.
    let log = open(&dir).await;
    let mut member = log.consume(STORE_GROUP).await.unwrap();
    assert!(matches!(member.next().await, Ok(LogEvent::Assigned(_))));
    member.seek(0, 0);
    assert!(futures_util::FutureExt::now_or_never(member.next()).is_none(), "a read is under way");
    tokio::time::timeout(PATIENCE, log.close()).await.unwrap();
    loop {
        match tokio::time::timeout(PATIENCE, member.next()).await.unwrap() {
            Ok(_) => {}
            Err(LogError::Unusable(_)) => break,
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn attaching_to_a_folder_without_a_log_is_refused() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(EmbeddedLog::attach(dir.path()).await, Err(LogError::Unusable(_))));
}

/// What a crash leaves: the files as they are, nobody having closed them.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        // The index of the write-ahead log is memory shared by processes; a crash loses it.
        if entry.file_name() != "log.db-shm" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    // Everything confirmed is in the files at the instant of the confirmation (first reopen). A torn
    // write-ahead log loses whole commits from its end and nothing else: what is left is a prefix of
    // what was appended (second reopen). fsync promises the former, the file format the latter.
    #[test]
    fn a_crash_keeps_what_was_confirmed_and_a_torn_tail_leaves_a_prefix(
        batches in proptest::collection::vec((0..4i32, 1..30usize), 1..25),
        torn in 0.0..1.0f64,
    ) {
        let (crashed, cut) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let mut model = [0_usize; 4];
        let first = runtime();
        let dir = TempDir::new().unwrap();
        first.block_on(async {
            let log = open(&dir).await;
            for (partition, count) in &batches {
                append(&log, *partition, *count).await;
                model[usize::try_from(*partition).unwrap()] += count;
            }
            copy(dir.path(), crashed.path());
            copy(dir.path(), cut.path());
            std::mem::forget(log);
        });
        // Dropped with the log open: tasks end where they stand.
        first.shutdown_background();
        let wal = cut.path().join("log.db-wal");
        let length = fs::metadata(&wal).unwrap().len();
        fs::File::options().write(true).open(&wal).unwrap().set_len((length as f64 * torn) as u64).unwrap();
        runtime().block_on(async {
            let log = open(&crashed).await;
            for (partition, expected) in (0..).zip(model) {
                let read = log.read(Topic::Raw, partition, 0, MANY).await.unwrap();
                assert!(read.iter().map(|record| record.offset).eq(0..expected as i64));
            }
            log.close().await;
            let Ok(log) = EmbeddedLog::open(config(&cut)).await else {
                panic!("a torn tail must open");
            };
            for (partition, all) in (0..).zip(model) {
                let read = log.read(Topic::Raw, partition, 0, MANY).await.unwrap();
                let kept = read.len();
                assert!(kept <= all);
                assert!(read.iter().map(|record| record.offset).eq(0..kept as i64));
                let next = append(&log, partition, 1).await;
                assert_eq!(next, [kept as i64]);
            }
            log.close().await;
        });
    }
}
