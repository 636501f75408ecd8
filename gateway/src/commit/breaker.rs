//! What is known to be down is not waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use pulsestream_shared::clock;

use crate::metrics::BreakerMetrics;

/// One probe in so many milliseconds passes a closed gate.
const PROBE_EVERY_MS: i64 = 500;

/// Whether a partition of the log takes records. Closed by a group of which nothing was confirmed,
/// opened by the first confirmed record; while closed, one attempt in [`PROBE_EVERY_MS`] passes.
pub(super) struct LaneGate {
    metrics: Arc<BreakerMetrics>,
    closed: AtomicBool,
    next_probe_at_ms: AtomicI64,
}

impl LaneGate {
    pub(super) fn new(metrics: Arc<BreakerMetrics>) -> Self {
        Self { metrics, closed: AtomicBool::new(false), next_probe_at_ms: AtomicI64::new(0) }
    }

    /// True when an attempt may enter.
    pub(super) fn admits(&self) -> bool {
        !self.closed.load(Ordering::Relaxed) || self.is_probe(clock::unix_ms())
    }

    fn is_probe(&self, now_ms: i64) -> bool {
        let due = self.next_probe_at_ms.load(Ordering::Relaxed);
        now_ms >= due
            && self
                .next_probe_at_ms
                .compare_exchange(
                    due,
                    now_ms + PROBE_EVERY_MS,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// The probe ended without asking the log.
    pub(super) fn probe_unused(&self) {
        self.next_probe_at_ms.store(0, Ordering::Relaxed);
    }

    /// A group came back.
    pub(super) fn note(&self, any_confirmed: bool) {
        // Looked at first: nearly every group confirms, and most gates are open.
        if any_confirmed == self.closed.load(Ordering::Relaxed)
            && self.closed.swap(!any_confirmed, Ordering::Relaxed) == any_confirmed
        {
            self.metrics.note(!any_confirmed);
        }
    }
}

/// Whether the shared cache is used. Opened (used no more) by one failed call; a probe closes it.
pub(super) struct CacheBreaker {
    metrics: Arc<BreakerMetrics>,
    open: AtomicBool,
}

impl CacheBreaker {
    pub(super) fn new(metrics: Arc<BreakerMetrics>) -> Self {
        Self { metrics, open: AtomicBool::new(false) }
    }

    /// True while the cache is not to be used.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Notes whether the cache answers.
    pub(super) fn set_open(&self, open: bool) {
        if self.open.swap(open, Ordering::Relaxed) != open {
            self.metrics.note(open);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_one_probe_through_at_a_time_and_one_success_opens_it() {
        let metrics = Arc::new(BreakerMetrics::unseen());
        let gate = LaneGate::new(metrics.clone());
        assert!(gate.admits() && gate.admits());
        gate.note(false);
        gate.note(false);
        assert_eq!((metrics.open.get(), metrics.openings.get()), (1, 1));
        assert!(gate.is_probe(10_000));
        assert!(!gate.is_probe(10_001));
        assert!(!gate.is_probe(10_499));
        assert!(gate.is_probe(10_500));
        gate.probe_unused();
        assert!(gate.is_probe(10_501));
        assert!(!gate.is_probe(10_502));
        gate.note(true);
        assert!(gate.admits() && gate.admits());
        assert_eq!((metrics.open.get(), metrics.openings.get()), (0, 1));
    }
}
