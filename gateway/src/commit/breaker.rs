//! What is known to be down is not waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use prometheus::IntGauge;
use pulsestream_shared::clock;

/// After a probe that came back with nothing the next one waits so long.
const PROBE_AFTER_MS: i64 = 500;

/// Whether each partition of the log takes records.
pub(super) struct Gates {
    gates: Vec<Gate>,
    /// How many are closed.
    closed: IntGauge,
}

/// Closed by a group of which nothing was confirmed, opened by the first confirmed record. While it is
/// closed one attempt at a time passes, as a probe: each probe waits out the log's timeout, and its key
/// is in doubt for the length of a lease.
#[derive(Debug, Default)]
struct Gate {
    closed: AtomicBool,
    probed: AtomicBool,
    next_probe_at_ms: AtomicI64,
}

/// Leave to go to the log, kept until the attempt is answered.
pub(super) struct Pass(Option<Probe>);

/// The one attempt that is let through a closed gate. When it ends without having asked the log, because
/// its key was taken or there was no room, the next attempt is the probe.
struct Probe {
    gates: Arc<Gates>,
    partition: usize,
}

impl Gates {
    pub(super) fn new(partitions: u32, closed: IntGauge) -> Self {
        Self { gates: (0..partitions).map(|_| Gate::default()).collect(), closed }
    }

    pub(super) fn len(&self) -> usize {
        self.gates.len()
    }

    /// Leave for an attempt to go to that partition, if there is any now.
    pub(super) fn pass(self: &Arc<Self>, partition: usize) -> Option<Pass> {
        let gate = self.gates.get(partition)?;
        if !gate.closed.load(Ordering::Relaxed) {
            return Some(Pass(None));
        }
        let probe = || Probe { gates: self.clone(), partition };
        gate.probe(clock::unix_ms()).then(|| Pass(Some(probe())))
    }

    /// True while only probes go to that partition.
    pub(super) fn is_closed(&self, partition: usize) -> bool {
        self.gates.get(partition).is_some_and(|gate| gate.closed.load(Ordering::Relaxed))
    }

    /// A group came back from that partition.
    pub(super) fn note(&self, partition: usize, any_confirmed: bool) {
        let Some(gate) = self.gates.get(partition) else { return };
        match gate.note(any_confirmed, clock::unix_ms()) {
            Some(true) => {
                self.closed.inc();
                tracing::warn!(partition, "the log confirms nothing: breaker open");
            }
            Some(false) => {
                self.closed.dec();
                tracing::warn!(partition, "the log confirms records again: breaker closed");
            }
            None => {}
        }
    }
}

impl Pass {
    pub(super) fn is_probe(&self) -> bool {
        self.0.is_some()
    }
}

impl Gate {
    fn probe(&self, now_ms: i64) -> bool {
        now_ms >= self.next_probe_at_ms.load(Ordering::Acquire)
            && !self.probed.swap(true, Ordering::AcqRel)
    }

    /// Whether it is closed from now on, when that is new.
    fn note(&self, any_confirmed: bool, now_ms: i64) -> Option<bool> {
        if !any_confirmed {
            self.next_probe_at_ms.store(now_ms + PROBE_AFTER_MS, Ordering::Release);
        } else if !self.closed.load(Ordering::Relaxed) {
            return None;
        }
        let was = self.closed.swap(!any_confirmed, Ordering::Relaxed);
        (was == any_confirmed).then_some(!any_confirmed)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(gate) = self.gates.gates.get(self.partition) {
            gate.probed.store(false, Ordering::Release);
        }
    }
}

/// Whether the shared cache is used. Opened (used no more) by one failed call; a probe closes it.
#[derive(Debug, Default)]
pub(super) struct CacheBreaker(AtomicBool);

impl CacheBreaker {
    /// True while the cache is not to be used.
    pub(super) fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Notes whether the cache answers.
    pub(super) fn set_open(&self, open: bool) {
        self.0.store(open, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_one_probe_through_at_a_time_and_one_success_opens_it() {
        let gates = Arc::new(Gates::new(2, IntGauge::new("closed", "?").unwrap()));
        let probe = |partition| gates.pass(partition).filter(Pass::is_probe);
        let open = |partition| gates.pass(partition).is_some_and(|pass| !pass.is_probe());
        let due =
            |partition: usize| gates.gates[partition].next_probe_at_ms.store(0, Ordering::Release);
        gates.note(0, false);
        assert_eq!((gates.closed.get(), gates.is_closed(0), gates.is_closed(1)), (1, true, false));
        assert!(open(1));
        assert!(probe(0).is_none(), "too early");

        due(0);
        let first = probe(0).expect("a probe");
        assert!(probe(0).is_none(), "one at a time");
        gates.note(0, false);
        drop(first);
        assert!(probe(0).is_none(), "too early");

        due(0);
        let unused = probe(0).expect("a probe");
        drop(unused);
        let second = probe(0).expect("a probe in the place of one that asked nothing");
        gates.note(0, true);
        drop(second);
        assert!(open(0) && gates.closed.get() == 0);
        gates.note(0, true);
        assert_eq!(gates.closed.get(), 0);
        assert!(gates.pass(2).is_none());
    }
}
