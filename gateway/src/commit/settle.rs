//! The settle stage: writes outcomes to the cache, in bulk and awaited by nobody.
//!
//! An outcome that is lost costs a retry its quick answer, nothing else: the key's lease ends, the
//! retry appends again under the same id, the store keeps one.

use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::cache::memory::MemoryLocks;
use pulsestream_shared::cache::{Cache, LockChange, LockKey, LockRecord};
use pulsestream_shared::clock;
use pulsestream_shared::traces::Trace;
use tokio::sync::mpsc;
use tokio::task::yield_now;

use super::finishing::Finishing;
use super::locks::Lease;
use super::{MAX_GROUP, fill};
use crate::idempotency::{after_doubt, after_refusal, done};
use crate::metrics::GatewayMetrics;

/// A busy Redis is given so long; outcomes that gather meanwhile wait in the queue.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// A change of one key, and whose key it is.
pub(super) struct Change {
    change: LockChange,
    local: bool,
    trace: Option<Trace>,
}

impl Change {
    /// The event is in the log.
    pub(super) fn finish(lease: &Lease) -> Self {
        Self::of(lease, LockChange::Finish(lease.key, done(&lease.record)))
    }

    /// The event is certainly not in the log by this attempt.
    pub(super) fn release(lease: &Lease) -> Self {
        Self::swap(lease, after_refusal(&lease.record, lease.taken_over))
    }

    /// The event may be in the log, and nobody waits for it any more.
    pub(super) fn give_up(lease: &Lease) -> Self {
        Self::swap(lease, Some(after_doubt(&lease.record)))
    }

    fn swap(lease: &Lease, record: Option<LockRecord>) -> Self {
        Self::of(lease, LockChange::Swap { key: lease.key, expected: lease.record, record })
    }

    fn of(lease: &Lease, change: LockChange) -> Self {
        Self { change, local: lease.is_local(), trace: None }
    }

    /// Of a request that may be traced.
    pub(super) fn traced(self, trace: Option<Trace>) -> Self {
        Self { trace, ..self }
    }

    /// Queues the change, or counts it as lost when too many wait. To be called before the answer is given.
    pub(super) fn queue(
        self,
        queue: &mpsc::Sender<Self>,
        finishing: &Finishing,
        metrics: &GatewayMetrics,
    ) {
        let key = self.finishes();
        key.into_iter().for_each(|key| finishing.add(key));
        if queue.try_send(self).is_err() {
            finishing.remove(key.into_iter());
            metrics.outcomes_lost.inc();
        }
    }

    /// The key whose event is in the log, unless it is locked in this process alone.
    fn finishes(&self) -> Option<LockKey> {
        match self.change {
            LockChange::Finish(key, _) if !self.local => Some(key),
            _ => None,
        }
    }
}

pub(super) struct Settle {
    pub(super) cache: Arc<dyn Cache>,
    pub(super) local: Arc<MemoryLocks>,
    pub(super) finishing: Arc<Finishing>,
    pub(super) metrics: Arc<GatewayMetrics>,
}

impl Settle {
    /// Runs until every sender is gone and the queue is empty.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Change>) {
        let mut group = Vec::with_capacity(MAX_GROUP);
        while queue.recv_many(&mut group, MAX_GROUP).await > 0 {
            // The lane that sent the first is not done sending, or another one is ready to.
            yield_now().await;
            fill(&mut group, &mut queue);
            let step = |change: &Change| change.trace.as_ref().map(|trace| trace.step("settle"));
            let steps: Vec<_> = group.iter().filter_map(step).collect();
            let finished: Vec<_> = group.iter().filter_map(Change::finishes).collect();
            let (local, shared): (Vec<_>, Vec<_>) =
                group.drain(..).partition(|change| change.local);
            let changes =
                |group: Vec<Change>| group.into_iter().map(|c| c.change).collect::<Vec<_>>();
            let (local, shared) = (changes(local), changes(shared));
            if !local.is_empty() {
                self.local.settle(&local, clock::unix_ms());
            }
            if !shared.is_empty() && !self.settle_shared(&shared).await {
                self.metrics.outcomes_lost.inc_by(shared.len() as u64);
            }
            self.finishing.remove(finished.into_iter());
            drop(steps);
        }
    }

    /// Tries again, once, what a busy Redis did not answer in time: every change may be repeated, and each
    /// lost outcome makes a retry wait for the lease and append again.
    async fn settle_shared(&self, changes: &[LockChange]) -> bool {
        if self.cache.settle(changes).await.is_ok() {
            return true;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
        self.cache.settle(changes).await.is_ok()
    }
}
