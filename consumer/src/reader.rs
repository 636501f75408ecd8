//! The loop: gather what the log gives, hand it to a writer when it is enough, and know at all times where each
//! partition stands.
//!
//! Each partition is pinned to one of a few **desks**. A desk gathers a batch while its writer writes the last
//! one, so decoding costs no time and two batches are stored at once. A desk that is full while its writer is
//! at work stops the reading; the log's client goes on fetching up to its bound and then stops as well.
//!
//! Nothing here is trusted for correctness: a partition that was taken away, or a batch that was written
//! without our hearing of it, is caught by the swap of the offsets inside the batch's own transaction.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::config;
use pulsestream_shared::engine::{Engine, OpenError};
use pulsestream_shared::log::{LogConsumer, LogEvent, Partition, Record, STORE_GROUP};
use pulsestream_shared::retry::Backoff;
use pulsestream_shared::service::Context;
use pulsestream_shared::store::{Progress, Stretch, Written};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::Stopped;
use crate::batch::Batch;
use crate::metrics::ConsumerMetrics;
use crate::place::Places;
use crate::writer::{Finished, Writer};

/// How often the log is asked whether it is still the same.
const EPOCH_INTERVAL: Duration = Duration::from_secs(5);
/// How long an end waits for the store to take what is gathered.
const LAST_WRITE: Duration = Duration::from_secs(2);

pub(crate) struct Reader {
    consumer: Box<dyn LogConsumer>,
    engine: Engine,
    places: Places,
    config: config::Consumer,
    metrics: Arc<ConsumerMetrics>,
    /// Where each partition that is ours stands after the records gathered so far.
    standing: HashMap<Partition, Standing>,
    /// Per partition an earlier place, to be found in the log again.
    anchors: HashMap<Partition, Progress>,
    desks: Vec<Desk>,
    writer: Arc<Writer>,
    /// At most one task a desk, with its number.
    writing: JoinSet<(usize, Result<Finished, Stopped>)>,
}

struct Standing {
    place: Progress,
    /// The number of its desk.
    desk: usize,
}

