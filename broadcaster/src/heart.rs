//! When a WebSocket is pinged, and whether its client still lives.

use std::time::Duration;

use pulsestream_shared::config;
use rand::RngExt as _;
use tokio::time::Instant;

/// Moments at which something is looked at lie so far apart: sockets are then pinged in groups, and wake a
/// thread together. Each by itself took three times the CPU.
const TICK: Duration = Duration::from_millis(100);

/// When to ping, and whether the client still lives.
pub(crate) struct Heart {
    interval: Duration,
    patience: Duration,
    /// Ticks are counted from here.
    begun_at: Instant,
    /// When to look next.
    pub(crate) next: Instant,
    pinged_at: Option<Instant>,
}

impl Heart {
    /// The first beat is random, so that sockets opened together do not beat together. Ticks are counted from
    /// `begun_at`, the same moment for all.
    pub(crate) fn new(config: &config::Live, begun_at: Instant) -> Self {
        let first = config.ping_interval.mul_f64(rand::rng().random_range(0.0..1.0));
        let next = tick_after(Instant::now() + first, begun_at);
        let (interval, patience) = (config.ping_interval, config.pong_timeout);
        Self { interval, patience, begun_at, next, pinged_at: None }
    }

    /// True when a ping is due, false when the last one was never answered.
    pub(crate) fn beat(&mut self) -> bool {
        if self.pinged_at.is_some() {
            return false;
        }
        let now = Instant::now();
        self.pinged_at = Some(now);
        self.next = tick_after(now + self.patience, self.begun_at);
        true
    }

    pub(crate) fn answered(&mut self) {
        if let Some(pinged_at) = self.pinged_at.take() {
            // From the ping on, not from its answer. A tick back: the ping was sent a little after one.
            let next = pinged_at + self.interval.saturating_sub(TICK);
            self.next = tick_after(next, self.begun_at);
        }
    }
}

/// The first tick after that moment.
fn tick_after(at: Instant, begun_at: Instant) -> Instant {
    let ticks = at.saturating_duration_since(begun_at).as_millis() / TICK.as_millis();
    begun_at + TICK * u32::try_from(ticks + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_answers_is_pinged_once_an_interval_and_with_others() {
        let (interval, patience) = (Duration::from_secs(25), Duration::from_secs(10));
        let begun_at = Instant::now();
        let mut heart = Heart { interval, patience, begun_at, next: begun_at, pinged_at: None };
        let pinged = Instant::now();
        assert!(heart.beat());
        assert!(heart.next > pinged + patience);
        heart.answered();
        assert!(heart.next > pinged + interval - TICK && heart.next <= pinged + interval + TICK);
        assert_eq!((heart.next - begun_at).as_micros() % TICK.as_micros(), 0);
        assert!(heart.beat() && !heart.beat());
    }

    #[test]
    fn a_tick_is_the_first_after_a_moment() {
        let begun_at = Instant::now();
        let tick = |ms| {
            (tick_after(begun_at + Duration::from_millis(ms), begun_at) - begun_at).as_millis()
        };
        assert_eq!([tick(0), tick(99), tick(100), tick(25_037)], [100, 100, 200, 25_100]);
    }
}
