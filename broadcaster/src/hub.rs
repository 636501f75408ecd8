//! The hub: hears every range on the bus, keeps each partition's chain, and fetches from the log what
//! the bus did not bring.
//!
//! A hole shows in three ways: a range that does not follow the last one, a position beyond ours, and
//! silence (a relay tells its position every second, so a partition not heard of for
//! `live.bus_silence` has no relay, or we have no bus). In each case the log is read from where we
//! stand, until the bus agrees again. What was on the bus meanwhile is dropped: the log has it.
//!
//! The hub starts at the end of the log as it is after the bus confirmed the subscription, so nothing
//! falls between the two. What was logged within `live.repeat_window` before that end is one more hole:
//! it is read by the same repairs, partition beside partition, after the hub is ready, and only
//! remembered. Until it is read nothing newer of that partition is shown, so a repeat is known even when
//! it comes first.
//!
//! A log that ends before what the hub has seen was cut, and its offsets no longer mean what they meant:
//! the hub writes a new epoch. In a new epoch every stream starts over, and is told so.

use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::admin::{Dependency, Readiness};
use pulsestream_shared::bus::{BusEvent, Channel, Subscription};
use pulsestream_shared::clock;
use pulsestream_shared::engine::{Engine, OpenError};
use pulsestream_shared::log::{Bounds, EventLog, LogError, Offset, Partition, ReadLimit, Topic};
use pulsestream_shared::service::Context;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::chain::{Chain, Step};
use crate::feed::Feed;
use crate::metrics::LiveMetrics;
use crate::range::Range;
use crate::repeats::{MOST, Repeats};

/// How often partitions are looked over for silence and unfinished repairs.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// One read of a repair.
const READ_LIMIT: ReadLimit = ReadLimit { records: 2_000, bytes: 4 << 20 };
/// How often the log is asked whether it is still the same.
const EPOCH_INTERVAL: Duration = Duration::from_secs(5);

struct Link {
    chain: Chain,
    heard_at: Instant,
    /// The bus showed that something before its last range is missing here.
    hole: bool,
    /// A read of the log is under way.
    reading: bool,
}

/// The answer of one read.
struct ReadDone {
    epoch: Uuid,
    partition: Partition,
    result: Result<ReadBack, LogError>,
}

struct ReadBack {
    range: Range,
    /// When the last record was logged; nothing was read when there is none.
    logged_at_ms: Option<i64>,
    /// There may be more.
    full: bool,
    /// The log begins here: what the range covers below is gone for good.
    lost_below: Option<Offset>,
}

pub(crate) struct Hub {
    engine: Engine,
    epoch: Uuid,
    bus: Box<dyn Subscription>,
    partitions: Vec<Link>,
    repeats: Repeats,
    /// The log looked cut at the last check.
    looked_cut: bool,
    reads: (mpsc::Sender<ReadDone>, mpsc::Receiver<ReadDone>),
    feed: Arc<Feed>,
    metrics: Arc<LiveMetrics>,
    readiness: Readiness,
    silence: Duration,
    window_ms: i64,
}

impl Hub {
    /// Subscribes and stands at the end of the log.
    pub(crate) async fn start(
        context: &Context,
        feed: Arc<Feed>,
        metrics: Arc<LiveMetrics>,
    ) -> Result<Self, OpenError> {
        let engine = context.engine.clone();
        let config = &context.config.live;
        let channels: Vec<_> = (0..partition_count(&engine)).map(Channel::Live).collect();
        let mut bus = engine.bus.subscribe(&channels).await;
        // An absent bus is not waited for: the log is read directly until it comes.
        let confirmed = timeout(config.bus_silence, bus.next()).await;
        let up = matches!(confirmed, Ok(Some(BusEvent::Restored)));
        context
            .readiness
            .note(Dependency::Bus, if up { Ok(()) } else { Err("not subscribed yet".to_owned()) });
        let epoch =
            engine.identity.identity().await.map_err(|error| OpenError(error.to_string()))?.epoch;
        let window_ms = i64::try_from(config.repeat_window.as_millis()).unwrap_or(i64::MAX);
        let mut hub = Self {
            engine,
            epoch,
            bus,
            partitions: Vec::new(),
            repeats: Repeats::new(window_ms),
            looked_cut: false,
            reads: mpsc::channel(channels.len().max(1)),
            feed,
            metrics,
            readiness: context.readiness.clone(),
            silence: config.bus_silence,
            window_ms,
        };
        hub.stand_at_the_end().await.map_err(|error| OpenError(error.to_string()))?;
        Ok(hub)
    }

