//! The embedded engines together, against a model of what they promise, with a crash at any byte.
//!
//! A machine that loses its power keeps what was flushed, and of what was being written any part. All writing
//! goes to the ends of the write-ahead logs but for checkpoints. So the image of a crash during an operation is the
//! folder after it, its write-ahead log cut at any byte that the operation wrote, with a hole of zeros among those
//! that are left; and that of one during a checkpoint the database with some of its pages written, and the whole
//! write-ahead log.
//!
//! The model: what was confirmed is there. What was under way is there as a whole or not at all, an event always
//! with its idempotency outcome. Offsets have no holes and are given out once. A place never stands where rows are
//! missing, nor rows behind a place. The log has what the store has not taken.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

use crate::cache::embedded::{EmbeddedCache, EmbeddedCacheBounds};
use crate::cache::{
    Cache as _, Fingerprint, LockKey, LockRecord, LockReply, LockRequest, LockState, Outcome, Owner,
};
use crate::clock::unix_ms;
use crate::event::{ClientId, EventId};
use crate::log::embedded::{EmbeddedConfig, EmbeddedLog, damage};
use crate::log::{
    EventLog as _, Headers, LogConsumer, LogEvent, NewRecord, Offset, Partition, ReadLimit, Topic,
};
use crate::store::sqlite::{self, SqliteConfig, SqliteStore};
use crate::store::{EventStore as _, StoreBatch};
use crate::testing::store::{Copies, GROUP, Inspect as _, place, row, stored};

const PARTITIONS: usize = 4;
const RETENTION: Duration = Duration::from_secs(60);
const MANY: ReadLimit = ReadLimit { records: 100_000, bytes: 1 << 30 };
/// Of an SQLite file.
const PAGE: usize = 4_096;

/// What a pipeline does to its folder.
#[derive(Debug, Clone)]
enum Step {
    /// Records to these partitions in one append, each with its outcome.
    Append(Vec<usize>),
    /// So many records of a partition into the store at most, and its place.
    Store(usize, usize),
    /// The group's place in a partition, which rides on a later commit.
    CommitPlace(usize),
    /// Old records that the store has.
    Retain,
    /// The pages in the write-ahead log into that file.
    Checkpoint(&'static str),
    /// A clean end and a start.
    Restart,
}

/// Where a crash strikes: shares of the bytes that the step wrote.
#[derive(Debug, Clone, Copy)]
struct Crash {
    cut: f64,
    hole: (f64, f64),
}

fn steps() -> impl Strategy<Value = Vec<(Step, Option<Crash>)>> {
    let partition = || 0..PARTITIONS;
    let step = prop_oneof![
        5 => proptest::collection::vec(partition(), 1..40).prop_map(Step::Append),
        4 => (partition(), 1..40_usize).prop_map(|(p, count)| Step::Store(p, count)),
        1 => partition().prop_map(Step::CommitPlace),
        2 => Just(Step::Retain),
        1 => prop_oneof![Just("log.db"), Just("store.db")].prop_map(Step::Checkpoint),
        1 => Just(Step::Restart),
    ];
    let share = || 0.0..=1.0;
    let crash = (share(), share(), share()).prop_map(|(cut, a, b)| Crash { cut, hole: (a, b) });
    proptest::collection::vec((step, proptest::option::weighted(0.25, crash)), 1..40)
}

/// A pipeline's engines on a folder.
struct Pipeline {
    dir: TempDir,
    log: EmbeddedLog,
    cache: EmbeddedCache,
    store: SqliteStore,
    member: Box<dyn LogConsumer>,
}

impl Pipeline {
    async fn start(dir: TempDir) -> Self {
        let config = EmbeddedConfig {
            dir: dir.path().to_owned(),
            partitions: PARTITIONS as u32,
            retention: RETENTION,
            max_bytes: u64::MAX,
            append_timeout: Duration::from_secs(30),
        };
        let log = EmbeddedLog::open(config).await.unwrap();
        let cache = EmbeddedCache::new(&log, EmbeddedCacheBounds::default());
        let path = dir.path().join("store.db");
        sqlite::migrate(&path).await.unwrap();
        let store = SqliteStore::open(SqliteConfig::new(path)).await.unwrap();
        let mut member = log.consume(GROUP).await.unwrap();
        assert!(matches!(member.next().await, Ok(LogEvent::Assigned(_))));
        Self { dir, log, cache, store, member }
    }

