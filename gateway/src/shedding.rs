//! How fast this gateway turns requests away: when it is too busy, and those without a key that works.
//!
//! Saying so costs about a third of what accepting an event costs. So clients that come back at once, not
//! waiting as they are told, could take the processor from those whose events are at work: 10,000 such
//! connections left 2 % of the capacity of one core (`loadgen ingest --rate --retry false` at three times
//! it), and 10,000 unknown keys a second nearly doubled the 99th percentile of good events (`loadgen
//! strangers`). So many refusals a second are therefore answered at once, and what goes beyond waits its turn,
//! for two seconds at most. On HTTP/1.1 its connection waits with it, unread.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pulsestream_shared::bucket::{Bucket, Debt, Rate};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Refusals that may wait; further ones are answered at once, so that no flood of HTTP/2 streams is kept.
const MOST_WAITING: usize = 20_000;

/// Paces refusals.
pub(crate) struct Shedding {
    origin: Instant,
    pace: Rate,
    bucket: Mutex<Bucket>,
    waiting: Semaphore,
}

impl Shedding {
    /// Lets so many refusals a second go at once, and so many together.
    pub(crate) fn new(per_second: u32, together: u32) -> Self {
        let pace = Rate::new(per_second, Some(together)).expect("rates above 0");
        let waiting = Semaphore::new(MOST_WAITING);
        Self { origin: Instant::now(), pace, bucket: Mutex::default(), waiting }
    }

    /// Waits until one more refusal may be answered. Dropped, it counts all the same.
    pub(crate) async fn turn(&self) {
        let wait = self.wait(Instant::now());
        if wait.is_zero() {
            return;
        }
        if let Ok(_place) = self.waiting.try_acquire() {
            tokio::time::sleep(wait).await;
        }
    }

    fn wait(&self, now: Instant) -> Duration {
        let now_ns = now.saturating_duration_since(self.origin).as_nanos();
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let debt = bucket.charge(1, self.pace, u64::try_from(now_ns).unwrap_or(u64::MAX));
        let excess = debt.minus(Debt::of(self.pace.burst()));
        Duration::from_nanos(excess.0 / u64::from(self.pace.per_second()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_a_second_are_refused_at_once_and_a_flood_waits_a_while_and_never_longer() {
        let shedding = Shedding::new(1_000, 1_000);
        let longest = Duration::from_secs(2);
        let at = |ms| shedding.origin + Duration::from_millis(ms);
        for _ in 0..1_000 {
            assert_eq!(shedding.wait(at(0)), Duration::ZERO);
        }
        assert_eq!(shedding.wait(at(0)), Duration::from_millis(1));
        for _ in 0..100_000 {
            assert!(shedding.wait(at(0)) <= longest);
        }
        assert_eq!(shedding.wait(at(0)), longest);
        for ms in 3_000..13_000 {
            assert_eq!(shedding.wait(at(ms)), Duration::ZERO);
        }
    }
}