    async fn stand_at_the_end(&mut self) -> Result<(), LogError> {
        let bounds = self.engine.log.bounds(Topic::Raw).await?;
        let since = self.engine.log.locate(clock::unix_ms() - self.window_ms).await?;
        let heard_at = Instant::now();
        let link = |(past, bounds): (Offset, &Bounds)| Link {
            chain: Chain::new(bounds.next - past - 1, bounds.next),
            heard_at,
            hole: past > 0,
            reading: false,
        };
        self.partitions =
            past_to_read(&bounds, &since).into_iter().zip(&bounds).map(link).collect();
        self.repeats = Repeats::new(self.window_ms);
        self.feed.restart(self.epoch, &bounds);
        Ok(())
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut epochs = interval(EPOCH_INTERVAL);
        epochs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Every arm is cancel safe: what it did not return stays where it was.
            tokio::select! {
                () = stop.cancelled() => return,
                event = self.bus.next() => match event {
                    Some(event) => self.hear(event),
                    None => {
                        tracing::error!("the bus is gone for good");
                        return;
                    }
                },
                Some(done) = self.reads.1.recv() => self.take_read(done),
                _ = looks.tick() => self.look_over(),
                _ = epochs.tick() => self.check_log().await,
            }
        }
    }

    fn hear(&mut self, event: BusEvent) {
        match event {
            BusEvent::Message(Channel::Live(_), message) => match Range::decode(message) {
                Some(range) => self.take_from_bus(range),
                None => tracing::warn!("a message on the bus is of another version"),
            },
            BusEvent::Message(Channel::Keys, _) => {}
            // Which partitions lost something is not told: the next range or position of each tells.
            BusEvent::Lagged => tracing::warn!("the bus ran ahead of this broadcaster"),
            BusEvent::Cut => {
                self.readiness.note(Dependency::Bus, Err("subscription cut".to_owned()));
                self.read_all_directly();
            }
            BusEvent::Restored => self.readiness.note(Dependency::Bus, Ok(())),
        }
    }

    /// Nothing is heard now: do not wait for the silence to be noticed.
    fn read_all_directly(&mut self) {
        for partition in &mut self.partitions {
            partition.hole = true;
        }
    }

    fn take_from_bus(&mut self, range: Range) {
        if range.epoch != self.epoch {
            // A zombie's, or a new log's; the epoch check tells.
            return;
        }
        let number = range.partition;
        if let Some(partition) = self.partition_mut(number) {
            partition.heard_at = Instant::now();
        }
        self.take(range, clock::unix_ms());
    }

    fn take(&mut self, range: Range, at_ms: i64) {
        let number = range.partition;
        let Some(partition) = link_of(&mut self.partitions, number) else { return };
        match partition.chain.offer(range, at_ms, &mut self.repeats) {
            Step::Drop => {}
            Step::Hole => partition.hole = true,
            Step::Deliver { events, repeats } => {
                let shown_to = partition.chain.seen();
                self.metrics.repeats.inc_by(repeats as u64);
                self.feed.show(number, shown_to, &events, Instant::now());
            }
        }
    }

    /// Starts a read for every partition that has a hole or is silent.
    fn look_over(&mut self) {
        let now = Instant::now();
        for index in 0..self.partitions.len() {
            let Some(partition) = self.partitions.get(index) else { continue };
            let silent = now.duration_since(partition.heard_at) > self.silence;
            if partition.reading || !(partition.hole || silent) {
                continue;
            }
            self.read(partition_number(index));
        }
    }

    /// Reads on where the partition stands.
    fn read(&mut self, number: Partition) {
        let (log, done, epoch) = (self.engine.log.clone(), self.reads.0.clone(), self.epoch);
        let Some(partition) = link_of(&mut self.partitions, number) else { return };
        partition.reading = true;
        let seen = partition.chain.seen();
        tokio::spawn(async move {
            let result = read_back(log.as_ref(), epoch, number, seen).await;
            // One place a partition: there is always room, and a closed channel means the end.
            if done.send(ReadDone { epoch, partition: number, result }).await.is_err() {
                tracing::trace!("hub ended during a read");
            }
        });
    }

    fn take_read(&mut self, done: ReadDone) {
        let ReadDone { epoch, partition: number, result } = done;
        if epoch != self.epoch {
            return; // of a log that is no more
        }
        let Some(partition) = link_of(&mut self.partitions, number) else { return };
        partition.reading = false;
        let back = match result {
            Ok(back) => back,
            Err(error) => return tracing::warn!(partition = number, %error, "repair put off"),
        };
        // Not full, it reached the end: the chain is whole as far as the log goes.
        partition.hole = back.full;
        if back.lost_below.is_some_and(|first| partition.chain.is_lost_below(first)) {
            let from = partition.chain.seen() + 1;
            tracing::error!(partition = number, from, "the log no longer holds what was missed");
            self.feed.lose(number, back.lost_below.unwrap_or(from), Instant::now());
        }
        let Some(logged_at_ms) = back.logged_at_ms else { return };
        // What is read of the past came when it was logged, what was missed comes now.
        let at_ms = if partition.chain.is_live() { clock::unix_ms() } else { logged_at_ms };
        if partition.chain.is_live() {
            self.metrics.repairs.with_label_values(&["log"]).inc();
        }
        self.take(back.range, at_ms);
        if back.full {
            self.read(number);
        }
    }

    /// Looks whether the log is still the one the hub stands in; starts over when it is not.
    async fn check_log(&mut self) {
        match self.epoch_in_force().await {
            Ok(epoch) if epoch == self.epoch => return,
            Ok(epoch) => self.epoch = epoch,
            Err(error) => return tracing::debug!(%error, "the log's epoch is not known now"),
        }
        tracing::error!("the log is another one: live streams start over");
        if let Err(error) = self.stand_at_the_end().await {
            tracing::warn!(%error, "the new log cannot be read yet");
            // Asked again at the next check.
            self.epoch = Uuid::nil();
        }
    }

    /// The log's epoch: a new one when the log was cut.
    async fn epoch_in_force(&mut self) -> Result<Uuid, LogError> {
        let epoch = self.engine.identity.identity().await?.epoch;
        if epoch != self.epoch {
            return Ok(epoch);
        }
        let bounds = self.engine.log.bounds(Topic::Raw).await?;
        let ends_early = |(link, bounds): (&Link, &Bounds)| link.chain.seen() >= bounds.next;
        let cut = self.partitions.iter().zip(&bounds).any(ends_early);
        // Two looks in a row must say so: a broker that just became the leader may know less for a
        // moment, and a new epoch makes the store read everything again.
        if !std::mem::replace(&mut self.looked_cut, cut) || !cut {
            return Ok(epoch);
        }
        tracing::error!("the log ends before what was shown, it was cut: starting a new epoch");
        self.looked_cut = false;
        Ok(self.engine.identity.renew(epoch).await?.epoch)
    }

    fn partition_mut(&mut self, number: Partition) -> Option<&mut Link> {
        link_of(&mut self.partitions, number)
    }
}

