//! The relay: reads the log as the group `pulsestream-live` and publishes ranges on the bus.
//!
//! What the log has ready is published in one round trip of the bus, whatever partitions it is of: a burst
//! of events is a record or two in each. The relay commits only after the publish succeeded, so a range is
//! published at least once; the hubs drop what they know. Every owned partition's position is told each
//! second even when nothing happens, so that a hub notices a lost last range and a dead relay.
//!
//! A place beyond the end of the log means that the log was cut: the relay writes a new epoch, and reads
//! from the first offset as after every new epoch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use pulsestream_shared::admin::{Dependency, Readiness};
use pulsestream_shared::bus::Channel;
use pulsestream_shared::codec::trace_of;
use pulsestream_shared::engine::{Engine, OpenError};
use pulsestream_shared::log::{
    Bounds, LIVE_GROUP, LogConsumer, LogError, LogEvent, Offset, Partition, Record, Topic,
};
use pulsestream_shared::retry::Backoff;
use pulsestream_shared::service::Context;
use pulsestream_shared::traces::{Step, Traces};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::metrics::LiveMetrics;
use crate::range::Range;

const POSITION_INTERVAL: Duration = Duration::from_secs(1);
const EPOCH_INTERVAL: Duration = Duration::from_secs(5);
/// Records of one bus message: small enough that a hub is never long in one.
const RANGE_RECORDS: usize = 256;
/// Bytes of one publish, but for what comes with the last of them: the bus answers in a tenth of a second.
const PUBLISH_BYTES: usize = 512 << 10;

/// A range on its way to the bus.
struct Due {
    range: Range,
    /// Of its records' values.
    bytes: usize,
    /// Ends when it is published.
    _span: Option<Step>,
}

pub(crate) struct Relay {
    consumer: Box<dyn LogConsumer>,
    engine: Engine,
    epoch: Uuid,
    /// Per owned partition the next offset to publish.
    places: HashMap<Partition, Offset>,
    /// What is published next.
    due: Vec<Due>,
    metrics: Arc<LiveMetrics>,
    readiness: Readiness,
    traces: Traces,
}

impl Relay {
    pub(crate) async fn join(
        context: &Context,
        metrics: Arc<LiveMetrics>,
    ) -> Result<Self, OpenError> {
        let engine = context.engine.clone();
        let unusable = |error: LogError| OpenError(error.to_string());
        let consumer = engine.log.consume(LIVE_GROUP).await.map_err(unusable)?;
        let epoch = engine.identity.identity().await.map_err(unusable)?.epoch;
        Ok(Self {
            consumer,
            engine,
            epoch,
            places: HashMap::new(),
            due: Vec::new(),
            metrics,
            readiness: context.readiness.clone(),
            traces: context.traces.clone(),
        })
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        if let Some(Err(error)) = stop.clone().run_until_cancelled_owned(self.relay()).await {
            tracing::error!(%error, "the log cannot be relayed");
        }
    }

