//! Which events were shown lately, so that a second copy in the log is not shown again.
//!
//! The log may hold an event twice: a gateway died between append and answer, and the device sent it
//! again. Bounded by time, and by number against a flood: beyond [`MOST`] the oldest ids are forgotten
//! before their time, and a second copy that late is shown.

use std::collections::{HashSet, VecDeque};

use pulsestream_shared::event::{ClientId, EventId};
use pulsestream_shared::log::Partition;

/// Ids kept at most, of all partitions together: 120 s of 7,500 events a second in some 60 MB. The set
/// doubles just above this number.
pub(crate) const MOST: usize = 900_000;

/// The same id in another partition is another device's event.
pub(crate) type Key = (Partition, ClientId, EventId);

/// The ids of all partitions.
pub(crate) struct Repeats {
    window_ms: i64,
    most: usize,
    seen: HashSet<Key>,
    ages: VecDeque<(i64, Key)>,
}

impl Repeats {
    pub(crate) fn new(window_ms: i64) -> Self {
        Self::bounded(window_ms, MOST)
    }

    /// Remembers `most` ids.
    pub(crate) fn bounded(window_ms: i64, most: usize) -> Self {
        Self { window_ms, most, seen: HashSet::new(), ages: VecDeque::new() }
    }

    /// True the first time within the window. An id may be remembered longer than that: times of
    /// different partitions are not in order while their past is read.
    pub(crate) fn is_first(&mut self, key: Key, at_ms: i64) -> bool {
        while let Some(&(old_ms, old)) = self.ages.front() {
            if at_ms - old_ms <= self.window_ms && self.ages.len() < self.most {
                break;
            }
            self.ages.pop_front();
            self.seen.remove(&old);
        }
        let first = self.seen.insert(key);
        if first {
            self.ages.push_back((at_ms, key));
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(partition: Partition, client: i32, id: u128) -> Key {
        (partition, ClientId(client), EventId(Uuid::from_u128(id)))
    }

    #[test]
    fn a_repeat_is_known_within_the_window_per_partition_and_client() {
        let mut repeats = Repeats::new(120_000);
        assert!(repeats.is_first(key(0, 1, 1), 0));
        assert!(!repeats.is_first(key(0, 1, 1), 120_000));
        assert!(repeats.is_first(key(0, 2, 1), 120_000));
        assert!(repeats.is_first(key(1, 1, 1), 120_000));
        assert!(repeats.is_first(key(0, 1, 1), 120_001));
    }

    #[test]
    fn a_partition_that_is_read_late_makes_no_other_forget_too_early() {
        let mut repeats = Repeats::new(120_000);
        assert!(repeats.is_first(key(0, 1, 1), 119_000));
        assert!(repeats.is_first(key(1, 1, 2), 1_000));
        assert!(!repeats.is_first(key(0, 1, 1), 239_000));
        assert!(!repeats.is_first(key(1, 1, 2), 121_000));
    }

    #[test]
    fn a_flood_pushes_out_the_oldest() {
        let mut repeats = Repeats::new(120_000);
        for id in 0..=MOST as u128 {
            assert!(repeats.is_first(key(0, 1, id), 0));
        }
        assert_eq!((repeats.seen.len(), repeats.ages.len()), (MOST, MOST));
        assert!(!repeats.is_first(key(0, 1, MOST as u128), 0));
        assert!(repeats.is_first(key(0, 1, 0), 0));
    }
}
