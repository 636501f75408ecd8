//! The loop: gather what the log gives, write it when it is enough, and know at all times where each
//! partition stands.
//!
//! While a batch is written the log's client fetches ahead by itself, up to its bound, so the next
//! batch is what gathered meanwhile. Nothing here is trusted for correctness: a partition that was
//! taken away, or a batch that was written without our hearing of it, is caught by the swap of the
//! offsets inside the batch's own transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use pulsestream_shared::admin::{Dependency, Readiness};
use pulsestream_shared::clock;
use pulsestream_shared::config;
use pulsestream_shared::engine::{Engine, OpenError};
use pulsestream_shared::log::{LogConsumer, LogEvent, Partition, Record, STORE_GROUP};
use pulsestream_shared::retry::Backoff;
use pulsestream_shared::service::Context;
use pulsestream_shared::store::{Progress, StoreError, Written};
use pulsestream_shared::traces::Traces;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::batch::Batch;
use crate::clients::Clients;
use crate::dead::DeadLetters;
use crate::metrics::ConsumerMetrics;
use crate::place::Places;

/// How often the log is asked whether it is still the same.
const EPOCH_INTERVAL: Duration = Duration::from_secs(5);

pub(crate) struct Reader {
    consumer: Box<dyn LogConsumer>,
    engine: Engine,
    places: Places,
    clients: Clients,
    config: config::Consumer,
    metrics: Arc<ConsumerMetrics>,
    readiness: Readiness,
    traces: Traces,
    /// Where each partition that is ours stands after the records gathered so far.
    standing: HashMap<Partition, Progress>,
    /// Per partition an earlier place, to be found in the log again.
    anchors: HashMap<Partition, Progress>,
    batch: Batch,
    /// When the batch at hand must be written, full or not.
    due: Option<Instant>,
    /// How long the last batch took to write.
    last_write: Duration,
}

/// A batch is gathered for at least so many times what the last one took to write, within what its store
/// gains by.
const GATHER_SHARE: u32 = 3;

/// The reader cannot go on; already logged.
struct Stopped;

impl Reader {
    pub(crate) async fn join(
        context: &Context,
        metrics: Arc<ConsumerMetrics>,
    ) -> Result<Self, OpenError> {
        let engine = context.engine.clone();
        let consumer =
            engine.log.consume(STORE_GROUP).await.map_err(|error| OpenError(error.to_string()))?;
        let places = Places {
            log: engine.log.clone(),
            identity: engine.identity.clone(),
            store: engine.store.clone(),
            metrics: metrics.clone(),
        };
        Ok(Self {
            consumer,
            places,
            clients: Clients::new(engine.keys.clone()),
            engine,
            config: context.config.consumer.clone(),
            metrics,
            readiness: context.readiness.clone(),
            traces: context.traces.clone(),
            standing: HashMap::new(),
            anchors: HashMap::new(),
            batch: Batch::default(),
            due: None,
            last_write: Duration::ZERO,
        })
    }

