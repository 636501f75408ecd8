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
use pulsestream_shared::problem::Code;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Refusals that may wait; further ones are answered at once, so that no flood of HTTP/2 streams is kept.
const MOST_WAITING: usize = 20_000;

/// The paces of one gateway's refusals.
pub(crate) struct Paces {
    /// Of those there is no room for.
    pub(crate) overloaded: Shedding,
    /// Of those without a key that works: a flood of them must not delay what the others are told. Fewer, because
    /// a thousand together are a tenth of a second in which good events wait.
    keyless: Shedding,
}

impl Default for Paces {
    fn default() -> Self {
        Self { overloaded: Shedding::new(1_000, 1_000), keyless: Shedding::new(200, 100) }
    }
}

impl Paces {
    /// That of an answer which costs its sender nothing to cause.
    pub(crate) fn of(&self, code: Code) -> Option<&Shedding> {
        match code {
            Code::Overloaded => Some(&self.overloaded),
            // Unavailable: above all a key that cannot be looked up now.
            Code::MissingApiKey | Code::InvalidApiKey | Code::Unavailable => Some(&self.keyless),
            _ => None,
        }
    }
}

/// Paces refusals.
pub(crate) struct Shedding {
    origin: Instant,
    pace: Rate,
    bucket: Mutex<Bucket>,
    waiting: Semaphore,
}

impl Shedding {
    /// Lets so many refusals a second go at once, and so many together.
    fn new(per_second: u32, together: u32) -> Self {
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

    #[test]
    fn a_flood_without_keys_waits_and_delays_nobody_else() {
        let paces = Paces::default();
        let now = Instant::now();
        let waits = |code| paces.of(code).is_some_and(|pace| !pace.wait(now).is_zero());
        for _ in 0..100 {
            assert!(!waits(Code::InvalidApiKey));
        }
        for code in [Code::InvalidApiKey, Code::MissingApiKey, Code::Unavailable] {
            assert!(waits(code), "{code:?}");
        }
        for code in [Code::Overloaded, Code::ValidationFailed, Code::LogUnavailable] {
            assert!(!waits(code), "{code:?}");
        }
    }
}
