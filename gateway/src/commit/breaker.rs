//! What is known to be down is not waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use pulsestream_shared::clock;
use pulsestream_shared::log::{AppendError, AppendResult, Partition};

use crate::metrics::BreakerMetrics;

/// After a probe that came back with nothing the next one waits so long.
const PROBE_AFTER_MS: i64 = 500;

/// Whether the log takes records, by lane.
pub(super) struct Breakers {
    breakers: Vec<Breaker>,
    metrics: Arc<BreakerMetrics>,
}

/// Opened by a group whose last record was not confirmed, closed by one whose last record was. While it is
/// open one attempt at a time passes, as a probe: each probe waits out the log's timeout, and its key is
/// in doubt for the length of a lease.
#[derive(Debug, Default)]
struct Breaker {
    open: AtomicBool,
    probing: AtomicBool,
    next_probe_at_ms: AtomicI64,
}

/// Leave to go to the log, kept until the attempt is answered.
pub(super) struct Pass(Option<Probe>);

/// The one attempt that is let through an open breaker. When it ends without having asked the log, because
/// its key was taken or there was no room, the next attempt is the probe.
struct Probe {
    breakers: Arc<Breakers>,
    lane: usize,
}

impl Breakers {
    pub(super) fn new(lanes: u32, metrics: Arc<BreakerMetrics>) -> Self {
        Self { breakers: (0..lanes).map(|_| Breaker::default()).collect(), metrics }
    }

    pub(super) fn len(&self) -> usize {
        self.breakers.len()
    }

    /// The lane of a partition: its own, or the one there is.
    pub(super) fn lane_of(&self, partition: Partition) -> usize {
        usize::try_from(partition).unwrap_or(0) % self.breakers.len().max(1)
    }

    /// Leave for an attempt to go by that lane, if there is any now.
    pub(super) fn pass(self: &Arc<Self>, lane: usize) -> Option<Pass> {
        let breaker = self.breakers.get(lane)?;
        if !breaker.open.load(Ordering::Relaxed) {
            return Some(Pass(None));
        }
        let probe = || Probe { breakers: self.clone(), lane };
        breaker.probe().then(|| Pass(Some(probe())))
    }

    /// True while only probes go by that lane.
    pub(super) fn is_open(&self, lane: usize) -> bool {
        self.breakers.get(lane).is_some_and(|breaker| breaker.open.load(Ordering::Relaxed))
    }

    /// A group came back by that lane. Its last record tells how the log is now; earlier ones may
    /// have been confirmed just before it began to hang.
    pub(super) fn note(&self, lane: usize, last: &AppendResult) {
        let Some(breaker) = self.breakers.get(lane) else { return };
        // A refused record says nothing against the log.
        let answers = matches!(last, Ok(_) | Err(AppendError::Refused(_)));
        if !breaker.note(answers) {
            return;
        }
        self.metrics.note(!answers);
        if answers {
            tracing::warn!(lane, "the log confirms records again: breaker closed");
        } else {
            tracing::warn!(lane, "the log confirms nothing: breaker open");
        }
    }
}

impl Pass {
    pub(super) fn is_probe(&self) -> bool {
        self.0.is_some()
    }
}

impl Breaker {
    fn probe(&self) -> bool {
        clock::unix_ms() >= self.next_probe_at_ms.load(Ordering::Acquire)
            && !self.probing.swap(true, Ordering::AcqRel)
    }

    /// True when it opened or closed.
    fn note(&self, answers: bool) -> bool {
        if !answers {
            let at_ms = clock::unix_ms() + PROBE_AFTER_MS;
            self.next_probe_at_ms.store(at_ms, Ordering::Release);
        } else if !self.open.load(Ordering::Relaxed) {
            return false;
        }
        self.open.swap(!answers, Ordering::Relaxed) == answers
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(breaker) = self.breakers.breakers.get(self.lane) {
            breaker.probing.store(false, Ordering::Release);
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
    fn an_open_breaker_lets_one_probe_through_at_a_time_and_one_success_closes_it() {
        let breakers = Arc::new(Breakers::new(2, BreakerMetrics::unseen()));
        let probe = |partition| breakers.pass(partition).filter(Pass::is_probe);
        let free = |partition| breakers.pass(partition).is_some_and(|pass| !pass.is_probe());
        let due = |partition: usize| {
            breakers.breakers[partition].next_probe_at_ms.store(0, Ordering::Release)
        };
        let in_doubt = Err(AppendError::Unknown("?".to_owned()));
        breakers.note(0, &in_doubt);
        assert_eq!(
            (breakers.metrics.open.get(), breakers.is_open(0), breakers.is_open(1)),
            (1, true, false)
        );
        assert!(free(1));
        assert!(probe(0).is_none(), "too early");

        due(0);
        let first = probe(0).expect("a probe");
        assert!(probe(0).is_none(), "one at a time");
        breakers.note(0, &in_doubt);
        drop(first);
        assert!(probe(0).is_none(), "too early");

        due(0);
        let unused = probe(0).expect("a probe");
        drop(unused);
        let second = probe(0).expect("a probe in the place of one that asked nothing");
        breakers.note(0, &Ok(7));
        drop(second);
        assert!(free(0) && breakers.metrics.open.get() == 0);
        breakers.note(0, &Ok(7));
        assert_eq!(breakers.metrics.open.get(), 0);
        breakers.note(0, &Err(AppendError::Refused("too large".to_owned())));
        assert_eq!(breakers.metrics.open.get(), 0);
        assert!(breakers.pass(2).is_none());
    }
}
