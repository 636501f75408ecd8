//! The hub's work and subscriptions' lives against a model: in whatever order batches come, come again
//! or do not come, and whatever a client reads, leaves and comes back with, what it saw is what the log
//! holds of what it asked for, in order and once; or it was told of a gap.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;
use pulsestream_shared::codec;
use pulsestream_shared::event::{ClientId, DeviceId, Event, EventId};
use pulsestream_shared::log::{
    AppendResult, Bounds, EventLog, LogConsumer, LogError, NewRecord, Offset, Partition, ReadLimit,
    Record, Topic,
};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::chain::{Chain, Step};
use crate::cursor::Cursor;
use crate::feed::{Bounded, Feed};
use crate::filter::{Audience, Filter};
use crate::group::Bell;
use crate::range::Range;
use crate::repeats::Repeats;
use crate::resume::weigh;
use crate::ring::Kept;
use crate::subscription::{Gap, GapReason, Pulled, Subscription};

const PARTITIONS: usize = 2;
const CLIENTS: usize = 3;
/// The client that may lag.
const PATIENT: usize = 2;
const WINDOW: Duration = Duration::from_secs(120);

/// A log in memory, of one time: every repeat is within the window.
#[derive(Default)]
pub(crate) struct Log {
    records: Mutex<[Vec<Record>; PARTITIONS]>,
    /// How often it told its ends.
    pub(crate) told: AtomicUsize,
}

impl Log {
    fn add(&self, partition: usize, event: &Made) {
        let mut partitions = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let records = &mut partitions[partition];
        let next = records.last().map_or(0, |record| record.offset + 1);
        records.push(event.record(partition, next + Offset::from(event.skip)));
    }

    fn of(&self, partition: usize) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)[partition].clone()
    }

    fn ends(&self) -> Vec<Bounds> {
        let end = |partition| self.of(partition).last().map_or(0, |record| record.offset + 1);
        (0..PARTITIONS).map(|partition| Bounds { first: 0, next: end(partition) }).collect()
    }

    fn clear(&self) {
        *self.records.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }
}

#[async_trait]
impl EventLog for Log {
    async fn append(&self, _: Topic, _: Vec<NewRecord>) -> Vec<AppendResult> {
        Vec::new()
    }

    fn partitions_fail_alone(&self) -> bool {
        false
    }

    async fn consume(&self, _: &str) -> Result<Box<dyn LogConsumer>, LogError> {
        Err(LogError::Unavailable("not here".to_owned()))
    }

