//! The hub: hears every range on the bus, keeps each partition's chain, and fetches from the log what
//! the bus did not bring.
//!
//! A hole shows in three ways: a range that does not follow the last one, a position beyond ours, and
//! silence (a relay tells its position every second, so a partition not heard of for
//! `live.bus_silence` has no relay, or we have no bus). In each case the log is read from where we
//! stand, until the bus agrees again. What was on the bus meanwhile is dropped: the log has it.
//!
//! The hub starts at the end of the log as it is after the bus confirmed the subscription, so nothing
//! falls between the two.

use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::admin::{Dependency, Readiness};
use pulsestream_shared::bus::{BusEvent, Channel, Subscription};
use pulsestream_shared::clock;
use pulsestream_shared::engine::{Engine, OpenError};
use pulsestream_shared::log::{
    Bounds, EventLog, LogError, Offset, Partition, ReadLimit, Record, Topic,
};
use pulsestream_shared::service::Context;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::chain::{Chain, Step};
use crate::metrics::LiveMetrics;
use crate::range::Range;
use crate::registry::Registry;

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
    partition: Partition,
    from: Offset,
    result: Result<ReadBack, LogError>,
}

struct ReadBack {
    records: Vec<Record>,
    /// Records between `from` and the first one read are gone for good.
    gap: bool,
}

pub(crate) struct Hub {
    engine: Engine,
    epoch: Uuid,
    bus: Box<dyn Subscription>,
    partitions: Vec<Link>,
    reads: (mpsc::Sender<ReadDone>, mpsc::Receiver<ReadDone>),
    registry: Arc<Registry>,
    metrics: Arc<LiveMetrics>,
    readiness: Readiness,
    silence: Duration,
    window: Duration,
}

impl Hub {
    /// Subscribes, stands at the end of the log, and remembers what was logged shortly before.
    pub(crate) async fn start(
        context: &Context,
        registry: Arc<Registry>,
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
        let mut hub = Self {
            engine,
            epoch,
            bus,
            partitions: Vec::new(),
            reads: mpsc::channel(channels.len().max(1)),
            registry,
            metrics,
            readiness: context.readiness.clone(),
            silence: config.bus_silence,
            window: config.repeat_window,
        };
        hub.stand_at_the_end().await.map_err(|error| OpenError(error.to_string()))?;
        Ok(hub)
    }

    async fn stand_at_the_end(&mut self) -> Result<(), LogError> {
        let window_ms = i64::try_from(self.window.as_millis()).unwrap_or(i64::MAX);
        let bounds = self.engine.log.bounds(Topic::Raw).await?;
        let warm_from = self.engine.log.locate(clock::unix_ms() - window_ms).await?;
        let mut partitions = Vec::with_capacity(bounds.len());
        for ((index, bounds), from) in bounds.iter().enumerate().zip(warm_from) {
            let mut chain = Chain::new(bounds.next - 1, window_ms);
            let (log, number) = (self.engine.log.as_ref(), partition_number(index));
            warm(log, &mut chain, number, from, bounds.next).await?;
            let heard_at = Instant::now();
            partitions.push(Link { chain, heard_at, hole: false, reading: false });
        }
        self.partitions = partitions;
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
                _ = epochs.tick() => self.check_epoch().await,
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
        self.take(range);
    }

    fn take(&mut self, range: Range) {
        let number = range.partition;
        let Some(partition) = self.partition_mut(number) else { return };
        match partition.chain.offer(range, clock::unix_ms()) {
            Step::Drop => {}
            Step::Hole => partition.hole = true,
            Step::Deliver { events, repeats } => {
                self.metrics.repeats.inc_by(repeats as u64);
                for event in events {
                    self.deliver(number, &event);
                }
            }
        }
    }

    fn deliver(&self, partition: Partition, event: &crate::range::LiveEvent) {
        let delivered = self.registry.deliver(partition, event);
        if delivered.queued > 0 {
            self.metrics.deliveries.inc_by(delivered.queued);
            #[expect(clippy::cast_precision_loss, reason = "a histogram of seconds")]
            let age_seconds = (clock::unix_us() - event.received_at_us).max(0) as f64 / 1e6;
            self.metrics.freshness.with_label_values(&["socket"]).observe(age_seconds);
        }
        if delivered.missed > 0 {
            self.metrics.dropped.with_label_values(&["slow"]).inc_by(delivered.missed);
        }
    }

