//! What one member of a group is to be told, and where it reads. Pure state behind one mutex: the
//! coordinator changes it from outside, the member takes from it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use tokio::sync::Notify;

use super::locked;
use super::places::Places;
use crate::log::{LogEvent, Offset, Partition, Topic};

#[derive(Debug, Default)]
pub(super) struct Delivery {
    state: Mutex<State>,
    /// Something was put into `told`.
    pub(super) news: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Assignments and revocations not handed out yet. Bounded by the number of joins and leaves while
    /// the member does not ask; each is a list of partitions.
    told: VecDeque<LogEvent>,
    /// What the member was told is its own, and is still.
    owned: BTreeMap<Partition, Place>,
    /// Served last; the next one is served first, so that no partition starves another.
    last: Partition,
}

#[derive(Debug, Default, Clone, Copy)]
struct Place {
    /// Where to read; `None` before `seek` and after a place outside the log.
    from: Option<Offset>,
    paused: bool,
}

/// What a member is to do next.
#[derive(Debug)]
pub(super) enum Turn {
    /// Hand this out.
    Tell(LogEvent),
    /// Read records of this partition from there; there may be none, when the place is beyond the end.
    Read(Partition, Offset),
    /// Nothing to do until news or a commit.
    Wait,
}

impl Delivery {
    pub(super) fn assign(&self, partitions: Vec<Partition>) {
        locked(&self.state).told.push_back(LogEvent::Assigned(partitions));
        self.news.notify_one();
    }

    /// From here on nothing of these is handed out, even before the member is told.
    pub(super) fn revoke(&self, partitions: Vec<Partition>) {
        let mut state = locked(&self.state);
        for partition in &partitions {
            state.owned.remove(partition);
        }
        state.told.push_back(LogEvent::Revoked(partitions));
        drop(state);
        self.news.notify_one();
    }

    pub(super) fn turn(&self, places: &Places) -> Turn {
        let mut state = locked(&self.state);
        if let Some(event) = state.told.pop_front() {
            state.hand_out(&event);
            return Turn::Tell(event);
        }
        let last = state.last;
        let (later, earlier) = (state.owned.range(last + 1..), state.owned.range(..=last));
        let due = later.chain(earlier).find_map(|(partition, place)| {
            let from = place.from.filter(|_| !place.paused)?;
            let bounds = places.get(Topic::Raw, *partition)?;
            (from != bounds.next).then_some((*partition, from, bounds))
        });
        match due {
            None => Turn::Wait,
            Some((partition, from, bounds)) if from < bounds.first => {
                Turn::Tell(state.stop(partition))
            }
            Some((partition, from, _)) => {
                state.last = partition;
                Turn::Read(partition, from)
            }
        }
    }

    /// Moves the place over records read from `from`, unless it is not the place any more: then they
    /// must not be handed out.
    pub(super) fn advance(&self, partition: Partition, from: Offset, to: Offset) -> bool {
        let mut state = locked(&self.state);
        match state.owned.get_mut(&partition) {
            Some(place) if place.from == Some(from) => {
                place.from = Some(to);
                true
            }
            _ => false,
        }
    }

    /// Stops a partition whose place turned out not to be in the log.
    pub(super) fn out_of_range(&self, partition: Partition, from: Offset) -> Option<LogEvent> {
        let mut state = locked(&self.state);
        let current = state.owned.get(&partition).is_some_and(|place| place.from == Some(from));
        current.then(|| state.stop(partition))
    }

    pub(super) fn seek(&self, partition: Partition, offset: Offset) {
        if let Some(place) = locked(&self.state).owned.get_mut(&partition) {
            place.from = Some(offset);
        }
    }

    pub(super) fn set_paused(&self, partitions: &[Partition], paused: bool) {
        let mut state = locked(&self.state);
        for partition in partitions {
            if let Some(place) = state.owned.get_mut(partition) {
                place.paused = paused;
            }
        }
    }

    pub(super) fn owns(&self, partition: Partition) -> bool {
        locked(&self.state).owned.contains_key(&partition)
    }
}

impl State {
    fn hand_out(&mut self, event: &LogEvent) {
        match event {
            LogEvent::Assigned(partitions) => {
                self.owned
                    .extend(partitions.iter().map(|partition| (*partition, Place::default())));
            }
            // Assigned and revoked before the member asked: the assignment was handed out just now.
            LogEvent::Revoked(partitions) => {
                for partition in partitions {
                    self.owned.remove(partition);
                }
            }
            LogEvent::Records(..) | LogEvent::OutOfRange(_) => {}
        }
    }

    fn stop(&mut self, partition: Partition) -> LogEvent {
        if let Some(place) = self.owned.get_mut(&partition) {
            place.from = None;
        }
        LogEvent::OutOfRange(Some(partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(partitions: &[Partition]) -> (Delivery, Places) {
        let (delivery, places) = (Delivery::default(), Places::new(4));
        places.set_next(Topic::Raw, &[10, 10, 10, 0]);
        delivery.assign(partitions.to_vec());
        assert!(matches!(delivery.turn(&places), Turn::Tell(LogEvent::Assigned(_))));
        partitions.iter().for_each(|partition| delivery.seek(*partition, 0));
        (delivery, places)
    }

    #[test]
    fn a_revoked_partition_is_lost_before_the_member_is_told() {
        let (delivery, places) = served(&[0]);
        assert!(matches!(delivery.turn(&places), Turn::Read(0, 0)));
        delivery.revoke(vec![0]);
        assert!(!delivery.advance(0, 0, 10), "what was being read is not handed out");
        assert!(!delivery.owns(0), "nor does a late commit count");
        assert!(matches!(delivery.turn(&places), Turn::Tell(LogEvent::Revoked(_))));
        assert!(matches!(delivery.turn(&places), Turn::Wait));
    }

    #[test]
    fn an_assignment_that_was_revoked_unseen_leaves_nothing_behind() {
        let (delivery, places) = (Delivery::default(), Places::new(4));
        delivery.assign(vec![1]);
        delivery.revoke(vec![1]);
        assert!(matches!(delivery.turn(&places), Turn::Tell(LogEvent::Assigned(_))));
        assert!(matches!(delivery.turn(&places), Turn::Tell(LogEvent::Revoked(_))));
        assert!(!delivery.owns(1));
    }

    #[test]
    fn records_read_for_another_place_are_not_handed_out() {
        let (delivery, _) = served(&[0]);
        delivery.seek(0, 5);
        assert!(!delivery.advance(0, 0, 4));
        assert!(delivery.advance(0, 5, 6));
    }

    #[test]
    fn partitions_take_turns_and_a_paused_or_finished_one_is_passed_over() {
        let (delivery, places) = served(&[0, 1, 2, 3]);
        let mut turns = Vec::new();
        delivery.set_paused(&[1], true);
        for _ in 0..6 {
            if let Turn::Read(partition, from) = delivery.turn(&places) {
                turns.push(partition);
                assert!(delivery.advance(partition, from, from + 1));
            }
        }
        turns.sort_unstable();
        assert_eq!(turns, [0, 0, 0, 2, 2, 2]);
    }
}
