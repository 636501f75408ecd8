//! Which events were shown lately, so that a second copy in the log is not shown again.
//!
//! The log may hold an event twice: a gateway died between append and answer, and the device sent it
//! again. Bounded by time, and by number against a flood.

use std::collections::{HashSet, VecDeque};

use pulsestream_shared::event::{ClientId, EventId};

/// Ids kept per partition at most: 120 s of 8,000 events per second.
const MOST: usize = 1_000_000;

type Key = (ClientId, EventId);

/// The ids of one partition.
pub(crate) struct Repeats {
    window_ms: i64,
    seen: HashSet<Key>,
    ages: VecDeque<(i64, Key)>,
}

impl Repeats {
    pub(crate) fn new(window_ms: i64) -> Self {
        Self { window_ms, seen: HashSet::new(), ages: VecDeque::new() }
    }

    /// True the first time within the window.
    pub(crate) fn is_first(&mut self, key: Key, now_ms: i64) -> bool {
        while let Some(&(at_ms, old)) = self.ages.front() {
            if now_ms - at_ms <= self.window_ms && self.ages.len() < MOST {
                break;
            }
            self.ages.pop_front();
            self.seen.remove(&old);
        }
        let first = self.seen.insert(key);
        if first {
            self.ages.push_back((now_ms, key));
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_repeat_is_known_within_the_window_and_per_client() {
        let id = EventId(Uuid::from_u128(1));
        let mut repeats = Repeats::new(120_000);
        assert!(repeats.is_first((ClientId(1), id), 0));
        assert!(!repeats.is_first((ClientId(1), id), 120_000));
        assert!(repeats.is_first((ClientId(2), id), 120_000));
        assert!(repeats.is_first((ClientId(1), id), 120_001));
    }
}