    async fn read(
        &self,
        _: Topic,
        partition: Partition,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Record>, LogError> {
        let records = self.of(partition as usize).into_iter();
        Ok(records.filter(|record| record.offset >= from).take(limit.records.min(3)).collect())
    }

    async fn bounds(&self, _: Topic) -> Result<Vec<Bounds>, LogError> {
        self.told.fetch_add(1, Ordering::Relaxed);
        Ok(self.ends())
    }

    async fn locate(&self, _: i64) -> Result<Vec<Offset>, LogError> {
        Ok(vec![0; PARTITIONS])
    }
}

/// What is appended.
#[derive(Debug, Clone)]
struct Made {
    id: u8,
    client: bool,
    cpu: bool,
    skip: bool,
}

impl Made {
    fn record(&self, partition: usize, offset: Offset) -> Record {
        let client = ClientId(if self.client { 7 } else { 8 });
        let event = Event {
            id: EventId(Uuid::from_u128(self.id.into())),
            device_id: DeviceId(Uuid::from_u128(partition as u128)),
            event_type: if self.cpu { "cpu" } else { "mem" }.to_owned(),
            value: offset as f64,
            timestamp_ms: 1,
            metadata: None,
        };
        Record {
            partition: partition as Partition,
            offset,
            logged_at_ms: 1_000,
            key: Some(Bytes::from(event.device_id.to_string())),
            value: event.to_json().into(),
            headers: codec::shared_headers(client, 1, None, None),
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Append(usize, Made),
    /// The bus brings what lies `back` before the hub's place, so much of it, or leaves something out.
    Bus {
        partition: usize,
        shift: i8,
        count: usize,
    },
    Repair(usize),
    Connect(usize),
    Pull(usize, usize),
    Settle(usize),
    Leave(usize),
    Replace,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let made = (0..30_u8, any::<bool>(), any::<bool>(), prop::bool::weighted(0.1))
        .prop_map(|(id, client, cpu, skip)| Made { id, client, cpu, skip });
    let op = prop_oneof![
        12 => (0..PARTITIONS, made).prop_map(|(partition, made)| Op::Append(partition, made)),
        10 => (0..PARTITIONS, -2..2_i8, 0..6_usize)
            .prop_map(|(partition, shift, count)| Op::Bus { partition, shift, count }),
        3 => (0..PARTITIONS).prop_map(Op::Repair),
        4 => (0..CLIENTS).prop_map(Op::Connect),
        8 => (0..CLIENTS, 1..5_usize).prop_map(|(client, count)| Op::Pull(client, count)),
        2 => (0..CLIENTS).prop_map(Op::Settle),
        2 => (0..CLIENTS).prop_map(Op::Leave),
        1 => Just(Op::Replace),
    ];
    prop::collection::vec(op, 1..150)
}

/// What one client asked for and saw.
struct Viewer {
    filter: Filter,
    subscription: Option<(Subscription, Bell)>,
    /// What it would come back with.
    cursor: Option<Cursor>,
    /// Since the last gap: where it began, and what it saw.
    since: Option<Cursor>,
    seen: [Vec<Offset>; PARTITIONS],
    gaps: usize,
    /// As it was told.
    missed: u64,
}

struct World {
    log: Arc<Log>,
    feed: Arc<Feed>,
    epoch: u128,
    chains: Vec<Chain>,
    known: Repeats,
    viewers: Vec<Viewer>,
}

impl World {
    fn new() -> Self {
        let log = Arc::new(Log::default());
        let ring = Kept { bytes: 2_500, age: Duration::from_secs(3_600) };
        let lag = Duration::from_secs(3_600);
        let bounded = Bounded { ring, queue_bytes: 400, lag, repeat_window: WINDOW };
        let queries = ["", "eventType=cpu", "deviceId=00000000-0000-0000-0000-000000000001"];
        let viewers = queries.map(|query| Viewer {
            filter: Filter::parse(Audience::Client(ClientId(7)), query).unwrap(),
            subscription: None,
            cursor: None,
            since: None,
            seen: Default::default(),
            gaps: 0,
            missed: 0,
        });
        let feed = Feed::new(log.clone(), bounded);
        let known = Repeats::new(120_000);
        let mut world =
            Self { log, feed, epoch: 0, chains: Vec::new(), known, viewers: viewers.into() };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.epoch += 1;
        self.log.clear();
        self.chains = (0..PARTITIONS).map(|_| Chain::new(-1, 0)).collect();
        self.known = Repeats::new(120_000);
        self.feed.restart(Uuid::from_u128(self.epoch), &self.log.ends());
    }

    async fn run(&mut self, op: &Op) {
        match op {
            Op::Append(partition, made) => self.log.add(*partition, made),
            Op::Bus { partition, shift, count } => self.hear(*partition, *shift, *count),
            Op::Repair(partition) => self.repair(*partition),
            Op::Connect(viewer) => self.connect(*viewer),
            Op::Pull(viewer, count) => {
                for _ in 0..*count {
                    self.pull(*viewer).await;
                }
            }
            Op::Settle(viewer) => {
                if let Some((subscription, _)) = &mut self.viewers[*viewer].subscription {
                    subscription.settle();
                    self.viewers[*viewer].cursor = Some(Cursor::clone(subscription.place()));
                }
            }
            Op::Leave(viewer) => self.viewers[*viewer].subscription = None,
            Op::Replace => {
                (0..CLIENTS).for_each(|viewer| self.check(viewer));
                self.begin();
            }
        }
    }

    fn hear(&mut self, partition: usize, shift: i8, count: usize) {
        let records = self.log.of(partition);
        let seen = self.chains[partition].seen();
        let here = records.partition_point(|record| record.offset <= seen);
        let from = here.saturating_add_signed(shift.into()).min(records.len());
        let part = &records[from..(from + count).min(records.len())];
        let prev = from.checked_sub(1).map_or(-1, |index| records[index].offset);
        let epoch = Uuid::from_u128(self.epoch);
        self.offer(Range::of(epoch, partition as Partition, prev, part));
    }

    fn repair(&mut self, partition: usize) {
        let seen = self.chains[partition].seen();
        let mut records = self.log.of(partition);
        records.retain(|record| record.offset > seen);
        let epoch = Uuid::from_u128(self.epoch);
        self.offer(Range::of(epoch, partition as Partition, seen, &records));
    }

    /// As the hub does.
    fn offer(&mut self, range: Range) {
        let partition = range.partition;
        let chain = &mut self.chains[partition as usize];
        if let Step::Deliver { events, .. } = chain.offer(range, 1_000, &mut self.known) {
            self.feed.show(partition, chain.seen(), &events, Instant::now());
        }
    }

    fn connect(&mut self, number: usize) {
        let bounds = self.log.ends();
        let epoch = Uuid::from_u128(self.epoch);
        let now = Cursor { epoch, next: bounds.iter().map(|bounds| bounds.next).collect() };
        let viewer = &mut self.viewers[number];
        if viewer.subscription.is_some() {
            return;
        }
        let head = self.feed.head().1;
        let sealed = viewer.cursor.take().map(|cursor| Cursor::open(&cursor.seal()).unwrap());
        let place = match sealed.map(|cursor| weigh(cursor, &head, &bounds, |_| true)) {
            Some(Ok(place)) => place,
            Some(Err(_)) | None => {
                // From now: told by the verdict.
                viewer.begin_at(&now);
                now
            }
        };
        let bell = Bell::default();
        viewer.cursor = Some(place.clone());
        let mut subscription = self.feed.subscribe(viewer.filter.clone(), place, bell.clone());
        if number == PATIENT {
            subscription = subscription.patient();
        }
        viewer.subscription = Some((subscription, bell));
    }

    /// Takes one thing, if there is one.
    async fn pull(&mut self, number: usize) -> bool {
        let viewer = &mut self.viewers[number];
        let Some((subscription, bell)) = &mut viewer.subscription else { return false };
        let mut pulled = subscription.pull(None);
        if pulled.is_none() && !subscription.is_live() {
            // The log is read beside.
            timeout(Duration::from_secs(5), bell.notified()).await.expect("a bell");
            pulled = subscription.pull(None);
        }
        match pulled {
            None => return false,
            Some(Pulled::Gap(Gap { reason, missed })) => {
                let place = Cursor::clone(subscription.place());
                self.check(number);
                if let Some(missed) = missed {
                    assert_eq!((reason, missed), (GapReason::Slow, self.missed(number, &place)));
                    self.viewers[number].missed += missed;
                }
                self.viewers[number].begin_at(&place);
                self.viewers[number].gaps += 1;
            }
            Some(Pulled::Events(parcel)) => {
                assert!(!parcel.events.is_empty());
                let offsets = parcel.events.iter().map(|event| event.offset);
                viewer.seen[parcel.partition as usize].extend(offsets);
                viewer.cursor = Some(Cursor::clone(&parcel.place));
                assert_eq!(&parcel.place, subscription.place());
            }
        }
        true
    }

    /// What the client saw since its last gap is what the log holds up to its cursor.
    #[track_caller]
    fn check(&self, number: usize) {
        let viewer = &self.viewers[number];
        let (Some(since), Some(cursor)) = (&viewer.since, &viewer.cursor) else { return };
        if cursor.epoch != Uuid::from_u128(self.epoch) {
            return; // checked when the log was replaced
        }
        for partition in 0..PARTITIONS {
            let number = partition as Partition;
            let asked = since.at(number)..cursor.at(number);
            let expected: Vec<_> = self.firsts(partition, &viewer.filter, &asked);
            assert_eq!(viewer.seen[partition], expected, "partition {partition}, {asked:?}");
        }
    }

    /// How many wanted events lie between a client's cursor and a later place.
    fn missed(&self, number: usize, place: &Cursor) -> u64 {
        let Viewer { cursor: Some(cursor), filter, .. } = &self.viewers[number] else { return 0 };
        let between = |partition| {
            let number = partition as Partition;
            self.firsts(partition, filter, &(cursor.at(number)..place.at(number))).len() as u64
        };
        (0..PARTITIONS).map(between).sum()
    }

    /// Offsets of the wanted events that are no repeats.
    fn firsts(
        &self,
        partition: usize,
        filter: &Filter,
        asked: &std::ops::Range<Offset>,
    ) -> Vec<Offset> {
        let records = self.log.of(partition);
        let range = Range::of(Uuid::nil(), 0, -1, &records);
        let mut ids = std::collections::HashSet::new();
        let first = range.events.into_iter().filter(|event| ids.insert((event.client, event.id)));
        let wanted = first.filter(|event| asked.contains(&event.offset) && filter.wants(event));
        wanted.map(|event| event.offset).collect()
    }

    /// Everybody comes back and reads to the end.
    async fn finish(&mut self) {
        (0..PARTITIONS).for_each(|partition| self.repair(partition));
        for viewer in 0..CLIENTS {
            self.connect(viewer);
            loop {
                while self.pull(viewer).await {}
                if self.viewers[viewer].subscription.as_ref().is_some_and(|(s, _)| s.is_live()) {
                    break;
                }
            }
            let Some((subscription, _)) = &mut self.viewers[viewer].subscription else { continue };
            subscription.settle();
            assert_eq!(subscription.place(), &self.feed.head().1, "at the end of the log");
            self.viewers[viewer].cursor = Some(Cursor::clone(subscription.place()));
            self.check(viewer);
        }
    }
}

impl Viewer {
    fn begin_at(&mut self, place: &Cursor) {
        self.since = Some(place.clone());
        self.cursor = Some(place.clone());
        self.seen = Default::default();
    }
}

fn live(ops: &[Op]) -> World {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        for op in ops {
            world.run(op).await;
        }
        world.finish().await;
        world
    })
}

proptest! {
    #[test]
    fn a_client_sees_the_log_in_order_and_once_or_is_told_of_a_gap(ops in ops()) {
        live(&ops);
    }
}

#[test]
fn a_client_that_comes_back_late_reads_what_the_ring_has_no_more_from_the_log() {
    let made = |id| Made { id, client: true, cpu: true, skip: false };
    let mut ops = vec![Op::Connect(0)];
    for id in 0..30 {
        // Each is logged twice.
        ops.extend([Op::Append(0, made(id)), Op::Append(0, made(id)), Op::Repair(0)]);
        ops.extend((id == 3).then_some([Op::Pull(0, 9), Op::Leave(0)]).into_iter().flatten());
    }
    let world = live(&ops);
    assert_eq!((world.viewers[0].gaps, world.viewers[0].seen[0].len()), (0, 30));
}

#[test]
fn a_patient_client_that_does_not_read_while_it_is_live_gets_all_of_it_late() {
    let made = |id| Made { id, client: true, cpu: true, skip: false };
    let mut ops = vec![Op::Connect(PATIENT), Op::Pull(PATIENT, 1)];
    for id in 0..30 {
        ops.extend([Op::Append(1, made(id)), Op::Repair(1)]);
    }
    let world = live(&ops);
    let viewer = &world.viewers[PATIENT];
    assert_eq!((viewer.gaps, viewer.seen[1].len()), (0, 30));
}

#[test]
fn a_client_that_does_not_read_while_it_is_live_is_told_of_one_gap() {
    let made = |id| Made { id, client: true, cpu: true, skip: false };
    let mut ops = vec![Op::Connect(0), Op::Pull(0, 1)];
    for id in 0..30 {
        ops.extend([Op::Append(0, made(id)), Op::Repair(0)]);
    }
    let world = live(&ops);
    let Viewer { gaps, missed, seen, .. } = &world.viewers[0];
    assert_eq!((*gaps, *missed, seen[0].len()), (1, 30, 0));
}

/// Found by the test above: of the other partition no ids were read, for it was within the ring when the
/// catch-up began.
#[test]
fn a_partition_that_falls_out_of_the_ring_during_a_catch_up_shows_no_repeat_either() {
    let add =
        |partition, id, client| Op::Append(partition, Made { id, client, cpu: false, skip: false });
    let bus = |partition, count| Op::Bus { partition, shift: 0, count };
    let ops = [
        vec![add(0, 0, false), add(0, 0, false), Op::Connect(2), add(0, 0, false)],
        vec![add(1, 0, true), bus(1, 1), Op::Pull(2, 1), Op::Leave(2), bus(0, 3)],
        vec![add(1, 0, true), add(1, 0, false), add(0, 1, false), add(1, 1, false)],
        vec![bus(1, 3), bus(0, 1), add(1, 1, true), bus(1, 1), Op::Connect(2), add(0, 0, true)],
    ];
    let world = live(&ops.concat());
    assert_eq!((world.viewers[2].gaps, &world.viewers[2].seen[1]), (0, &vec![0, 4]));
}