    /// The folder of the pipeline that ended.
    async fn end(self) -> TempDir {
        let Self { dir, log, store, .. } = self;
        log.close().await;
        store.close().await;
        dir
    }

    /// What is on the disk when the machine dies during a step that found the folder like `before`.
    fn crashed(&self, step: &Step, before: &Path, crash: Crash) -> TempDir {
        let image = TempDir::new().unwrap();
        copy(self.dir.path(), image.path());
        match step {
            Step::Append(_) | Step::Retain => tear(before, image.path(), "log.db-wal", crash),
            Step::Store(..) => tear(before, image.path(), "store.db-wal", crash),
            Step::Checkpoint(file) => mix_pages(before, image.path(), file, crash),
            Step::CommitPlace(_) | Step::Restart => {}
        }
        image
    }

    /// What is remembered under the keys of events.
    async fn outcomes(&self, ids: impl Iterator<Item = u128>) -> Vec<LockReply> {
        let looks: Vec<_> = ids.map(|id| LockRequest { key: lock_key(id), record: None }).collect();
        self.cache.lock(&looks).await.unwrap().replies
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    async fn places(&self) -> [Offset; PARTITIONS] {
        let mut places = [0; PARTITIONS];
        for progress in self.store.progress(GROUP).await.unwrap() {
            places[progress.partition as usize] = progress.next;
        }
        places
    }
}

/// The index of a write-ahead log is memory shared by processes; a crash loses it.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        if !name.to_string_lossy().ends_with("-shm") {
            fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}

fn tear(before: &Path, image: &Path, name: &str, Crash { cut, hole }: Crash) {
    let flushed = fs::metadata(before.join(name)).map_or(0, |file| file.len() as usize);
    let Ok(mut bytes) = fs::read(image.join(name)) else { return };
    let at = |share: f64, range: &Range<usize>| range.start + (range.len() as f64 * share) as usize;
    bytes.truncate(at(cut, &(flushed..bytes.len().max(flushed))));
    let left = flushed.min(bytes.len())..bytes.len();
    let (a, b) = (at(hole.0, &left), at(hole.1, &left));
    bytes[a.min(b)..a.max(b)].fill(0);
    fs::write(image.join(name), bytes).unwrap();
}

fn mix_pages(before: &Path, image: &Path, name: &str, Crash { cut, hole }: Crash) {
    let (old, mut new) =
        (fs::read(before.join(name)).unwrap(), fs::read(image.join(name)).unwrap());
    let pages = new.len() / PAGE;
    let unwritten = |page: &usize| {
        let share = *page as f64 / pages as f64;
        share >= cut || (hole.0..hole.1).contains(&share)
    };
    for page in (0..pages).filter(unwritten) {
        let bytes = page * PAGE..(page + 1) * PAGE;
        match old.get(bytes.clone()) {
            Some(old) => new[bytes].copy_from_slice(old),
            None => new[bytes].fill(0),
        }
    }
    fs::write(image.join(name), new).unwrap();
}

/// What must be there.
#[derive(Debug, Clone, Default)]
struct Model {
    /// Ids by offset.
    appended: [Vec<u128>; PARTITIONS],
    /// The log's first offsets, and the store's places.
    first: [Offset; PARTITIONS],
    stored: [Offset; PARTITIONS],
    /// What the group's place may be read as: it is written some time after it was told.
    committed: [Vec<Option<Offset>>; PARTITIONS],
    next_id: u128,
}

fn lock_key(id: u128) -> LockKey {
    LockKey { client: ClientId(1), id: EventId(Uuid::from_u128(id)) }
}

fn fingerprint(id: u128) -> Fingerprint {
    Fingerprint(id.to_be_bytes())
}

fn event(partition: usize, id: u128) -> NewRecord {
    let first_at_ms = unix_ms();
    let record = LockRecord {
        state: LockState::Done,
        fingerprint: fingerprint(id),
        owner: Owner(1),
        first_at_ms,
        lease_until_ms: first_at_ms + 15_000,
    };
    NewRecord {
        partition: partition as Partition,
        key: None,
        value: id.to_string().into(),
        headers: Headers::default(),
        outcomes: vec![Outcome { key: lock_key(id), record }],
    }
}

impl Model {
    fn new() -> Self {
        Self { committed: std::array::from_fn(|_| vec![None]), ..Self::default() }
    }

