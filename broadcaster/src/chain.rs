//! Where the hub stands in one partition: a pure state machine.
//!
//! Ranges are compared by offset, never by identity: after a hand-over the new relay cuts them
//! elsewhere, and a zombie relay's late ones come again.
//!
//! ```text
//! last <= seen          nothing new: drop
//! prev <= seen < last   the part after seen is new: trim and deliver
//! prev >  seen          a hole: read (seen, …] from the log
//! ```

use pulsestream_shared::log::Offset;

use crate::range::{LiveEvent, Range};
use crate::repeats::Repeats;

/// What to do with a range.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Known already.
    Drop,
    /// New, in order, each event once.
    Deliver {
        /// What to show.
        events: Vec<LiveEvent>,
        /// Second copies that were left out.
        repeats: usize,
    },
    /// Something before it is missing.
    Hole,
}

pub(crate) struct Chain {
    seen: Offset,
    repeats: Repeats,
}

impl Chain {
    /// Starts after `seen`.
    pub(crate) fn new(seen: Offset, window_ms: i64) -> Self {
        Self { seen, repeats: Repeats::new(window_ms) }
    }

    /// The last offset covered.
    pub(crate) fn seen(&self) -> Offset {
        self.seen
    }

    /// Remembers an event from before the start.
    pub(crate) fn warm(&mut self, event: &LiveEvent, now_ms: i64) {
        self.repeats.is_first((event.client, event.id), now_ms);
    }

    /// Takes a range.
    pub(crate) fn offer(&mut self, range: Range, now_ms: i64) -> Step {
        if range.last <= self.seen {
            return if range.prev > self.seen { Step::Hole } else { Step::Drop };
        }
        if range.prev > self.seen {
            return Step::Hole;
        }
        let seen = std::mem::replace(&mut self.seen, range.last);
        let mut events = range.events;
        events.retain(|event| event.offset > seen);
        let new = events.len();
        events.retain(|event| self.repeats.is_first((event.client, event.id), now_ms));
        Step::Deliver { repeats: new - events.len(), events }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::tests::{event, range};

    fn offsets(step: Step) -> Vec<Offset> {
        match step {
            Step::Deliver { events, .. } => events.iter().map(|event| event.offset).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ranges_in_order_are_delivered_and_known_ones_dropped() {
        let mut chain = Chain::new(4, 120_000);
        assert_eq!(offsets(chain.offer(range(4, 6, vec![event(5, 1), event(6, 2)]), 0)), [5, 6]);
        assert_eq!(chain.offer(range(4, 6, vec![event(5, 1), event(6, 2)]), 0), Step::Drop);
        assert_eq!(chain.offer(range(6, 6, vec![]), 0), Step::Drop);
    }

    #[test]
    fn a_range_cut_elsewhere_is_trimmed() {
        let mut chain = Chain::new(5, 120_000);
        assert_eq!(offsets(chain.offer(range(4, 7, vec![event(5, 1), event(7, 2)]), 0)), [7]);
    }

    #[test]
    fn a_missing_range_is_a_hole_also_when_only_a_position_tells() {
        let mut chain = Chain::new(5, 120_000);
        assert_eq!(chain.offer(range(6, 8, vec![event(8, 1)]), 0), Step::Hole);
        assert_eq!(chain.offer(range(8, 8, vec![]), 0), Step::Hole);
        assert_eq!(chain.seen(), 5);
    }

    #[test]
    fn a_second_copy_of_an_event_is_covered_and_not_shown() {
        let mut chain = Chain::new(0, 120_000);
        chain.warm(&event(0, 9), 0);
        let first = range(0, 2, vec![event(1, 1), event(2, 2)]);
        assert_eq!(offsets(chain.offer(first, 0)), [1, 2]);
        let again = range(2, 5, vec![event(3, 1), event(4, 9), event(5, 3)]);
        assert_eq!(offsets(chain.offer(again, 1_000)), [5]);
        assert_eq!(chain.seen(), 5);
    }
}
