//! The feed: what the hub shows, for subscriptions of every transport.
//!
//! The hub writes into it, step by step. A subscription reads from the log, then from the ring, then from
//! its group's queue, each in its own time: nothing is kept for one subscription alone, so slow ones
//! cost no memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pulsestream_shared::log::{Bounds, EventLog, Offset, Partition};
use tokio::time::Instant;
use uuid::Uuid;

use crate::blocks::Blocks;
use crate::cursor::Cursor;
use crate::filter::Filter;
use crate::group::{Bell, Group, Member};
use crate::index::Index;
use crate::parcel::Parcel;
use crate::range::LiveEvent;
use crate::ring::{Kept, Ring};
use crate::subscription::Subscription;

/// A step's events and their bytes at most: what is sent at once is no larger.
const STEP_EVENTS: usize = 256;
const STEP_BYTES: usize = 64 * 1_024;

/// The bounds of a feed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounded {
    pub(crate) ring: Kept,
    /// Bytes one group keeps for those of its subscriptions that have not taken them.
    pub(crate) queue_bytes: usize,
    /// A live subscription that lies further behind is told of a gap.
    pub(crate) lag: Duration,
    /// How far before a place ids are read, so that a repeat after it is known.
    pub(crate) repeat_window: Duration,
}

pub(crate) struct Feed {
    inner: Mutex<Inner>,
    pub(crate) blocks: Arc<Blocks>,
    pub(crate) bounded: Bounded,
    /// Windows are counted from here, so that those of equal length end together.
    pub(crate) begun_at: Instant,
}

struct Inner {
    ring: Ring,
    index: Index,
    generation: u64,
}

/// Where a subscription that was entered reads on.
pub(crate) struct Entered {
    pub(crate) group: Arc<Group>,
    pub(crate) member: Member,
}

impl Feed {
    /// An empty one; the hub tells where it begins.
    pub(crate) fn new(log: Arc<dyn EventLog>, bounded: Bounded) -> Arc<Self> {
        let nowhere = Cursor { epoch: Uuid::nil(), next: Box::default() };
        let ring = Ring::new(0, nowhere, bounded.ring);
        let inner = Inner { ring, index: Index::default(), generation: 0 };
        let blocks = Blocks::new(log);
        Arc::new(Self { inner: Mutex::new(inner), blocks, bounded, begun_at: Instant::now() })
    }

    /// The log is this one, and shown from here on. Every subscription is told that what it saw was of
    /// another.
    pub(crate) fn restart(&self, epoch: Uuid, bounds: &[Bounds]) {
        let next = bounds.iter().map(|bounds| bounds.next).collect();
        let mut inner = self.inner();
        let seq = inner.ring.head().0 + 1;
        inner.ring = Ring::new(seq, Cursor { epoch, next }, self.bounded.ring);
        inner.generation += 1;
        inner.index.groups().for_each(|group| group.restart(seq));
    }

    /// The partition is shown up to `last`; these events of it are new.
    pub(crate) fn show(
        &self,
        partition: Partition,
        last: Offset,
        events: &[LiveEvent],
        now: Instant,
    ) {
        let mut inner = self.inner();
        if events.is_empty() && last < inner.ring.head().1.at(partition) {
            return; // what is only remembered
        }
        let mut rest = events;
        loop {
            let (now_shown, later) = rest.split_at(first_step(rest));
            let shown_to = match now_shown.last() {
                Some(event) if !later.is_empty() => event.offset,
                _ => last,
            };
            let step = inner.ring.push(partition, shown_to, now_shown.to_vec(), now);
            inner.hand_out(&step);
            if later.is_empty() {
                return;
            }
            rest = later;
        }
    }

    /// Of the partition everything below `first` that was not shown is gone for good.
    pub(crate) fn lose(&self, partition: Partition, first: Offset, now: Instant) {
        let mut inner = self.inner();
        let step = inner.ring.push_lost(partition, first, now);
        for group in inner.index.groups() {
            group.push(step.clone());
        }
    }

    /// The newest step and the place after it.
    pub(crate) fn head(&self) -> (u64, Arc<Cursor>) {
        self.inner().ring.head().clone()
    }

    /// The newest step, the place after it, and how many events the group ever had up to then.
    pub(crate) fn head_of(&self, group: &Group) -> (u64, Arc<Cursor>, u64) {
        // Under one lock: a step is handed to the groups before the next look at the head.
        let inner = self.inner();
        let (seq, place) = inner.ring.head().clone();
        (seq, place, group.events())
    }

    /// The oldest step kept and the place after it.
    pub(crate) fn base(&self) -> (u64, Arc<Cursor>) {
        self.inner().ring.base().clone()
    }

    pub(crate) fn after(&self, seq: u64, filter: &Filter) -> Option<Vec<Arc<Parcel>>> {
        self.inner().ring.after(seq, filter)
    }

    pub(crate) fn step_before(&self, place: &Cursor) -> Option<(u64, Arc<Cursor>)> {
        self.inner().ring.step_before(place)
    }

    /// Begins a subscription at a place of the present log; nothing below it is shown.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        filter: Filter,
        place: Cursor,
        bell: Bell,
    ) -> Subscription {
        let entered = self.enter(filter, bell.clone());
        Subscription::begin(self.clone(), entered, bell, place)
    }

    pub(crate) fn enter(&self, filter: Filter, bell: Bell) -> Entered {
        self.inner().enter(filter, self.bounded.queue_bytes, bell)
    }

    /// Ends a subscription.
    pub(crate) fn leave(&self, group: &Arc<Group>, member: Member, standing_at: Option<u64>) {
        // Under the lock, so that nobody enters a group that is being removed.
        let mut inner = self.inner();
        if group.leave(member, standing_at) {
            inner.index.remove(group);
        }
    }

    /// How many subscriptions there are, and the bytes kept for those that have not taken them.
    pub(crate) fn load(&self) -> (usize, usize) {
        let groups: Vec<_> = self.inner().index.groups().cloned().collect();
        let loads = groups.iter().map(|group| group.load());
        loads.fold((0, 0), |(count, bytes), (more, queued)| (count + more, bytes + queued))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn enter(&mut self, filter: Filter, queue_bytes: usize, bell: Bell) -> Entered {
        let group = match self.index.find(&filter) {
            Some(group) => group.clone(),
            None => {
                let seq = self.ring.head().0;
                let group = Arc::new(Group::new(filter, queue_bytes, seq, self.generation));
                self.index.add(&group);
                group
            }
        };
        let member = group.enter(bell);
        Entered { group, member }
    }

    fn hand_out(&self, step: &Arc<Parcel>) {
        let mut wanted: HashMap<*const Group, (&Arc<Group>, Vec<LiveEvent>)> = HashMap::new();
        for event in &step.events {
            for group in self.index.wanting(event) {
                let entry = wanted.entry(Arc::as_ptr(group)).or_insert_with(|| (group, Vec::new()));
                entry.1.push(event.clone());
            }
        }
        for (group, events) in wanted.into_values() {
            let (place, at) = (step.place.clone(), (step.seq, step.at));
            let parcel = Arc::new(Parcel::new(at, step.partition, events, place).shared());
            group.push(parcel);
        }
    }
}

/// How many of the events are one step.
fn first_step(events: &[LiveEvent]) -> usize {
    let mut bytes = 0;
    let fits = |event: &&LiveEvent| {
        bytes += event.json.len();
        bytes <= STEP_BYTES
    };
    events.iter().take(STEP_EVENTS).take_while(fits).count().max(events.len().min(1))
}
