//! A member of a consumer group: the thread that polls.
//!
//! The thread never waits for the owner. When the inbox is full it leaves records in librdkafka, whose own
//! bound then stops the fetching; when it stays full, the thread pauses its partitions and goes on polling, so
//! the membership lives however slow the owner is. Not at once, because a pause is dear: what was fetched ahead
//! is thrown away, and after a resume librdkafka fetches nothing for up to a second (a consumer that caught up
//! with a fast store was held to a quarter of its speed by that).
//!
//! librdkafka is told of a partition's place by assignment, never by its `seek`, which fails while a
//! fetcher starts and after an offset was out of range. An assignment is also a barrier: nothing fetched
//! before it is handed out after it. Under the eager protocol the client is assigned exactly the
//! partitions that have a place; under the cooperative one it must know all of ours, so those without a
//! place wait at offset 0, paused, and what still slips through is dropped here. (At the end of the log
//! instead, librdkafka often fetched nothing after the next assignment: its question for the end's
//! offset was still under way.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, FromClientConfigAndContext as _};
use rdkafka::consumer::{BaseConsumer, Consumer as _, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use tokio::sync::oneshot;

use super::KafkaConfig;
use super::client;
use super::consumer::Shared;
use super::inbox::Start;
use super::rebalances::Rebalances;
use super::record::{Batch, Pieces};
use super::statistics::{self, Told};
use crate::log::{Offset, Partition};

/// Records taken from librdkafka before they are handed on.
const TURN_RECORDS: usize = 2_048;
/// And bytes.
const TURN_BYTES: usize = 1 << 20;
/// Values fetched ahead, kilobytes; when there are more, nothing is fetched. What librdkafka keeps for each record is
/// not counted, and takes more than a small event.
const QUEUE_KB: &str = "2048";
/// Of a partition in one answer of a broker, bytes: an answer has so much of each, whatever is queued.
const FETCH_BYTES: &str = "131072";
/// What comes so soon after records were handed on is gathered: a burst is a fetch for each few records of it, and
/// each hand-over wakes the owner, and through it others. The first of a burst waits for nothing.
const GATHER: Duration = Duration::from_millis(4);
/// The longest the thread sleeps; what happens wakes it.
const IDLE: Duration = Duration::from_millis(100);
/// An inbox that is full for so long is taken for one that stays full. A rebalance waits no longer than this.
const FULL_PATIENCE: Duration = Duration::from_secs(1);
/// Commits are gathered this long.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a question about a place out of range may hold the poll.
const RANGE_TIMEOUT: Duration = Duration::from_secs(2);
/// When to ask again if there was no answer.
const RANGE_RETRY: Duration = Duration::from_millis(500);

/// Heartbeats within the time after which a silent member is missed.
const HEARTBEATS: u32 = 3;

/// Settings of a member.
pub(super) fn settings(config: &KafkaConfig, group: &str) -> ClientConfig {
    let strategy = match config.rebalance_protocol {
        super::RebalanceProtocol::Eager => "range",
        super::RebalanceProtocol::Cooperative => "cooperative-sticky",
    };
    let millis = |time: Duration| time.as_millis().to_string();
    let mut settings = client::fetching(config);
    settings
        .set("group.id", format!("{}{group}", config.namespace))
        .set("partition.assignment.strategy", strategy)
        .set("session.timeout.ms", millis(config.session_timeout))
        .set("heartbeat.interval.ms", millis(config.session_timeout / HEARTBEATS))
        .set("fetch.min.bytes", "1")
        // A client has one fetch under way at a broker: what is added or resumed waits until that is back.
        .set("fetch.wait.max.ms", "200")
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", QUEUE_KB)
        .set("fetch.message.max.bytes", FETCH_BYTES)
        .set("statistics.interval.ms", statistics::INTERVAL_MS);
    if !config.group_instance_id.is_empty() {
        settings.set("group.instance.id", &config.group_instance_id);
    }
    settings
}

/// The thread's body: makes the client, says so through `started`, polls until the owner is gone.
pub(super) fn run(
    settings: &ClientConfig,
    told: Arc<Told>,
    shared: Arc<Shared>,
    topic: String,
    started: oneshot::Sender<KafkaResult<Arc<BaseConsumer<Rebalances>>>>,
) {
    let _end = EndNotice(Arc::clone(&shared));
    let consumer = match subscribe(settings, told, &shared, &topic) {
        Ok(consumer) => Arc::new(consumer),
        // An owner that went away meanwhile needs no answer.
        Err(error) => return drop(started.send(Err(error))),
    };
    if started.send(Ok(Arc::clone(&consumer))).is_err() {
        return;
    }
    let mut member = Member {
        consumer,
        shared,
        topic,
        running: BTreeMap::new(),
        pieces: Pieces::default(),
        fetching_paused: BTreeSet::new(),
        full_since: None,
        throttled: false,
        handed_on_at: Instant::now(),
        committed_at: Instant::now(),
        check_range_at: None,
        outside: false,
        fatal: false,
    };
    member.serve();
}

fn subscribe(
    settings: &ClientConfig,
    told: Arc<Told>,
    shared: &Arc<Shared>,
    topic: &str,
) -> KafkaResult<BaseConsumer<Rebalances>> {
    let context = Rebalances {
        told,
        shared: Arc::clone(shared),
        topic: topic.to_owned(),
        stirred: AtomicBool::new(false),
    };
    let mut consumer = BaseConsumer::from_config_and_context(settings, context)?;
    let thread: Thread = thread::current();
    consumer.set_nonempty_callback(move || thread.unpark());
    consumer.subscribe(&[topic])?;
    Ok(consumer)
}

/// However the thread ends, the owner learns of it instead of waiting for ever.
struct EndNotice(Arc<Shared>);

impl Drop for EndNotice {
    fn drop(&mut self) {
        let ended = || "the consumer's thread has ended".to_owned();
        self.0.inbox().failed.get_or_insert_with(ended);
        self.0.arrived();
    }
}

/// A partition librdkafka fetches for us.
struct Running {
    generation: u64,
    /// Offset of the next record wanted; below it is a repeat.
    next: Offset,
}

struct Member {
    consumer: Arc<BaseConsumer<Rebalances>>,
    shared: Arc<Shared>,
    topic: String,
    running: BTreeMap<Partition, Running>,
    pieces: Pieces,
    /// Partitions librdkafka was told to pause.
    fetching_paused: BTreeSet<Partition>,
    /// Since when the owner is behind.
    full_since: Option<Instant>,
    /// Partitions are paused for it.
    throttled: bool,
    /// When records were handed on last.
    handed_on_at: Instant,
    committed_at: Instant,
    /// When to find out which place is out of range.
    check_range_at: Option<Instant>,
    /// It was said that the group does not let us in.
    outside: bool,
    fatal: bool,
}

impl Member {
    fn serve(&mut self) {
        while !self.fatal && !self.shared.inbox().closed {
            self.follow_places();
            self.throttle();
            let busy = self.may_poll() && self.poll_turn();
            self.commit_when_due();
            self.check_range_when_due();
            if !busy {
                self.rest();
            }
        }
        // The consumer's own end, when its last holder drops it, revokes and leaves the group; the
        // commits still gathered go out in that revocation.
    }

    /// Sleeps until something happens, or for the rest of a gathering: that is not to be woken by what it gathers.
    #[expect(clippy::disallowed_methods, reason = "it is not for a condition that it sleeps")]
    fn rest(&self) {
        let gathered = GATHER.saturating_sub(self.handed_on_at.elapsed());
        if gathered.is_zero() {
            thread::park_timeout(IDLE);
        } else {
            thread::sleep(gathered);
        }
    }

    /// Points librdkafka at the places the owner chose since the last turn.
    fn follow_places(&mut self) {
        let starts = {
            let mut inbox = self.shared.inbox();
            if !inbox.take_moved() {
                return;
            }
            inbox.starts()
        };
        self.restart(starts);
    }

    /// Fetches each partition from its place, under its generation.
    fn restart(&mut self, starts: BTreeMap<Partition, Start>) {
        if let Err(error) = self.assign(&starts) {
            tracing::warn!(%error, "partitions could not be restarted; trying again");
            self.check_range_at = Some(Instant::now() + RANGE_RETRY);
        }
        // An assignment may or may not keep an earlier pause: say it for each, either way.
        self.fetching_paused = starts.keys().copied().collect();
        self.running = starts
            .into_iter()
            .map(|(p, Start { place, generation })| (p, Running { generation, next: place }))
            .collect();
        let inbox = self.shared.inbox();
        let unwanted = |p: &Partition| self.throttled || inbox.paused(*p);
        let pause: Vec<_> = self.running.keys().copied().filter(unwanted).collect();
        drop(inbox);
        self.pause(&pause);
        self.match_pauses();
    }

    fn assign(&self, starts: &BTreeMap<Partition, Start>) -> KafkaResult<()> {
        match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                let moved = starts.iter().filter(|(p, start)| {
                    self.running.get(p).is_none_or(|was| was.generation != start.generation)
                });
                let list = list(&self.topic, moved.map(|(&p, start)| (p, start.place)))?;
                self.consumer.incremental_unassign(&list)?;
                self.consumer.incremental_assign(&list)
            }
            _ => {
                let places = starts.iter().map(|(&p, start)| (p, start.place));
                self.consumer.assign(&list(&self.topic, places)?)
            }
        }
    }

    /// Takes what librdkafka has now, without waiting; true when there may be more.
    fn poll_turn(&mut self) -> bool {
        let consumer = Arc::clone(&self.consumer);
        let mut batches: BTreeMap<Partition, (u64, Batch)> = BTreeMap::new();
        let (mut records, mut bytes) = (0, 0);
        let mut empty = false;
        while !empty && records < TURN_RECORDS && bytes < TURN_BYTES {
            consumer.context().stirred.store(false, Ordering::Release);
            match consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    records += 1;
                    bytes += message.payload_len() + message.key_len();
                    self.gather(&message, &mut batches);
                }
                Some(Err(error)) => self.note(&error),
                // A callback also reads as nothing, and hides whatever is queued behind it.
                None => empty = !consumer.context().stirred.load(Ordering::Acquire),
            }
        }
        self.hand_on(batches);
        !empty
    }

    fn gather(
        &mut self,
        message: &BorrowedMessage<'_>,
        batches: &mut BTreeMap<Partition, (u64, Batch)>,
    ) {
        let Some(running) = self.running.get_mut(&message.partition()) else { return };
        if message.offset() < running.next {
            return;
        }
        running.next = message.offset() + 1;
        let generation = running.generation;
        let (_, batch) =
            batches.entry(message.partition()).or_insert_with(|| (generation, Batch::default()));
        batch.push(message, &mut self.pieces);
    }

    fn hand_on(&mut self, batches: BTreeMap<Partition, (u64, Batch)>) {
        if batches.is_empty() {
            return;
        }
        let finished = batches.into_iter().map(|(partition, (generation, batch))| {
            let bytes = batch.held_bytes();
            (partition, generation, batch.finish(), bytes)
        });
        let finished: Vec<_> = finished.collect();
        let mut inbox = self.shared.inbox();
        for (partition, generation, records, bytes) in finished {
            inbox.deliver(partition, generation, records, bytes);
        }
        drop(inbox);
        self.shared.arrived();
        self.handed_on_at = Instant::now();
    }

    fn note(&mut self, error: &KafkaError) {
        match (error, client::code(error)) {
            (KafkaError::MessageConsumptionFatal(_), _) => {
                self.fatal = true;
                self.shared.inbox().failed = Some(self.why_fatal(error));
            }
            (_, Some(RDKafkaErrorCode::InconsistentGroupProtocol)) => {
                if !std::mem::replace(&mut self.outside, true) {
                    tracing::warn!(
                        "the group's members have another log.rebalance_protocol: \
                         waiting until the last of them is gone"
                    );
                }
            }
            (
                _,
                Some(
                    RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::LogTruncation,
                ),
            ) => {
                self.check_range_at.get_or_insert_with(Instant::now);
            }
            _ => tracing::debug!(%error, "the consumer met an error it gets over by itself"),
        }
    }

    fn why_fatal(&self, error: &KafkaError) -> String {
        match self.consumer.client().fatal_error() {
            Some((RDKafkaErrorCode::FencedInstanceId, _)) => {
                "another process has the same log.group_instance_id".to_owned()
            }
            Some((_, reason)) => format!("the consumer cannot go on: {reason}"),
            None => format!("the consumer cannot go on: {error}"),
        }
    }

    /// Notes whether the owner is behind, and stops fetching when it stays so.
    fn throttle(&mut self) {
        let inbox = self.shared.inbox();
        if inbox.roomy() {
            self.full_since = None;
        } else if inbox.full() {
            self.full_since.get_or_insert_with(Instant::now);
        }
        drop(inbox);
        self.throttled = self.full_since.is_some_and(|since| since.elapsed() >= FULL_PATIENCE);
        self.match_pauses();
    }

    /// Whether what librdkafka has would find room. When it is paused it has nothing but news of the group.
    fn may_poll(&self) -> bool {
        self.full_since.is_none() || self.throttled
    }

    /// Makes librdkafka's pauses those that the owner and the full inbox ask for.
    fn match_pauses(&mut self) {
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        let inbox = self.shared.inbox();
        for &partition in self.running.keys() {
            let wanted = self.throttled || inbox.paused(partition);
            match (wanted, self.fetching_paused.contains(&partition)) {
                (true, false) => pause.push(partition),
                (false, true) => resume.push(partition),
                _ => {}
            }
        }
        drop(inbox);
        self.pause(&pause);
        if resume.is_empty() {
            return;
        }
        let done = list(&self.topic, resume.iter().map(|&p| (p, 0)))
            .and_then(|list| self.consumer.resume(&list));
        match done {
            Ok(()) => self.fetching_paused.retain(|p| !resume.contains(p)),
            Err(error) => tracing::debug!(%error, "resume failed; trying again"),
        }
    }

    fn pause(&mut self, partitions: &[Partition]) {
        if partitions.is_empty() {
            return;
        }
        let done = list(&self.topic, partitions.iter().map(|&p| (p, 0)))
            .and_then(|list| self.consumer.pause(&list));
        match done {
            Ok(()) => self.fetching_paused.extend(partitions),
            Err(error) => tracing::debug!(%error, "pause failed; trying again"),
        }
    }

    fn commit_when_due(&mut self) {
        if self.committed_at.elapsed() >= COMMIT_INTERVAL {
            self.committed_at = Instant::now();
            self.consumer.context().send_commits(&self.consumer);
        }
    }

    /// librdkafka says that some place is out of range, not whose: compares all with the log's bounds.
    fn check_range_when_due(&mut self) {
        if self.check_range_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let starts = self.shared.inbox().starts();
        let Ok(bounds) = self.ask_bounds(&starts) else {
            self.check_range_at = Some(Instant::now() + RANGE_RETRY);
            return;
        };
        self.check_range_at = None;
        let mut inbox = self.shared.inbox();
        let mut lost = false;
        for (partition, (first, next)) in bounds {
            let Some(start) = starts.get(&partition) else { continue };
            if !(first..=next).contains(&start.place) {
                inbox.out_of_range(partition, start.generation);
                lost = true;
            }
        }
        let starts = inbox.starts();
        drop(inbox);
        if lost {
            self.shared.arrived();
        }
        // The others go on, from the start of an assignment: one of them may have stopped for a fault
        // that has passed.
        self.running.clear();
        self.restart(starts);
    }

    fn ask_bounds(
        &self,
        starts: &BTreeMap<Partition, Start>,
    ) -> KafkaResult<BTreeMap<Partition, (Offset, Offset)>> {
        let mut bounds = BTreeMap::new();
        for &partition in starts.keys() {
            let found = self.consumer.fetch_watermarks(&self.topic, partition, RANGE_TIMEOUT)?;
            bounds.insert(partition, found);
        }
        Ok(bounds)
    }
}

/// Builds librdkafka's list of partitions with places.
pub(super) fn list(
    topic: &str,
    places: impl Iterator<Item = (Partition, Offset)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (partition, place) in places {
        list.add_partition_offset(topic, partition, Place::Offset(place))?;
    }
    Ok(list)
}