/// Where the next batch of some partitions is gathered.
#[derive(Default)]
struct Desk {
    batch: Batch,
    /// An empty one, for when that one is handed to the writer.
    spare: Batch,
    /// When the batch must be written, full or not.
    due: Option<Instant>,
    /// A batch of it is being written.
    busy: bool,
    /// How long the last one took.
    last_write: Duration,
}

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
        let config = context.config.consumer.clone();
        let writers = if engine.store.writes_in_parallel() { config.writers } else { 1 };
        Ok(Self {
            consumer,
            places,
            engine,
            config,
            standing: HashMap::new(),
            anchors: HashMap::new(),
            desks: (0..writers).map(|_| Desk::default()).collect(),
            writer: Arc::new(Writer::new(context, metrics.clone())),
            writing: JoinSet::new(),
            metrics,
        })
    }

    /// Runs until `stop`; what is gathered then is written first, if the store takes it at once.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let ended = stop.run_until_cancelled_owned(self.read()).await;
        if ended.is_none() {
            let written = matches!(timeout(LAST_WRITE, self.finish()).await, Ok(Ok(())));
            tracing::info!(written, "consumer leaves the group");
        }
    }

    /// Cancelled between any two awaits, loses nothing: the log keeps what the store has not.
    async fn read(&mut self) -> Result<(), Stopped> {
        let mut epoch_check = interval(EPOCH_INTERVAL);
        epoch_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.start_writes();
            let due = self.next_due();
            let is_due = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            let room = !self.desks.iter().any(|desk| self.is_full(desk));
            tokio::select! {
                biased;
                Some(ended) = self.writing.join_next() => self.after_write(ended).await?,
                () = is_due => {}
                event = self.consumer.next(), if room => match event {
                    Ok(event) => self.handle(event).await?,
                    Err(error) => {
                        tracing::error!(%error, "the log cannot be read");
                        return Err(Stopped);
                    }
                },
                _ = epoch_check.tick() => self.check_epoch().await?,
            }
        }
    }

    /// Writes what is gathered.
    async fn finish(&mut self) -> Result<(), Stopped> {
        loop {
            self.desks.iter_mut().for_each(|desk| desk.due = Some(Instant::now()));
            self.start_writes();
            match self.writing.join_next().await {
                Some(ended) => self.after_write(ended).await?,
                None => return Ok(()),
            }
        }
    }

    /// Hands each batch that is due to its desk's writer, unless that is at work.
    fn start_writes(&mut self) {
        let now = Instant::now();
        for number in 0..self.desks.len() {
            let Some(desk) = self.desks.get(number) else { continue };
            let due = desk.due.is_some_and(|due| due <= now) || self.is_full(desk);
            if desk.busy || desk.batch.is_empty() || !due {
                continue;
            }
            let Some(desk) = self.desks.get_mut(number) else { continue };
            (desk.busy, desk.due) = (true, None);
            let next = std::mem::take(&mut desk.spare);
            let (batch, writer) = (std::mem::replace(&mut desk.batch, next), self.writer.clone());
            self.writing.spawn(async move { (number, writer.write(batch).await) });
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.desks.iter().filter(|desk| !desk.busy).filter_map(|desk| desk.due).min()
    }

    fn is_full(&self, desk: &Desk) -> bool {
        let stretch = self.engine.store.stretch();
        let slow = desk.patience(self.config.batch_age, stretch) > self.config.batch_age;
        let times = if slow { stretch.times } else { 1 };
        desk.batch.len() >= self.config.batch_records * times
            || desk.batch.bytes() >= self.config.batch_bytes * times
    }

    async fn handle(&mut self, event: LogEvent) -> Result<(), Stopped> {
        match event {
            LogEvent::Assigned(partitions) => {
                tracing::info!(?partitions, "assigned");
                self.go_to_places(partitions).await?;
            }
            LogEvent::Revoked(partitions) => {
                tracing::info!(?partitions, "revoked");
                for partition in partitions {
                    self.drop_gathered(partition);
                    self.standing.remove(&partition);
                    self.anchors.remove(&partition);
                }
            }
            LogEvent::Records(partition, records) => self.gather(partition, records),
            LogEvent::OutOfRange(partition) => {
                let partitions = partition.map_or_else(|| self.ours(), |partition| vec![partition]);
                self.go_to_places(partitions).await?;
            }
        }
        self.metrics.assigned.set(i64::try_from(self.standing.len()).unwrap_or(i64::MAX));
        Ok(())
    }

    fn gather(&mut self, partition: Partition, records: Vec<Record>) {
        let Some(standing) = self.standing.get_mut(&partition) else { return };
        let Some(desk) = self.desks.get_mut(standing.desk) else { return };
        let before = desk.batch.len();
        standing.place = desk.batch.add(standing.place, records);
        let added = desk.batch.len() - before;
        self.metrics.read.inc_by(added as u64);
        self.metrics.pending.add(whole(added));
        if desk.due.is_none() && !desk.batch.is_empty() {
            let patience = desk.patience(self.config.batch_age, self.engine.store.stretch());
            desk.due = Some(Instant::now() + patience);
        }
    }

    /// Forgets what is gathered of a partition; whoever owns it reads it again.
    fn drop_gathered(&mut self, partition: Partition) {
        let dropped = self.desks.iter_mut().map(|desk| {
            let dropped = desk.batch.remove(partition);
            desk.due = desk.due.filter(|_| !desk.batch.is_empty());
            dropped
        });
        let dropped = dropped.sum();
        self.give_back(dropped);
    }

    /// Counts records that were read and are left to whoever reads them next.
    fn give_back(&self, records: usize) {
        self.metrics.pending.sub(whole(records));
        self.metrics.records.with_label_values(&["given_back"]).inc_by(records as u64);
    }

    fn ours(&self) -> Vec<Partition> {
        self.standing.keys().copied().collect()
    }

    async fn after_write(
        &mut self,
        ended: Result<(usize, Result<Finished, Stopped>), JoinError>,
    ) -> Result<(), Stopped> {
        let fenced = self.note_written(ended)?;
        if fenced.is_empty() { Ok(()) } else { self.go_to_places(fenced).await }
    }

    /// Takes note of what became of a batch; returns the partitions whose places are to be read again.
    fn note_written(
        &mut self,
        ended: Result<(usize, Result<Finished, Stopped>), JoinError>,
    ) -> Result<Vec<Partition>, Stopped> {
        let (number, finished) = ended.map_err(|error| {
            tracing::error!(%error, "a writer failed");
            Stopped
        })?;
        let Finished { batch, written, took } = finished?;
        let ours = |place: &&Progress| self.standing.contains_key(&place.partition);
        let mut fenced = Vec::new();
        match written {
            Written::Stored { .. } => {
                self.metrics.pending.sub(whole(batch.len()));
                for end in batch.ends().iter().filter(ours) {
                    self.consumer.commit(end.partition, end.next);
                    self.anchors.entry(end.partition).or_insert(*end);
                }
            }
            Written::Fenced => {
                self.metrics.fenced.inc();
                self.give_back(batch.len());
                tracing::warn!(
                    "another consumer has stored these records: reading the places again"
                );
                fenced.extend(batch.starts().iter().filter(ours).map(|place| place.partition));
            }
        }
        if let Some(desk) = self.desks.get_mut(number) {
            (desk.busy, desk.last_write, desk.spare) = (false, took, batch.emptied());
        }
        Ok(fenced)
    }

    /// Finds the place of each partition, for as long as it takes, and reads from there. What is being
    /// written is waited for: it moves places. What is gathered of the partitions is forgotten.
    async fn go_to_places(&mut self, partitions: Vec<Partition>) -> Result<(), Stopped> {
        let mut partitions: BTreeSet<_> = partitions.into_iter().collect();
        while let Some(ended) = self.writing.join_next().await {
            partitions.extend(self.note_written(ended)?);
        }
        let partitions: Vec<_> = partitions.into_iter().collect();
        partitions.iter().for_each(|partition| self.drop_gathered(*partition));
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            match self.places.find(&partitions).await {
                Ok(places) => {
                    places.into_iter().for_each(|place| self.stand_at(place));
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

    /// Reads a partition from `place`, at the desk it has or the one with the fewest.
    fn stand_at(&mut self, place: Progress) {
        let taken = |desk: usize| self.standing.values().filter(|it| it.desk == desk).count();
        let emptiest = (0..self.desks.len()).min_by_key(|desk| taken(*desk)).unwrap_or_default();
        let partition = place.partition;
        self.standing.entry(partition).or_insert(Standing { place, desk: emptiest }).place = place;
        self.anchors.remove(&partition);
        if place.last_id.is_some() {
            self.anchors.insert(partition, place);
        }
        self.consumer.seek(partition, place.next);
    }

    /// The log may have been cut and have grown past our place while we read, which no read shows; or
    /// somebody else found it cut and wrote a new epoch.
    async fn check_epoch(&mut self) -> Result<(), Stopped> {
        let moved = self.anchors.values().filter(|anchor| {
            let standing = self.standing.get(&anchor.partition);
            standing.is_some_and(|it| it.place.next != anchor.next)
        });
        let moved: Vec<_> = moved.copied().collect();
        if let Err(error) = self.places.check(&moved).await {
            tracing::debug!(%error, "earlier places not looked at");
            return Ok(());
        }
        let places = self.standing.values().map(|it| it.place);
        let provable = places.filter(|place| place.last_id.is_some());
        self.anchors.extend(provable.map(|place| (place.partition, place)));
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
        if self.standing.values().any(|it| it.place.epoch != identity.epoch) {
            self.go_to_places(self.ours()).await?;
        }
        Ok(())
    }
}

impl Desk {
    /// A store that takes long is given more at once: see [`Stretch`].
    fn patience(&self, age: Duration, stretch: Stretch) -> Duration {
        (self.last_write * stretch.share).clamp(age, stretch.wait.max(age))
    }
}

/// A gauge counts in `i64`.
fn whole(records: usize) -> i64 {
    i64::try_from(records).unwrap_or(i64::MAX)
}
