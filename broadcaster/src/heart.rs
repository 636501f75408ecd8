//! When a WebSocket is pinged, and whether its client still lives.

use std::time::Duration;

use pulsestream_shared::config;
use rand::RngExt as _;
use tokio::time::Instant;

/// When to ping, and whether the client still lives.
pub(crate) struct Heart {
    interval: Duration,
    patience: Duration,
    /// When to look next.
    pub(crate) next: Instant,
    waiting: bool,
}

impl Heart {
    /// The first beat is random, so that sockets opened together do not beat together.
    pub(crate) fn new(config: &config::Live) -> Self {
        let first = config.ping_interval.mul_f64(rand::rng().random_range(0.0..1.0));
        Self {
            interval: config.ping_interval,
            patience: config.pong_timeout,
            next: Instant::now() + first,
            waiting: false,
        }
    }

    /// True when a ping is due, false when the last one was never answered.
    pub(crate) fn beat(&mut self) -> bool {
        if self.waiting {
            return false;
        }
        self.waiting = true;
        self.next = Instant::now() + self.patience;
        true
    }

    pub(crate) fn answered(&mut self) {
        if self.waiting {
            self.waiting = false;
            // From the ping on, not from its answer: `next` stands `patience` after the ping.
            self.next += self.interval.saturating_sub(self.patience);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_answers_is_pinged_once_an_interval() {
        let (interval, patience) = (Duration::from_secs(25), Duration::from_secs(10));
        let mut heart = Heart { interval, patience, next: Instant::now(), waiting: false };
        let pinged = Instant::now();
        assert!(heart.beat());
        heart.answered();
        assert!(heart.next >= pinged + interval);
        assert!(heart.beat() && !heart.beat());
    }
}