    /// Does a step, and expects of it what it confirms. A restart gives another pipeline.
    async fn take(&mut self, pipeline: Pipeline, step: &Step) -> Pipeline {
        match step {
            Step::Append(partitions) => self.append(&pipeline, partitions).await,
            Step::Store(partition, count) => self.store(&pipeline, *partition, *count).await,
            Step::CommitPlace(partition) => return self.commit(pipeline, *partition),
            Step::Retain => self.retain(&pipeline).await,
            Step::Checkpoint(file) => damage::checkpoint(&pipeline.path(file)).await,
            Step::Restart => {
                self.committed.iter_mut().for_each(|places| drop(places.drain(..places.len() - 1)));
                return Pipeline::start(pipeline.end().await).await;
            }
        }
        pipeline
    }

    async fn append(&mut self, pipeline: &Pipeline, partitions: &[usize]) {
        let ids = self.next_id..;
        self.next_id += partitions.len() as u128;
        let records = partitions.iter().zip(ids.clone()).map(|(p, id)| event(*p, id)).collect();
        let offsets = pipeline.log.append(Topic::Raw, records).await;
        for ((&partition, id), offset) in partitions.iter().zip(ids).zip(offsets) {
            assert_eq!(offset.unwrap(), self.appended[partition].len() as Offset);
            self.appended[partition].push(id);
        }
    }

    async fn store(&mut self, pipeline: &Pipeline, partition: usize, count: usize) {
        let (number, from) = (partition as Partition, self.stored[partition]);
        let limit = ReadLimit { records: count, ..MANY };
        let read = pipeline.log.read(Topic::Raw, number, from, limit).await.unwrap();
        if read.is_empty() {
            return;
        }
        let id = |value: &[u8]| std::str::from_utf8(value).unwrap().parse().unwrap();
        let rows: Vec<_> = read.iter().map(|it| row(number, it.offset, id(&it.value))).collect();
        if from == 0 {
            pipeline.store.place(GROUP, None, place(number, 0)).await.unwrap();
        }
        let to = from + rows.len() as Offset;
        self.stored[partition] = to;
        let expected = stored(rows.len() as u64, 0);
        let (from, to) = (vec![place(number, from)], vec![place(number, to)]);
        let batch = StoreBatch { group: GROUP, from, to, rows, dead: Vec::new() };
        assert_eq!(pipeline.store.write(&batch, &Copies::default()).await.unwrap(), expected);
    }

    fn commit(&mut self, mut pipeline: Pipeline, partition: usize) -> Pipeline {
        pipeline.member.commit(partition as Partition, self.stored[partition]);
        self.committed[partition].push(Some(self.stored[partition]));
        pipeline
    }

    async fn retain(&mut self, pipeline: &Pipeline) {
        let much_later_ms = unix_ms() + 2 * i64::try_from(RETENTION.as_millis()).unwrap();
        pipeline.log.retain(much_later_ms, &pipeline.places().await).await.unwrap();
        self.first = self.stored;
    }