fn link_of(partitions: &mut [Link], number: Partition) -> Option<&mut Link> {
    partitions.get_mut(usize::try_from(number).ok()?)
}

/// How many offsets before each partition's end are read for their ids: those since the given places,
/// or, where these are more than are remembered, the newest of each in proportion.
fn past_to_read(bounds: &[Bounds], since: &[Offset]) -> Vec<Offset> {
    let most = i64::try_from(MOST).unwrap_or(i64::MAX);
    let past =
        bounds.iter().zip(since).map(|(bounds, since)| bounds.next - since.max(&bounds.first));
    let mut past: Vec<_> = past.map(|count| count.max(0)).collect();
    let total = past.iter().sum::<Offset>();
    if total > most {
        past.iter_mut().for_each(|count| *count = count.saturating_mul(most) / total);
    }
    past
}

/// One read of what follows `seen`.
async fn read_back(
    log: &dyn EventLog,
    epoch: Uuid,
    partition: Partition,
    seen: Offset,
) -> Result<ReadBack, LogError> {
    let records = log.read(Topic::Raw, partition, seen + 1, READ_LIMIT).await?;
    let bytes: usize = records.iter().map(|record| record.value.len()).sum();
    let mut lost_below = None;
    if records.first().is_some_and(|record| record.offset > seen + 1) {
        let first = first_kept(&log.bounds(Topic::Raw).await?, partition);
        lost_below = (first > seen + 1).then_some(first);
    }
    Ok(ReadBack {
        range: Range::of(epoch, partition, seen, &records),
        logged_at_ms: records.last().map(|record| record.logged_at_ms),
        full: records.len() >= READ_LIMIT.records || bytes >= READ_LIMIT.bytes,
        lost_below,
    })
}

fn partition_count(engine: &Engine) -> Partition {
    Partition::try_from(engine.partitions).unwrap_or(Partition::MAX)
}

fn partition_number(index: usize) -> Partition {
    Partition::try_from(index).unwrap_or(Partition::MAX)
}

/// Where the partition begins.
pub(crate) fn first_kept(bounds: &[Bounds], partition: Partition) -> Offset {
    let index = usize::try_from(partition).unwrap_or(usize::MAX);
    bounds.get(index).map_or(0, |bounds| bounds.first)
}
