//! Subscriptions that ask for the same: one queue of parcels for all of them.
//!
//! A parcel is kept until every subscription that stood here when it came has taken it, within a bound
//! of bytes. Whoever is overtaken by that bound reads on in the ring, so a slow subscription costs the
//! others nothing, and a thousand stuck ones cost one queue.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::filter::Filter;
use crate::parcel::Parcel;

/// Rings when a subscription should look; several may share one.
pub(crate) type Bell = Arc<Notify>;

/// Waits until that moment or until the bell rings.
pub(crate) async fn wait_until(due: Option<Instant>, bell: &Bell) {
    match due {
        None => bell.notified().await,
        Some(due) => tokio::select! {
            () = sleep_until(due) => {}
            () = bell.notified() => {}
        },
    }
}

/// A subscription within its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    id: u64,
    /// How often the log was another one when it came, or was last told so.
    pub(crate) generation: u64,
}

struct Slot {
    parcel: Arc<Parcel>,
    /// Subscriptions standing here that have not taken it.
    waiting: usize,
}

#[derive(Default)]
struct Queue {
    slots: VecDeque<Slot>,
    bytes: usize,
    /// Everything for this group after that step is in `slots`.
    covers_from: u64,
    generation: u64,
    /// Events that ever came.
    events: u64,
    /// Subscriptions that take from here.
    standing: usize,
    bells: HashMap<u64, Bell>,
    next_id: u64,
}

/// What a look into the queue found.
pub(crate) enum Taken {
    Parcel(Arc<Parcel>),
    /// Nothing that is due.
    Nothing,
    /// The queue went on without this subscription, which stands here no more.
    Overtaken,
    /// The log is another one; the subscription stands here no more.
    Restarted,
}

pub(crate) struct Group {
    pub(crate) filter: Filter,
    most_bytes: usize,
    queue: Mutex<Queue>,
}

impl Group {
    /// Hears everything after step `seq`.
    pub(crate) fn new(filter: Filter, most_bytes: usize, seq: u64, generation: u64) -> Self {
        let queue = Queue { covers_from: seq, generation, ..Queue::default() };
        Self { filter, most_bytes, queue: Mutex::new(queue) }
    }

    /// Rings another bell from now on.
    pub(crate) fn rehang(&self, member: Member, bell: Bell) {
        self.queue().bells.insert(member.id, bell);
    }

    /// True when nothing came for this group between two steps, as far as can be told.
    pub(crate) fn is_silent_between(&self, one: u64, other: u64) -> bool {
        let mut queue = self.queue();
        let (first, last) = (one.min(other), one.max(other));
        let next = queue.after(first).next().map(|slot| slot.parcel.seq);
        queue.covers_from <= first && next.is_none_or(|next| next > last)
    }

    pub(crate) fn enter(&self, bell: Bell) -> Member {
        let mut queue = self.queue();
        queue.next_id += 1;
        let id = queue.next_id;
        queue.bells.insert(id, bell);
        Member { id, generation: queue.generation }
    }

    /// Adds a parcel and wakes everybody.
    pub(crate) fn push(&self, parcel: Arc<Parcel>) {
        let mut queue = self.queue();
        let waiting = queue.standing;
        queue.events += parcel.events.len() as u64;
        if waiting == 0 {
            queue.covers_from = parcel.seq;
        } else {
            queue.bytes += parcel.bytes();
            queue.slots.push_back(Slot { parcel, waiting });
            while queue.bytes > self.most_bytes && queue.slots.len() > 1 {
                queue.drop_oldest();
            }
        }
        queue.bells.values().for_each(|bell| bell.notify_one());
    }

    /// The log is another one from step `seq` on.
    pub(crate) fn restart(&self, seq: u64) {
        let mut queue = self.queue();
        queue.slots.clear();
        queue.bytes = 0;
        queue.standing = 0;
        queue.covers_from = seq;
        queue.generation += 1;
        queue.bells.values().for_each(|bell| bell.notify_one());
    }

    /// Lets a subscription that has everything up to step `seq` take from here, and tells how many events
    /// came up to then; `None` when something after that step is not here, or the log is another one.
    pub(crate) fn stand(&self, member: Member, seq: u64) -> Option<u64> {
        let mut queue = self.queue();
        if queue.generation != member.generation || seq < queue.covers_from {
            return None;
        }
        queue.standing += 1;
        let mut events = queue.events;
        for slot in queue.after(seq) {
            slot.waiting += 1;
            events -= slot.parcel.events.len() as u64;
        }
        Some(events)
    }

    /// How many events ever came.
    pub(crate) fn events(&self) -> u64 {
        self.queue().events
    }

    /// The first parcel after step `seq` that came before that moment, for a subscription standing here.
    pub(crate) fn take(&self, member: Member, seq: u64, before: Option<Instant>) -> Taken {
        let mut queue = self.queue();
        if queue.generation != member.generation {
            return Taken::Restarted;
        }
        if seq < queue.covers_from {
            queue.step_out(seq);
            return Taken::Overtaken;
        }
        let due = |slot: &&mut Slot| before.is_none_or(|before| slot.parcel.at < before);
        let Some(slot) = queue.after(seq).next().filter(due) else { return Taken::Nothing };
        slot.waiting -= 1;
        let parcel = slot.parcel.clone();
        queue.drop_taken();
        Taken::Parcel(parcel)
    }

