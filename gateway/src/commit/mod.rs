//! Group commit: what gathered while the previous group was in flight goes as one group.
//!
//! ```text
//! requests ──> lock stage ──> one lane per partition ──> log
//!              one pipeline    one group in flight        │
//!              a group         a lane                     └─> settle stage: outcomes to the cache
//! ```
//!
//! Batches form by themselves: idle, a request passes alone and at once; busy, each stage takes all
//! that waits. Without this the Kafka client sends one request per record and the whole path falls to
//! a fifth (ADR 4). A lane of its own for each partition keeps one hung leader from stopping the
//! devices of the others.
//!
//! **Invariant.** Nothing is appended without a lock that is ours (or a local one, then the record says
//! `unsure`), and nothing is answered 202 before the log confirmed it. An attempt that entered here
//! runs to its end whether or not its client still waits.

use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::cache::memory::{MemoryLocks, MemoryReply};
use pulsestream_shared::cache::{Fingerprint, LockKey, LockRecord, LockReply, LockRequest};
use pulsestream_shared::clock;
use pulsestream_shared::codec::Accepted;
use pulsestream_shared::log::partition_of;
use pulsestream_shared::problem::Code;
use pulsestream_shared::service::Context;
use tokio::sync::{mpsc, oneshot};

use crate::body::milliseconds;
use crate::metrics::GatewayMetrics;

mod breaker;
mod lane;
mod locks;
mod settle;

use breaker::LaneGate;

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
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// In the log. `local` when the shared lock could not be had.
    Accepted { local: bool },
    /// Was in the log already.
    Replayed,
    /// First seen now, and too old for that.
    TooOld,
    /// Not accepted, or not known to be.
    Failed(Code),
}

/// An attempt and where its answer goes.
struct Waiting {
    attempt: Attempt,
    /// The index of its lane and its gate: the partition of its device.
    lane: usize,
    answer: oneshot::Sender<Answer>,
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
    record: LockRecord,
    /// An earlier attempt may be in the log already.
    taken_over: bool,
    /// Locked in this process alone.
    local: bool,
    /// The record must be handed to the log before this, on the monotonic clock: afterwards somebody
    /// else may own the key.
    lease_ends: tokio::time::Instant,
}

/// The door to the stages.
#[derive(Clone)]
pub(crate) struct Committer {
    queue: mpsc::Sender<Waiting>,
    gates: Arc<[LaneGate]>,
    local: Arc<MemoryLocks>,
}

impl Committer {
    /// True when this gateway holds the key's record by itself, because the cache was away.
    pub(crate) fn remembers(&self, key: LockKey) -> bool {
        let look = [LockRequest { key, record: None }];
        let replies = self.local.lock(&look, clock::unix_ms());
        matches!(replies[..], [MemoryReply::Cache(LockReply::Held(_))])
    }

    /// Hands over an attempt; its answer comes later.
    ///
    /// # Errors
    /// [`Code::LogUnavailable`] at once while the partition's log is known to be down,
    /// [`Code::Overloaded`] when too many attempts wait.
    pub(crate) fn submit(&self, attempt: Attempt) -> Result<oneshot::Receiver<Answer>, Code> {
        let device = attempt.accepted.event.device_id.to_string();
        let partitions = u32::try_from(self.gates.len()).unwrap_or(1);
        let lane = usize::try_from(partition_of(device.as_bytes(), partitions)).unwrap_or(0);
        if !self.gates.get(lane).is_some_and(LaneGate::admits) {
            return Err(Code::LogUnavailable);
        }
        let (answer, receiver) = oneshot::channel();
        match self.queue.try_send(Waiting { attempt, lane, answer }) {
            Ok(()) => Ok(receiver),
            Err(_) => Err(Code::Overloaded),
        }
    }
}

/// Starts the stages. They end after `shutdown.stop`, when what they hold is written.
pub(crate) fn start(context: &Context, metrics: Arc<GatewayMetrics>) -> Committer {
    let config = &context.config.ingest;
    let partitions = context.engine.partitions;
    let gates: Arc<[LaneGate]> = (0..partitions).map(|_| LaneGate::default()).collect();
    let stop = context.shutdown.stop.clone();

    let (settle_queue, settling) = mpsc::channel(SETTLE_QUEUE);
    let local = Arc::new(MemoryLocks::new(config.local_locks));
    let settle = settle::Settle::new(context.engine.cache.clone(), local.clone(), metrics.clone());
    context.spawn("settle stage", settle.run(settling));

    let mut lanes = Vec::new();
    for index in 0..gates.len() {
        let (queue, waiting) = mpsc::channel(LANE_QUEUE);
        lanes.push(queue);
        let lane = lane::Lane {
            log: context.engine.log.clone(),
            partitions,
            gates: gates.clone(),
            index,
            settle: settle_queue.clone(),
            metrics: metrics.clone(),
        };
        context.spawn("append lane", lane.run(waiting));
    }

    let (queue, waiting) = mpsc::channel(config.max_in_flight);
    let locks = locks::Locks {
        cache: context.engine.cache.clone(),
        breaker: breaker::CacheBreaker::default(),
        local: local.clone(),
        lanes,
        gates: gates.clone(),
        settle: settle_queue,
        readiness: context.readiness.clone(),
        metrics,
        lease: config.lease,
        lease_ms: milliseconds(config.lease),
        max_event_age_ms: milliseconds(config.max_event_age),
    };
    context.spawn("lock stage", locks.run(waiting, stop));
    Committer { queue, gates, local }
}

/// How often a dead cache is asked whether it lives again.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