    /// Starts a read for every partition that has a hole or is silent.
    fn look_over(&mut self) {
        let now = Instant::now();
        for index in 0..self.partitions.len() {
            let Some(partition) = self.partitions.get_mut(index) else { continue };
            let silent = now.duration_since(partition.heard_at) > self.silence;
            if partition.reading || !(partition.hole || silent) {
                continue;
            }
            partition.reading = true;
            let from = partition.chain.seen() + 1;
            self.read(partition_number(index), from);
        }
    }

    fn read(&self, partition: Partition, from: Offset) {
        let (log, done) = (self.engine.log.clone(), self.reads.0.clone());
        tokio::spawn(async move {
            let result = async {
                let records = log.read(Topic::Raw, partition, from, READ_LIMIT).await?;
                let jumped = records.first().is_some_and(|record| record.offset > from);
                let gap = jumped && first_kept(&log.bounds(Topic::Raw).await?, partition) > from;
                Ok(ReadBack { records, gap })
            }
            .await;
            // One place a partition: there is always room, and a closed channel means the end.
            if done.send(ReadDone { partition, from, result }).await.is_err() {
                tracing::trace!("hub ended during a read");
            }
        });
    }

    fn take_read(&mut self, done: ReadDone) {
        let ReadDone { partition: number, from, result } = done;
        let epoch = self.epoch;
        let Some(partition) = self.partition_mut(number) else { return };
        partition.reading = false;
        let back = match result {
            Ok(back) => back,
            Err(error) => return tracing::warn!(partition = number, %error, "repair put off"),
        };
        // A full read is not the end: go on. Else the chain is whole as far as the log goes.
        partition.hole = back.records.len() >= READ_LIMIT.records;
        if back.gap {
            tracing::error!(partition = number, from, "the log no longer holds what was missed");
            self.registry.tell_gap();
        }
        if back.records.is_empty() {
            return;
        }
        self.metrics.repairs.with_label_values(&["log"]).inc();
        self.take(Range::of(epoch, number, from - 1, &back.records));
    }

    async fn check_epoch(&mut self) {
        let Ok(identity) = self.engine.identity.identity().await else { return };
        if identity.epoch == self.epoch {
            return;
        }
        tracing::error!("the log is another one: live streams start over");
        self.epoch = identity.epoch;
        self.registry.tell_gap();
        if let Err(error) = self.stand_at_the_end().await {
            tracing::warn!(%error, "the new log cannot be read yet");
            // Asked again at the next check.
            self.epoch = Uuid::nil();
        }
    }

    fn partition_mut(&mut self, number: Partition) -> Option<&mut Link> {
        self.partitions.get_mut(usize::try_from(number).ok()?)
    }
}

/// Remembers the ids of `[from, end)`, so that their repeats are known.
async fn warm(
    log: &dyn EventLog,
    chain: &mut Chain,
    partition: Partition,
    mut from: Offset,
    end: Offset,
) -> Result<(), LogError> {
    while from < end {
        let records = log.read(Topic::Raw, partition, from, READ_LIMIT).await?;
        let Some(last) = records.last() else { return Ok(()) };
        let range = Range::of(Uuid::nil(), partition, from - 1, &records);
        from = last.offset + 1;
        for event in range.events.iter().filter(|event| event.offset < end) {
            chain.warm(event, last.logged_at_ms);
        }
    }
    Ok(())
}

fn partition_count(engine: &Engine) -> Partition {
    Partition::try_from(engine.partitions).unwrap_or(Partition::MAX)
}

fn partition_number(index: usize) -> Partition {
    Partition::try_from(index).unwrap_or(Partition::MAX)
}

fn first_kept(bounds: &[Bounds], partition: Partition) -> Offset {
    let index = usize::try_from(partition).unwrap_or(usize::MAX);
    bounds.get(index).map_or(0, |bounds| bounds.first)
}