    /// When the first parcel after step `seq` came; `None` when there is none.
    pub(crate) fn waiting_since(&self, seq: u64) -> Option<Instant> {
        self.queue().after(seq).next().map(|slot| slot.parcel.at)
    }

    /// True while the log is the one the subscription knows.
    pub(crate) fn is_current(&self, member: Member) -> bool {
        self.queue().generation == member.generation
    }

    /// The subscription as one of the present log.
    pub(crate) fn renewed(&self, member: Member) -> Member {
        Member { generation: self.queue().generation, ..member }
    }

    /// Ends a subscription that had everything up to `standing_at`, if it stood here. True when it was
    /// the last.
    pub(crate) fn leave(&self, member: Member, standing_at: Option<u64>) -> bool {
        let mut queue = self.queue();
        if let Some(seq) = standing_at.filter(|_| queue.generation == member.generation) {
            queue.step_out(seq);
        }
        queue.bells.remove(&member.id);
        queue.bells.is_empty()
    }

    /// How many subscriptions it has, and the bytes kept for them.
    pub(crate) fn load(&self) -> (usize, usize) {
        let queue = self.queue();
        (queue.bells.len(), queue.bytes)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn after(&mut self, seq: u64) -> impl Iterator<Item = &mut Slot> {
        let taken = self.slots.partition_point(|slot| slot.parcel.seq <= seq);
        self.slots.range_mut(taken..)
    }

    fn step_out(&mut self, seq: u64) {
        self.standing -= 1;
        self.after(seq).for_each(|slot| slot.waiting -= 1);
        self.drop_taken();
    }

    fn drop_taken(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.waiting == 0) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(slot) = self.slots.pop_front() {
            self.bytes -= slot.parcel.bytes();
            self.covers_from = slot.parcel.seq;
        }
    }
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::event::ClientId;
    use uuid::Uuid;

    use super::*;
    use crate::cursor::Cursor;
    use crate::filter::Audience;
    use crate::range::tests::event;

    /// Room for three of the parcels below.
    fn group() -> Group {
        let filter = Filter::parse(Audience::Client(ClientId(7)), "").unwrap();
        Group::new(filter, 3 * event(1, 1).json.len(), 0, 0)
    }

    fn push(group: &Group, seq: u64) {
        let place = Arc::new(Cursor { epoch: Uuid::nil(), next: [1].into() });
        group.push(Arc::new(Parcel::new((seq, Instant::now()), 0, vec![event(1, 1)], place)));
    }

    fn standing(group: &Group, count: usize) -> Vec<Member> {
        let members: Vec<_> = (0..count).map(|_| group.enter(Bell::default())).collect();
        assert!(members.iter().all(|member| group.stand(*member, 0).is_some()));
        members
    }

    fn taken(group: &Group, member: Member, seq: u64) -> Option<u64> {
        match group.take(member, seq, None) {
            Taken::Parcel(parcel) => Some(parcel.seq),
            _ => None,
        }
    }

    #[test]
    fn a_thousand_that_do_not_read_keep_one_queue_and_delay_nobody() {
        let group = group();
        let members = standing(&group, 1_001);
        for seq in 1..=100 {
            push(&group, seq);
            assert_eq!(taken(&group, members[0], seq - 1), Some(seq));
        }
        assert_eq!(group.queue().slots.len(), 3);
        assert!(matches!(group.take(members[1], 0, None), Taken::Overtaken));
        for member in &members[2..] {
            group.leave(*member, Some(0));
        }
        // Nobody is left that has not taken what is there.
        assert_eq!(group.queue().slots.len(), 0);
        assert_eq!(group.queue().bytes, 0);
        assert_eq!(group.queue().standing, 1);
    }

    #[test]
    fn what_all_have_taken_is_kept_no_longer_and_nothing_is_kept_for_nobody() {
        let group = group();
        push(&group, 1);
        assert_eq!(group.queue().slots.len(), 0);
        let late = group.enter(Bell::default());
        assert_eq!(group.stand(late, 0), None, "what came before is not here");
        assert_eq!(group.stand(late, 1), Some(1));
        push(&group, 2);
        assert_eq!(taken(&group, late, 1), Some(2));
        assert_eq!(group.queue().slots.len(), 0);
        assert!(group.leave(late, Some(2)));
    }

    #[test]
    fn another_log_ends_what_everybody_stood_at() {
        let group = group();
        let member = standing(&group, 1)[0];
        push(&group, 1);
        group.restart(2);
        assert!(matches!(group.take(member, 0, None), Taken::Restarted));
        assert_eq!(group.stand(member, 2), None);
        assert_eq!(group.stand(group.renewed(member), 2), Some(1));
    }
}
