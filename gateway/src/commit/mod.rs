//! Group commit: what gathered while the previous group was in flight goes as one group.
//!
//! ```text
//! requests ──> lock stage ──> lanes ──> log
//!              one pipeline             │
//!              a group                  └─> settle stage: outcomes to the cache
//! ```
//!
//! Batches form by themselves: idle, a request passes alone and at once; busy, each stage takes all
//! that waits. Without this the Kafka client sends one request per record and the whole path falls to
//! a fifth (ADR 4). Where partitions fail alone each has a lane of its own, so that one hung leader does
//! not stop the devices of the others; a log that is one file has one.
//!
//! **Invariant.** Nothing is appended without a lock that is ours (or a local one, then the record says
//! `unsure`), and nothing is answered 202 before the log confirmed it. An attempt that entered here
//! runs to its end whether or not its client still waits.

use std::sync::Arc;

use pulsestream_shared::cache::memory::MemoryLocks;
use pulsestream_shared::cache::{Fingerprint, LockKey, LockReply, LockRequest};
use pulsestream_shared::clock;
use pulsestream_shared::codec::Accepted;
use pulsestream_shared::log::partition_of;
use pulsestream_shared::problem::Code;
use pulsestream_shared::service::Context;
use pulsestream_shared::traces::{Step, Trace};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::body::milliseconds;
use crate::metrics::GatewayMetrics;

mod batch;
mod breaker;
mod finishing;
mod lane;
mod locks;
mod settle;
mod share;
mod stage;

use batch::BatchCommit;
pub(crate) use batch::{Batch, BatchAnswer, BatchEvent};
use breaker::{Breakers, Pass};
use finishing::Finishing;
use locks::Lease;
use share::{Place, Shares};

/// Records that go together at most; a lane's group is one produce request.
const MAX_GROUP: usize = 1_024;
/// Attempts that may wait in one lane; more are shed.
const LANE_QUEUE: usize = 4_096;
/// Outcomes that may wait to be written; more are lost and counted.
const SETTLE_QUEUE: usize = 16_384;

/// One validated request.
pub(crate) struct Attempt {
    pub(crate) key: LockKey,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) accepted: Accepted,
    /// Older than a first attempt may be: only looked up, unless an earlier attempt is found.
    pub(crate) too_old: bool,
    /// Of its request, when that is traced.
    pub(crate) trace: Option<Trace>,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// In the log. `local` when the shared lock could not be had.
    Accepted { local: bool },
    /// Was in the log already; when the first attempt was, unix milliseconds.
    Replayed { first_at_ms: i64 },
    /// First seen now, and too old for that.
    TooOld,
    /// Not accepted, or not known to be.
    Failed(Code),
}

impl Answer {
    /// In the log, by this attempt or an earlier one.
    pub(crate) fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted { .. } | Self::Replayed { .. })
    }

    /// Trying again would not change it.
    pub(crate) fn is_final(&self) -> bool {
        self.is_accepted() || matches!(self, Self::TooOld | Self::Failed(Code::IdempotencyMismatch))
    }
}

/// An attempt and where its answer goes.
struct Waiting {
    attempt: Attempt,
    /// The index of its lane.
    lane: usize,
    answer: oneshot::Sender<Answer>,
    pass: Pass,
    /// What is done with it now, when its request is traced.
    step: Option<Step>,
    /// In that partition's share.
    _place: Place,
}

impl Waiting {
    fn answer(self, answer: Answer) {
        if self.answer.send(answer).is_err() {
            tracing::trace!("the client is gone; its attempt counts all the same");
        }
    }
}

/// An attempt that owns its key.
struct Owned {
    waiting: Waiting,
    lease: Lease,
}

/// Adds what has come since to a group that may still grow.
fn fill<T>(group: &mut Vec<T>, queue: &mut mpsc::Receiver<T>) {
    while group.len() < MAX_GROUP
        && let Ok(more) = queue.try_recv()
    {
        group.push(more);
    }
}

/// The door to the stages.
#[derive(Clone)]
pub(crate) struct Committer {
    queue: mpsc::Sender<Waiting>,
    partitions: u32,
    breakers: Arc<Breakers>,
    shares: Arc<Shares>,
    local: Arc<MemoryLocks>,
    batches: Arc<BatchCommit>,
    /// Of batches at work; more are shed.
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    metrics: Arc<GatewayMetrics>,
}

impl Committer {
    /// True when this gateway holds the key's record by itself, because the cache was away.
    pub(crate) fn remembers(&self, key: LockKey) -> bool {
        let look = [LockRequest { key, record: None }];
        let replies = self.local.lock(&look, clock::unix_ms());
        matches!(replies[..], [LockReply::Held(_)])
    }

