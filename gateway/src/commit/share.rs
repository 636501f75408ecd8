//! How many attempts one partition may have at work: a fixed share at most, and fewer while it is slow.
//!
//! A partition that hangs, or takes less than it is sent, would otherwise fill up until every answer is
//! later than its deadline: as much work as ever, and nobody to whom it is of use. So an attempt that took
//! longer than [`SLOW`] cuts the share to what would have taken just that long, and each quick one gives
//! a place back. The rest is answered 503 at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pulsestream_shared::clock;

/// What an attempt may take from lock to outcome before its partition counts as slow: a quarter of the
/// default deadline of a request.
const SLOW: Duration = Duration::from_secs(2);
/// Attempts a partition may have at work however slow it is, and however many partitions there are.
const LEAST: usize = 64;

/// The shares of all partitions.
pub(super) struct Shares(Vec<Share>);

struct Share {
    most: usize,
    allowed: AtomicUsize,
    in_flight: AtomicUsize,
    /// Attempts that came before a cut tell nothing about it.
    next_cut_at_ms: AtomicI64,
}

/// One attempt at work; ends when it is dropped.
pub(super) struct Place {
    shares: Arc<Shares>,
    partition: usize,
    since: Instant,
}

impl Shares {
    /// Twice an equal part for each: devices do not spread evenly.
    pub(super) fn new(partitions: usize, max_in_flight: usize) -> Self {
        let most = (max_in_flight / partitions.max(1) * 2).max(LEAST);
        Self((0..partitions).map(|_| Share::new(most)).collect())
    }

    /// A place for one more; `None` when the partition has its share at work.
    pub(super) fn take(self: &Arc<Self>, partition: usize) -> Option<Place> {
        let share = self.0.get(partition)?;
        let before = share.in_flight.fetch_add(1, Ordering::Relaxed);
        if before >= share.allowed.load(Ordering::Relaxed) {
            share.in_flight.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place { shares: self.clone(), partition, since: Instant::now() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(share) = self.shares.0.get(self.partition) {
            let in_flight = share.in_flight.fetch_sub(1, Ordering::Relaxed);
            share.note(self.since.elapsed(), in_flight, clock::unix_ms());
        }
    }
}

impl Share {
    fn new(most: usize) -> Self {
        let (in_flight, next_cut_at_ms) = (AtomicUsize::new(0), AtomicI64::new(0));
        Self { most, allowed: AtomicUsize::new(most), in_flight, next_cut_at_ms }
    }

    /// An attempt ended, as one of so many.
    fn note(&self, took: Duration, in_flight: usize, now_ms: i64) {
        if took > SLOW {
            let due_ms = self.next_cut_at_ms.load(Ordering::Relaxed);
            if now_ms >= due_ms {
                let next_ms = now_ms.saturating_add(SLOW.as_millis() as i64);
                self.next_cut_at_ms.store(next_ms, Ordering::Relaxed);
                let right = (in_flight as f64 * SLOW.as_secs_f64() / took.as_secs_f64()) as usize;
                let allowed = self.allowed.load(Ordering::Relaxed);
                self.allowed.store(right.clamp(LEAST, allowed.max(LEAST)), Ordering::Relaxed);
            }
        } else {
            let allowed = self.allowed.load(Ordering::Relaxed);
            if allowed < self.most {
                self.allowed.store(allowed + 1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn a_partition_gets_its_share_and_leaves_that_of_the_others_alone() {
        let shares = Arc::new(Shares::new(200, 10_000));
        let mut places: Vec<_> = (0..1_000).filter_map(|_| shares.take(0)).collect();
        assert_eq!(places.len(), 100);
        assert!(shares.take(1).is_some());
        places.pop();
        assert!(shares.take(0).is_some());
        assert!(shares.take(200).is_none());
        drop(places);
        assert!(shares.0.iter().all(|share| share.in_flight.load(Ordering::Relaxed) == 0));
    }

    /// Offers three times what a partition takes, for a while; how long those that ended last took.
    fn run(share: &Share, per_second: usize, seconds: usize, start_ms: i64) -> Duration {
        let (mut waiting, mut took) = (VecDeque::new(), Duration::ZERO);
        for tick in 0..seconds * 100 {
            let now_ms = start_ms + tick as i64 * 10;
            for _ in 0..per_second * 3 / 100 {
                if waiting.len() < share.allowed.load(Ordering::Relaxed) {
                    waiting.push_back(now_ms);
                }
            }
            for _ in 0..per_second / 100 {
                let in_flight = waiting.len();
                let Some(since_ms) = waiting.pop_front() else { break };
                took = Duration::from_millis((now_ms - since_ms) as u64);
                share.note(took, in_flight, now_ms);
            }
        }
        took
    }

    #[test]
    fn what_a_slow_partition_still_takes_is_answered_in_time_and_a_quick_one_gets_all_back() {
        let share = Share::new(8_192);
        let took = run(&share, 1_000, 60, 0);
        assert!(took > SLOW / 2 && took < SLOW * 2, "{took:?}");
        let took = run(&share, 100, 60, 60_000);
        assert!(took < SLOW * 2, "{took:?}");
        let took = run(&share, 10_000, 10, 120_000);
        assert!(took < SLOW, "{took:?}");
        assert_eq!(share.allowed.load(Ordering::Relaxed), 8_192);
    }

    #[test]
    fn a_partition_that_hangs_keeps_the_fewest_places() {
        let share = Share::new(1_000);
        for round in 0..10 {
            share.note(Duration::from_secs(60), 1_000, round * 10_000);
        }
        assert_eq!(share.allowed.load(Ordering::Relaxed), LEAST);
    }
}
