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
//!
//! A chain starts in the past: what was logged before `live_from` is only remembered, so that its second
//! copies are known. The past is a hole like any other, and nothing is shown before it is closed.

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
    live_from: Offset,
}

impl Chain {
    /// Starts after `seen`, and shows what lies at `live_from` or later.
    pub(crate) fn new(seen: Offset, live_from: Offset) -> Self {
        Self { seen, live_from }
    }

    /// The last offset covered.
    pub(crate) fn seen(&self) -> Offset {
        self.seen
    }

    /// True once everything before `live_from` is covered.
    pub(crate) fn is_live(&self) -> bool {
        self.seen + 1 >= self.live_from
    }

    /// True when a log that begins at `first` no longer holds something that was to be shown.
    pub(crate) fn is_lost_below(&self, first: Offset) -> bool {
        first > self.live_from.max(self.seen + 1)
    }

    /// Takes a range whose events came at this time.
    pub(crate) fn offer(&mut self, range: Range, at_ms: i64, known: &mut Repeats) -> Step {
        if range.last <= self.seen {
            return if range.prev > self.seen { Step::Hole } else { Step::Drop };
        }
        if range.prev > self.seen {
            return Step::Hole;
        }
        let seen = std::mem::replace(&mut self.seen, range.last);
        let (mut events, mut repeats) = (range.events, 0);
        events.retain(|event| {
            if event.offset <= seen {
                return false;
            }
            let first = known.is_first((range.partition, event.client, event.id), at_ms);
            let live = event.offset >= self.live_from;
            repeats += usize::from(live && !first);
            live && first
        });
        Step::Deliver { events, repeats }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::tests::{event, range};

    fn at(seen: Offset) -> (Chain, Repeats) {
        (Chain::new(seen, seen + 1), Repeats::new(120_000))
    }

    fn offsets(step: Step) -> Vec<Offset> {
        match step {
            Step::Deliver { events, .. } => events.iter().map(|event| event.offset).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ranges_in_order_are_delivered_and_known_ones_dropped() {
        let (mut chain, mut known) = at(4);
        let both = || range(4, 6, vec![event(5, 1), event(6, 2)]);
        assert_eq!(offsets(chain.offer(both(), 0, &mut known)), [5, 6]);
        assert_eq!(chain.offer(both(), 0, &mut known), Step::Drop);
        assert_eq!(chain.offer(range(6, 6, vec![]), 0, &mut known), Step::Drop);
    }

    #[test]
    fn a_range_cut_elsewhere_is_trimmed() {
        let (mut chain, mut known) = at(5);
        let range = range(4, 7, vec![event(5, 1), event(7, 2)]);
        assert_eq!(offsets(chain.offer(range, 0, &mut known)), [7]);
    }

    #[test]
    fn a_missing_range_is_a_hole_also_when_only_a_position_tells() {
        let (mut chain, mut known) = at(5);
        assert_eq!(chain.offer(range(6, 8, vec![event(8, 1)]), 0, &mut known), Step::Hole);
        assert_eq!(chain.offer(range(8, 8, vec![]), 0, &mut known), Step::Hole);
        assert_eq!(chain.seen(), 5);
    }

    #[test]
    fn a_second_copy_of_an_event_is_covered_and_not_shown() {
        let (mut chain, mut known) = at(0);
        let first = range(0, 2, vec![event(1, 1), event(2, 2)]);
        assert_eq!(offsets(chain.offer(first, 0, &mut known)), [1, 2]);
        let again = range(2, 5, vec![event(3, 1), event(4, 2), event(5, 3)]);
        let step = chain.offer(again, 1_000, &mut known);
        assert_eq!(step, Step::Deliver { events: vec![event(5, 3)], repeats: 2 });
        assert_eq!(chain.seen(), 5);
    }

    #[test]
    fn the_past_is_remembered_and_not_shown_and_the_present_waits_for_it() {
        let (mut chain, mut known) = (Chain::new(-1, 3), Repeats::new(120_000));
        let present = || range(2, 5, vec![event(3, 9), event(4, 1), event(5, 3)]);
        assert_eq!(chain.offer(present(), 1_000, &mut known), Step::Hole);
        assert!(!chain.is_live());
        let past = range(-1, 1, vec![event(0, 1), event(1, 9)]);
        let nothing = Step::Deliver { events: vec![], repeats: 0 };
        assert_eq!(chain.offer(past, 0, &mut known), nothing);
        // A read does not end where the past does.
        let across = range(1, 3, vec![event(2, 2), event(3, 9)]);
        assert_eq!(
            chain.offer(across, 0, &mut known),
            Step::Deliver { events: vec![], repeats: 1 }
        );
        assert!(chain.is_live());
        assert_eq!(offsets(chain.offer(present(), 1_000, &mut known)), [5]);
    }
}