    /// Compares with what a start after a crash finds, `self` being what was there before the step that was under way
    /// and `after` what there is when it is done; goes on from there.
    async fn recover(&mut self, pipeline: &mut Pipeline, step: &Step, after: &Self) {
        let bounds = pipeline.log.bounds(Topic::Raw).await.unwrap();
        let places = pipeline.places().await;
        let held = bounds.iter().map(|bounds| bounds.next as usize).collect::<Vec<_>>();
        let lengths = |model: &Self| model.appended.iter().map(Vec::len).collect::<Vec<_>>();
        assert!([lengths(self), lengths(after)].contains(&held), "a part of {step:?}: {held:?}");
        assert!([self.stored, after.stored].contains(&places), "a part of {step:?}: {places:?}");
        for (partition, bounds) in bounds.iter().enumerate() {
            let retained = self.first[partition]..=after.first[partition];
            assert!(retained.contains(&bounds.first), "{step:?}: {bounds:?} of {retained:?}");
            self.first[partition] = bounds.first;
            self.stored[partition] = places[partition];
        }
        if held == lengths(after) {
            self.appended = after.appended.clone();
        } else {
            let lost = self.next_id..after.next_id;
            let replies = pipeline.outcomes(lost).await;
            assert!(replies.iter().all(|reply| *reply == LockReply::Free), "{replies:?}");
        }
        self.next_id = after.next_id;
        let numbers: Vec<_> = (0..PARTITIONS as Partition).collect();
        let committed = pipeline.member.committed(&numbers).await.unwrap();
        for (partition, place) in committed.into_iter().enumerate() {
            assert!(after.committed[partition].contains(&place), "{place:?}");
            self.committed[partition] = vec![place];
        }
        self.holds(pipeline).await;
    }

    /// Everything there is, is what the model has.
    async fn holds(&self, pipeline: &Pipeline) {
        let mut rows = Vec::new();
        for (partition, ids) in self.appended.iter().enumerate() {
            let (first, place) = (self.first[partition], self.stored[partition]);
            assert!(first <= place, "the log has let go what the store has not");
            let number = partition as Partition;
            let read = pipeline.log.read(Topic::Raw, number, 0, MANY).await.unwrap();
            assert!(read.iter().map(|record| record.offset).eq(first..ids.len() as Offset));
            let values = read.iter().map(|record| record.value.clone());
            assert!(values.eq(ids[first as usize..].iter().map(u128::to_string)));
            rows.extend((0..place).zip(ids).map(|(pos, id)| (Uuid::from_u128(*id), pos)));
        }
        rows.sort_unstable();
        let stored = pipeline.store.stored_events().await.unwrap();
        assert!(stored.iter().map(|row| (row.id.0, row.pos)).eq(rows));
        let ids = self.appended.iter().flatten();
        for (id, reply) in ids.clone().zip(pipeline.outcomes(ids.copied()).await) {
            let LockReply::Held(record) = reply else { panic!("{id}: {reply:?}") };
            assert_eq!((record.state, record.fingerprint), (LockState::Done, fingerprint(*id)));
        }
    }
}

async fn survives(steps: &[(Step, Option<Crash>)]) {
    let mut model = Model::new();
    let mut pipeline = Pipeline::start(TempDir::new().unwrap()).await;
    for (step, crash) in steps {
        let before = TempDir::new().unwrap();
        if crash.is_some() {
            copy(pipeline.dir.path(), before.path());
        }
        let mut after = model.clone();
        pipeline = after.take(pipeline, step).await;
        let Some(crash) = crash else {
            model = after;
            if let Step::Checkpoint(file) = step {
                // What is written next lies behind everything again.
                damage::empty_wal(&pipeline.path(file)).await;
            }
            continue;
        };
        let image = pipeline.crashed(step, before.path(), *crash);
        pipeline.end().await;
        pipeline = Pipeline::start(image).await;
        model.recover(&mut pipeline, step, &after).await;
    }
    for partition in 0..PARTITIONS {
        model.store(&pipeline, partition, MANY.records).await;
    }
    model.holds(&pipeline).await;
    pipeline.end().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_pipeline_does_when_its_machine_dies_log_store_and_outcomes_agree(steps in steps()) {
        tokio::runtime::Runtime::new().unwrap().block_on(survives(&steps));
    }
}