    /// Cancelled between any two awaits, loses nothing: what was not committed is published again.
    async fn relay(&mut self) -> Result<(), LogError> {
        let mut positions = interval(POSITION_INTERVAL);
        positions.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut epochs = interval(EPOCH_INTERVAL);
        epochs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.consumer.next() => self.handle_ready(event?).await?,
                _ = positions.tick() => self.tell_positions().await,
                _ = epochs.tick() => {
                    if let Err(error) = self.check_epoch().await {
                        tracing::debug!(%error, "the log's epoch is not known now");
                    }
                    self.measure_lag().await;
                }
            }
        }
    }

    /// Handles an event and those that are ready behind it.
    async fn handle_ready(&mut self, first: LogEvent) -> Result<(), LogError> {
        let mut ready = Some(first);
        while let Some(event) = ready {
            if !matches!(event, LogEvent::Records(..)) {
                self.publish().await;
            }
            self.handle(event).await;
            if self.due.iter().map(|due| due.bytes).sum::<usize>() >= PUBLISH_BYTES {
                break;
            }
            ready = self.consumer.next().now_or_never().transpose()?;
        }
        self.publish().await;
        Ok(())
    }

    async fn handle(&mut self, event: LogEvent) {
        match event {
            LogEvent::Assigned(partitions) => self.go_to_committed(&partitions).await,
            LogEvent::Revoked(partitions) => {
                for partition in partitions {
                    self.places.remove(&partition);
                }
            }
            LogEvent::Records(partition, records) => self.gather(partition, &records),
            LogEvent::OutOfRange(partition) => {
                let partitions =
                    partition.map_or_else(|| self.places.keys().copied().collect(), |p| vec![p]);
                self.return_into_the_log(&partitions).await;
            }
        }
    }

    /// Goes on where the group was, for as long as it takes to learn where.
    async fn go_to_committed(&mut self, partitions: &[Partition]) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        loop {
            match self.find_places(partitions).await {
                Ok(places) => {
                    for (partition, place) in places {
                        self.go_to(partition, place);
                    }
                    return;
                }
                Err(error) => tracing::warn!(%error, "places not found yet"),
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// The committed place, or the end of the log where there is none: what was logged before anybody
    /// relayed is history, not live. One beyond the log is sought all the same: the log itself says that
    /// it is out of range, while its bounds may be a moment old.
    async fn find_places(
        &mut self,
        partitions: &[Partition],
    ) -> Result<Vec<(Partition, Offset)>, LogError> {
        let committed = self.consumer.committed(partitions).await?;
        let bounds = self.engine.log.bounds(Topic::Raw).await?;
        let place = |(&partition, committed): (&Partition, Option<Offset>)| {
            let Bounds { first, next } = *bounds.get(usize::try_from(partition).ok()?)?;
            Some((partition, committed.unwrap_or(next).max(first)))
        };
        Ok(partitions.iter().zip(committed).filter_map(place).collect())
    }

    /// The log has nothing at our places, and delivers nothing there until they are sought again.
    async fn return_into_the_log(&mut self, partitions: &[Partition]) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        while let Err(error) = self.judge_places(partitions).await {
            tracing::warn!(%error, "places not judged yet");
            sleep(backoff.next_delay()).await;
        }
    }

    /// Goes on where retention has left something; makes a new epoch when the log was cut.
    async fn judge_places(&mut self, partitions: &[Partition]) -> Result<(), LogError> {
        let bounds = self.engine.log.bounds(Topic::Raw).await?;
        for &partition in partitions {
            let bounds = usize::try_from(partition).ok().and_then(|index| bounds.get(index));
            let place = self.places.get(&partition).copied();
            let (Some(&Bounds { first, next }), Some(place)) = (bounds, place) else { continue };
            if place > next {
                tracing::error!(
                    partition,
                    place,
                    log_ends_at = next,
                    "the log was cut: starting a new epoch"
                );
                self.engine.identity.renew(self.epoch).await?;
                return self.check_epoch().await;
            }
            self.go_to(partition, place.max(first));
        }
        Ok(())
    }

    fn go_to(&mut self, partition: Partition, place: Offset) {
        self.places.insert(partition, place);
        self.consumer.seek(partition, place);
    }

    fn gather(&mut self, partition: Partition, records: &[Record]) {
        let Some(place) = self.places.get_mut(&partition) else { return };
        let known = records.partition_point(|record| record.offset < *place);
        for chunk in records.get(known..).unwrap_or_default().chunks(RANGE_RECORDS) {
            let parents = chunk.iter().filter_map(trace_of);
            let span = self.traces.process("relay", LIVE_GROUP, chunk.len(), parents);
            let range = Range::of(self.epoch, partition, *place - 1, chunk);
            *place = range.last + 1;
            let bytes = chunk.iter().map(|record| record.value.len()).sum();
            self.due.push(Due { range, bytes, _span: span });
        }
    }

    /// Publishes for as long as it takes; meanwhile the hubs read the log themselves.
    async fn publish(&mut self) {
        if self.due.is_empty() {
            return;
        }
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let message = |due: &Due| (Channel::Live(due.range.partition), due.range.encode());
        let messages: Vec<_> = self.due.iter().map(message).collect();
        while let Err(error) = self.engine.bus.publish(&messages).await {
            self.readiness.note(Dependency::Bus, Err(error.to_string()));
            sleep(backoff.next_delay()).await;
        }
        self.metrics.relay_batches.inc_by(messages.len() as u64);
        for Due { range, .. } in self.due.drain(..) {
            self.consumer.commit(range.partition, range.last + 1);
        }
    }

    async fn tell_positions(&mut self) {
        let position = |(&partition, &place): (&Partition, &Offset)| {
            let range = Range::position(self.epoch, partition, place - 1);
            (Channel::Live(partition), range.encode())
        };
        let positions: Vec<_> = self.places.iter().map(position).collect();
        if let Err(error) = self.engine.bus.publish(&positions).await {
            tracing::trace!(%error, "told again in a second");
        }
    }

    /// Not with every position: to ask for the log's ends is most of what an idle relay costs.
    async fn measure_lag(&mut self) {
        let bounds = self.engine.log.bounds(Topic::Raw).await.unwrap_or_default();
        for (&partition, &place) in &self.places {
            let index = usize::try_from(partition).ok();
            if let Some(bounds) = index.and_then(|index| bounds.get(index)) {
                let lag =
                    self.metrics.relay_lag_records.with_label_values(&[&partition.to_string()]);
                lag.set((bounds.next - place).max(0));
            }
        }
    }

    /// A new epoch is read from its first offset, as by the store.
    async fn check_epoch(&mut self) -> Result<(), LogError> {
        let epoch = self.engine.identity.identity().await?.epoch;
        if epoch == self.epoch {
            return Ok(());
        }
        let bounds = self.engine.log.bounds(Topic::Raw).await?;
        self.epoch = epoch;
        let partitions: Vec<_> = self.places.keys().copied().collect();
        for partition in partitions {
            let index = usize::try_from(partition).ok();
            if let Some(bounds) = index.and_then(|index| bounds.get(index)) {
                self.go_to(partition, bounds.first);
            }
        }
        Ok(())
    }
}