    /// Hands over an attempt; its answer comes later.
    ///
    /// # Errors
    /// [`Code::LogUnavailable`] at once while the partition's log is known to be down,
    /// [`Code::Overloaded`] when too many attempts wait, here or for the partition.
    pub(crate) fn submit(&self, attempt: Attempt) -> Result<oneshot::Receiver<Answer>, Code> {
        let device = attempt.accepted.event.device_id.to_string();
        let lane = self.breakers.lane_of(partition_of(device.as_bytes(), self.partitions));
        let pass = self.breakers.pass(lane).ok_or(Code::LogUnavailable)?;
        let Some(place) = self.shares.take(lane) else {
            self.metrics.shed.partition.inc();
            return Err(Code::Overloaded);
        };
        let (answer, receiver) = oneshot::channel();
        let step = attempt.trace.as_ref().map(|trace| trace.step("lock"));
        match self.queue.try_send(Waiting { attempt, lane, answer, pass, step, _place: place }) {
            Ok(()) => Ok(receiver),
            Err(_) => {
                self.metrics.shed.queue.inc();
                Err(Code::Overloaded)
            }
        }
    }

    /// Hands over a batch; its answer comes later.
    ///
    /// # Errors
    /// [`Code::Overloaded`] when too many batches are at work.
    pub(crate) fn submit_batch(
        &self,
        batch: Batch,
    ) -> Result<oneshot::Receiver<BatchAnswer>, Code> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.metrics.shed.queue.inc();
            return Err(Code::Overloaded);
        };
        let (answer, receiver) = oneshot::channel();
        let batches = self.batches.clone();
        self.tasks.spawn(async move {
            let _place = place;
            if answer.send(batches.run(batch).await).is_err() {
                tracing::trace!("the client is gone; its batch counts all the same");
            }
        });
        Ok(receiver)
    }
}

/// Starts the stages. They end after `shutdown.stop`, when what they hold is written.
pub(crate) fn start(context: &Context, metrics: Arc<GatewayMetrics>) -> Committer {
    let config = &context.config.ingest;
    let partitions = context.engine.partitions;
    let alone = context.engine.log.partitions_fail_alone();
    let lane_count = if alone { partitions } else { 1 };
    let breakers = Arc::new(Breakers::new(lane_count, metrics.log_breaker.clone()));
    let stop = context.shutdown.stop.clone();

    let (settle_queue, settling) = mpsc::channel(SETTLE_QUEUE);
    let local = Arc::new(MemoryLocks::new(config.local_locks));
    let finishing = Arc::new(Finishing::default());
    let settle = settle::Settle {
        cache: context.engine.cache.clone(),
        local: local.clone(),
        finishing: finishing.clone(),
        metrics: metrics.clone(),
    };
    context.spawn("settle stage", settle.run(settling));

    let mut lanes = Vec::new();
    for index in 0..breakers.len() {
        let (queue, waiting) = mpsc::channel(LANE_QUEUE);
        lanes.push(queue);
        let lane = lane::Lane {
            log: context.engine.log.clone(),
            partitions,
            breakers: breakers.clone(),
            index,
            groups: if alone { 1 } else { 2 },
            settle: settle_queue.clone(),
            finishing: finishing.clone(),
            metrics: metrics.clone(),
        };
        context.spawn("append lane", lane.run(waiting));
    }

    let (queue, waiting) = mpsc::channel(config.max_in_flight);
    let locks = Arc::new(locks::Locks {
        cache: context.engine.cache.clone(),
        breaker: breaker::CacheBreaker::new(metrics.cache_breaker.clone()),
        local: local.clone(),
        finishing,
        readiness: context.readiness.clone(),
        metrics: metrics.clone(),
        lease: config.lease,
        lease_ms: milliseconds(config.lease),
        max_event_age: config.max_event_age,
    });
    let batches = Arc::new(BatchCommit {
        locks: locks.clone(),
        log: context.engine.log.clone(),
        partitions,
        breakers: breakers.clone(),
        settle: settle_queue.downgrade(),
        metrics: metrics.clone(),
    });
    let stage = stage::LockStage { locks, lanes, settle: settle_queue, metrics: metrics.clone() };
    context.spawn("lock stage", stage.run(waiting, stop));
    let shares = Arc::new(Shares::new(breakers.len(), config.max_in_flight));
    let places = Arc::new(Semaphore::new(config.max_batches));
    let tasks = context.tasks.clone();
    Committer { queue, partitions, breakers, shares, local, batches, places, tasks, metrics }
}