    /// Runs until `stop`; what is gathered then is written first, if the store takes it at once.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let ended = stop.clone().run_until_cancelled_owned(self.read()).await;
        if ended.is_none() && !self.batch.is_empty() {
            let last = tokio::time::timeout(Duration::from_secs(2), self.write()).await;
            tracing::info!(written = matches!(last, Ok(Ok(()))), "consumer leaves the group");
        }
    }

    /// Cancelled between any two awaits, loses nothing: the log keeps what the store has not.
    async fn read(&mut self) -> Result<(), Stopped> {
        let mut epoch_check = interval(EPOCH_INTERVAL);
        epoch_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.due;
            let is_due = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = is_due => self.write().await?,
                event = self.consumer.next() => match event {
                    Ok(event) => self.handle(event).await?,
                    Err(error) => {
                        tracing::error!(%error, "the log cannot be read");
                        return Err(Stopped);
                    }
                },
                _ = epoch_check.tick() => self.check_epoch().await?,
            }
            if self.is_full() {
                self.write().await?;
            }
        }
    }

    async fn handle(&mut self, event: LogEvent) -> Result<(), Stopped> {
        match event {
            LogEvent::Assigned(partitions) => {
                tracing::info!(?partitions, "assigned");
                self.go_to_places(&partitions).await?;
            }
            LogEvent::Revoked(partitions) => {
                tracing::info!(?partitions, "revoked");
                for partition in partitions {
                    self.standing.remove(&partition);
                    self.anchors.remove(&partition);
                    self.batch.remove(partition);
                }
            }
            LogEvent::Records(partition, records) => self.gather(partition, records),
            LogEvent::OutOfRange(partition) => {
                let partitions = partition.map_or_else(|| self.ours(), |partition| vec![partition]);
                self.give_up_batch();
                self.go_to_places(&partitions).await?;
            }
        }
        self.metrics.assigned.set(i64::try_from(self.standing.len()).unwrap_or(i64::MAX));
        Ok(())
    }

    fn gather(&mut self, partition: Partition, records: Vec<Record>) {
        let Some(standing) = self.standing.get_mut(&partition) else { return };
        self.metrics.read.inc_by(records.len() as u64);
        *standing = self.batch.add(*standing, records);
        if self.due.is_none() && !self.batch.is_empty() {
            self.due = Some(Instant::now() + self.patience());
        }
    }

    /// A store that takes long is given more at once: see [`Stretch`].
    fn patience(&self) -> Duration {
        let (age, most) = (self.config.batch_age, self.engine.store.stretch().wait);
        (self.last_write * GATHER_SHARE).clamp(age, most.max(age))
    }

    fn is_full(&self) -> bool {
        let slow = self.patience() > self.config.batch_age;
        let times = if slow { self.engine.store.stretch().times } else { 1 };
        self.batch.len() >= self.config.batch_records * times
            || self.batch.bytes() >= self.config.batch_bytes * times
    }

    fn ours(&self) -> Vec<Partition> {
        self.standing.keys().copied().collect()
    }

    /// Writes the batch, for as long as it takes.
    async fn write(&mut self) -> Result<(), Stopped> {
        self.due = None;
        let batch = &self.batch;
        let _span = self.traces.process("store", STORE_GROUP, batch.len(), batch.traces());
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        while !self.batch.is_empty() {
            let started = StdInstant::now();
            match self.write_once().await {
                Ok(written) => {
                    self.readiness.note(Dependency::Store, Ok(()));
                    self.last_write = started.elapsed();
                    self.metrics.write_seconds.observe(self.last_write.as_secs_f64());
                    self.after_write(written).await?;
                }
                Err(error) if error.is_retryable() => {
                    self.metrics.retries.with_label_values(&["store"]).inc();
                    self.readiness.note(Dependency::Store, Err(error.to_string()));
                    sleep(backoff.next_delay()).await;
                }
                Err(error) => {
                    tracing::error!(%error, "the store cannot be used; nothing is dead-lettered");
                    return Err(Stopped);
                }
            }
        }
        Ok(())
    }

    async fn write_once(&mut self) -> Result<Written, StoreError> {
        self.clients.learn(self.batch.clients()).await?;
        let batch = self.batch.to_store(STORE_GROUP, |client| self.clients.contains(client));
        let dead_letters = DeadLetters {
            log: self.engine.log.as_ref(),
            partitions: self.engine.partitions,
            epochs: self.batch.starts().map(|place| (place.partition, place.epoch)).collect(),
            records: self.batch.by_place(),
        };
        self.engine.store.write(&batch, &dead_letters).await
    }

    async fn after_write(&mut self, written: Written) -> Result<(), Stopped> {
        match written {
            Written::Stored { new, duplicates, dead } => {
                self.count(new, duplicates, &dead);
                for end in self.batch.ends() {
                    self.consumer.commit(end.partition, end.next);
                    self.anchors.entry(end.partition).or_insert(*end);
                }
                self.batch = Batch::default();
            }
            Written::Fenced => {
                self.metrics.fenced.inc();
                tracing::warn!(
                    "another consumer has stored these records: reading the places again"
                );
                let partitions: Vec<_> = self.batch.starts().map(|place| place.partition).collect();
                self.give_up_batch();
                self.go_to_places(&partitions).await?;
            }
        }
        Ok(())
    }

    /// Drops what is gathered and lets every partition of it stand where the batch began.
    fn give_up_batch(&mut self) {
        for start in self.batch.starts() {
            self.standing.insert(start.partition, *start);
            self.consumer.seek(start.partition, start.next);
        }
        self.batch = Batch::default();
        self.due = None;
    }

    fn count(&self, new: u64, duplicates: u64, dead: &[pulsestream_shared::store::DeadLetter]) {
        let metrics = &self.metrics;
        metrics.batch_records.observe(self.batch.len() as f64);
        metrics.records.with_label_values(&["stored"]).inc_by(new);
        metrics.records.with_label_values(&["duplicate"]).inc_by(duplicates);
        metrics.records.with_label_values(&["dead"]).inc_by(dead.len() as u64);
        for letter in dead {
            metrics.dead.with_label_values(&[letter.reason.as_str()]).inc();
        }
        let now_us = clock::unix_us();
        let stored = metrics.freshness.with_label_values(&["stored"]);
        for received_at_us in self.batch.received_at_us() {
            #[expect(clippy::cast_precision_loss, reason = "a histogram of seconds")]
            stored.observe((now_us - received_at_us).max(0) as f64 / 1e6);
        }
    }

    /// Finds the place of each partition, for as long as it takes, and reads from there.
    async fn go_to_places(&mut self, partitions: &[Partition]) -> Result<(), Stopped> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            match self.places.find(partitions).await {
                Ok(places) => {
                    for place in places {
                        self.standing.insert(place.partition, place);
                        self.anchors.remove(&place.partition);
                        if place.last_id.is_some() {
                            self.anchors.insert(place.partition, place);
                        }
                        self.consumer.seek(place.partition, place.next);
                    }
                    return Ok(());
                }
                Err(error) if error.is_retryable() => {
                    self.metrics.retries.with_label_values(&["log"]).inc();
                    tracing::warn!(%error, "places not found yet");
                    sleep(backoff.next_delay()).await;
                }
                Err(error) => {
                    tracing::error!(%error, "places cannot be found");
                    return Err(Stopped);
                }
            }
        }
    }

    /// The log may have been cut and have grown past our place while we read, which no read shows; or
    /// somebody else found it cut and wrote a new epoch.
    async fn check_epoch(&mut self) -> Result<(), Stopped> {
        let moved = self.anchors.values().filter(|anchor| {
            self.standing.get(&anchor.partition).is_some_and(|place| place.next != anchor.next)
        });
        let moved: Vec<_> = moved.copied().collect();
        if let Err(error) = self.places.check(&moved).await {
            tracing::debug!(%error, "earlier places not looked at");
            return Ok(());
        }
        let provable = self.standing.values().filter(|place| place.last_id.is_some());
        self.anchors.extend(provable.map(|place| (place.partition, *place)));
        let Ok(identity) = self.engine.identity.identity().await else { return Ok(()) };
        if identity.partitions != self.engine.partitions {
            tracing::error!(
                was = self.engine.partitions,
                is = identity.partitions,
                "the log has another number of partitions: a device's events would change places"
            );
            return Err(Stopped);
        }
        // Each by itself: one that was found out of range stands in the new epoch before the others.
        if self.standing.values().any(|place| place.epoch != identity.epoch) {
            let partitions = self.ours();
            self.give_up_batch();
            self.go_to_places(&partitions).await?;
        }
        Ok(())
    }
}
