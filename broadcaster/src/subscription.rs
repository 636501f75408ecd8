//! A subscription: a filter, and the next offset of every partition. Nothing below those is ever sent.
//!
//! It pulls. Where from depends on how far behind it is:
//!
//! ```text
//! log    what the ring holds no more         -> ring, once it has reached the ring's beginning
//! ring   steps the group's queue has not     -> queue, once it is where the queue begins
//! queue  what the group's subscriptions wait for; overtaken there -> ring
//! ```
//!
//! A subscription that began with a place lies as far behind as it did before; one that was live and lies
//! further behind than `live.max_lag` is told of a gap, and goes on from the hub's place; not so a patient
//! one, for which a new value makes up for all before it. `pull` never waits: a read of the log runs beside
//! it and rings the bell.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use crate::catch_up::{CatchUp, Read};
use crate::cursor::Cursor;
use crate::feed::{Entered, Feed};
use crate::filter::Filter;
use crate::group::{Bell, Group, Member, Taken};
use crate::parcel::Parcel;
use crate::range::LiveEvent;

/// Runs of steps in which nothing was found to send before others get their turn.
const LOOKS: usize = 32;

/// Why events are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GapReason {
    /// The client did not read fast enough.
    Slow,
    /// The log no longer holds them.
    BeyondRetention,
    /// The log is another one.
    OtherEpoch,
    /// There were more than one catch-up may read.
    Expired,
    /// The log could not be read.
    LogUnavailable,
    /// Too many others catch up.
    Busy,
}

impl GapReason {
    /// Every one.
    pub(crate) const ALL: [Self; 6] = [
        Self::Slow,
        Self::BeyondRetention,
        Self::OtherEpoch,
        Self::Expired,
        Self::LogUnavailable,
        Self::Busy,
    ];

    /// The word a client is told.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Slow => "slow",
            Self::BeyondRetention => "beyond_retention",
            Self::OtherEpoch => "other_epoch",
            Self::Expired => "expired",
            Self::LogUnavailable => "log_unavailable",
            Self::Busy => "busy",
        }
    }
}

/// Events before the present place are missing and will not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) reason: GapReason,
    /// How many; `None` when it is not known.
    pub(crate) missed: Option<u64>,
}

/// What a subscription is to be shown next.
pub(crate) enum Pulled {
    Events(Arc<Parcel>),
    Gap(Gap),
}

enum Source {
    Log(oneshot::Receiver<(CatchUp, Read)>),
    Ring(VecDeque<Arc<Parcel>>),
    Queue,
}

pub(crate) struct Subscription {
    feed: Arc<Feed>,
    group: Arc<Group>,
    member: Member,
    bell: Bell,
    source: Source,
    /// The last step taken in.
    seq: u64,
    /// How many events the group had up to that step; `None` until it has been live.
    had: Option<u64>,
    /// Everything below was sent, or was not asked for.
    place: Arc<Cursor>,
    /// While the place is ahead of the steps taken in: what lies below it is not sent.
    floor: Option<Arc<Cursor>>,
    /// It has not been live yet.
    resuming: bool,
    /// It is told of no gap because it lags.
    patient: bool,
}

/// Where a live subscription stands: what is needed to go on from there.
#[derive(Clone)]
pub(crate) struct Stand {
    feed: Arc<Feed>,
    group: Arc<Group>,
    generation: u64,
    seq: u64,
    had: Option<u64>,
    place: Arc<Cursor>,
    patient: bool,
}

impl Subscription {
    pub(crate) fn begin(feed: Arc<Feed>, entered: Entered, bell: Bell, place: Cursor) -> Self {
        let place = Arc::new(place);
        let mut subscription = Self {
            feed,
            group: entered.group,
            member: entered.member,
            bell,
            source: Source::Ring(VecDeque::new()),
            seq: 0,
            had: None,
            floor: None,
            place,
            resuming: true,
            patient: false,
        };
        if subscription.place.epoch != subscription.feed.head().1.epoch {
            // The log was replaced since the place was judged: the first pull tells of it.
            subscription.member.generation = u64::MAX;
        } else if !subscription.enter_ring() {
            subscription.read_log(None);
        }
        subscription
    }

    /// The same for one that is shown the newest values alone: it may lag, as it may when it comes back.
    pub(crate) fn patient(mut self) -> Self {
        self.patient = true;
        self
    }

    /// One that goes on from there: with what the group has, or else from the ring.
    pub(crate) fn at(stand: Stand, bell: Bell) -> Self {
        let Stand { feed, group: before, generation, seq, had, place, patient } = stand;
        let Entered { group, mut member } = feed.enter(before.filter.clone(), bell.clone());
        member.generation = generation;
        let had = had.filter(|_| Arc::ptr_eq(&group, &before));
        Self {
            feed,
            group,
            member,
            bell,
            source: Source::Ring(VecDeque::new()),
            seq,
            had,
            place,
            floor: None,
            resuming: false,
            patient,
        }
    }

    /// Where it stands.
    pub(crate) fn stand(&self) -> Stand {
        Stand {
            feed: self.feed.clone(),
            group: self.group.clone(),
            generation: self.member.generation,
            seq: self.seq,
            had: self.had,
            place: self.place.clone(),
            patient: self.patient,
        }
    }

    /// True when both, of which each may be shared, have been shown the same.
    pub(crate) fn stands_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.group, &other.group)
            && self.member.generation == other.member.generation
            && self.group.is_silent_between(self.seq, other.seq)
    }

    /// True when what it is shown next depends on nothing of its own.
    pub(crate) fn may_be_shared(&self) -> bool {
        self.is_live() && self.floor.is_none() && self.group.is_current(self.member)
    }

    /// True when others ask for the same.
    pub(crate) fn has_company(&self) -> bool {
        self.group.load().0 > 1
    }

    /// Rings another bell from now on.
    pub(crate) fn rehang(&mut self, bell: Bell) {
        self.group.rehang(self.member, bell.clone());
        self.bell = bell;
    }

    /// What it asks for.
    pub(crate) fn filter(&self) -> &Filter {
        &self.group.filter
    }

    /// Everything below was handed out by [`pull`](Self::pull), or was not asked for.
    pub(crate) fn place(&self) -> &Arc<Cursor> {
        &self.place
    }

    /// True once everything that was missed has been handed out.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.source, Source::Queue)
    }

    /// When something that came is to be sent; `None` while nothing is.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.group.waiting_since(self.seq).filter(|_| self.is_live())
    }

    /// What is to be sent next: of what is live, only what came before `before`. `None` when there is
    /// nothing now; the bell rings when that changes.
    pub(crate) fn pull(&mut self, before: Option<Instant>) -> Option<Pulled> {
        for _ in 0..LOOKS {
            if !self.group.is_current(self.member) {
                self.member = self.group.renewed(self.member);
                return Some(self.go_to_the_head(GapReason::OtherEpoch));
            }
            let pulled = match &mut self.source {
                Source::Log(read) => match read.try_recv() {
                    Err(TryRecvError::Empty) => return None,
                    Err(TryRecvError::Closed) => {
                        Some(self.go_to_the_head(GapReason::LogUnavailable))
                    }
                    Ok((catch_up, read)) => self.take_read(catch_up, read),
                },
                Source::Ring(_) => self.pull_ring(),
                Source::Queue => match self.group.take(self.member, self.seq, before) {
                    Taken::Nothing => return None,
                    Taken::Parcel(parcel) => {
                        self.note_events(parcel.events.len());
                        self.accept(parcel)
                    }
                    Taken::Overtaken | Taken::Restarted => {
                        self.source = Source::Ring(VecDeque::new());
                        None
                    }
                },
            };
            if pulled.is_some() {
                return pulled;
            }
        }
        // There may be more, and others on this thread wait for their turn.
        self.bell.notify_one();
        None
    }

    /// Moves the place over what was not asked for, up to the hub's, when there is nothing to send.
    pub(crate) fn settle(&mut self) {
        // The head first: what is in the queue then, up to it, was there before it was told.
        let (seq, head) = self.feed.head();
        let nothing_due = self.is_live() && self.group.waiting_since(self.seq).is_none();
        if nothing_due && self.group.is_current(self.member) && seq > self.seq {
            self.move_to(seq, &head);
        }
    }

    fn pull_ring(&mut self) -> Option<Pulled> {
        let Source::Ring(steps) = &mut self.source else { return None };
        if steps.is_empty() {
            if let Some(had) = self.group.stand(self.member, self.seq) {
                (self.source, self.resuming, self.had) = (Source::Queue, false, Some(had));
                return None;
            }
            match self.feed.after(self.seq, &self.group.filter) {
                Some(next) => steps.extend(next),
                None if self.may_lag() => {
                    if !self.enter_ring() {
                        self.read_log(None);
                    }
                    return None;
                }
                None => return Some(self.go_to_the_head(GapReason::Slow)),
            }
        }
        let own = self.next_of_ring()?;
        let late = || own.at.elapsed() > self.feed.bounded.lag;
        if !own.events.is_empty() && !self.may_lag() && late() {
            return Some(self.go_to_the_head(GapReason::Slow));
        }
        self.note_events(own.events.len());
        self.accept(Arc::new(own))
    }

    /// The next step taken from the ring that has something to send or marks a hole, else the last, with
    /// what was asked for.
    fn next_of_ring(&mut self) -> Option<Parcel> {
        let Source::Ring(steps) = &mut self.source else { return None };
        loop {
            let step = steps.pop_front()?;
            let wants = |event: &&LiveEvent| self.group.filter.wants(event);
            let wanted: Vec<_> = step.events.iter().filter(wants).cloned().collect();
            if steps.is_empty() || step.lost || !wanted.is_empty() {
                return Some(step.cut(wanted, step.place.clone()));
            }
        }
    }

    fn note_events(&mut self, count: usize) {
        self.had = self.had.map(|had| had + count as u64);
    }

    fn may_lag(&self) -> bool {
        self.resuming || self.patient
    }

    /// Takes a step in; `None` when there is nothing in it to send.
    fn accept(&mut self, parcel: Arc<Parcel>) -> Option<Pulled> {
        let floor = self.floor.as_ref().map_or(0, |floor| floor.at(parcel.partition));
        let lost = parcel.lost && parcel.place.at(parcel.partition) > floor;
        self.move_to(parcel.seq, &parcel.place);
        if lost {
            return Some(Pulled::Gap(Gap { reason: GapReason::BeyondRetention, missed: None }));
        }
        if parcel.events.iter().all(|event| event.offset >= floor) && self.place == parcel.place {
            return (!parcel.events.is_empty()).then_some(Pulled::Events(parcel));
        }
        let events: Vec<_> =
            parcel.events.iter().filter(|event| event.offset >= floor).cloned().collect();
        let own = parcel.cut(events, self.place.clone());
        (!own.events.is_empty()).then(|| Pulled::Events(Arc::new(own)))
    }

    fn move_to(&mut self, seq: u64, place: &Arc<Cursor>) {
        self.seq = seq;
        if self.floor.as_ref().is_some_and(|floor| !place.covers(floor)) {
            self.place = Arc::new(self.place.later(place));
        } else {
            self.floor = None;
            self.place = place.clone();
        }
    }

    fn enter_ring(&mut self) -> bool {
        let Some((seq, at)) = self.feed.step_before(&self.place) else { return false };
        self.seq = seq;
        self.floor = Some(self.place.clone()).filter(|place| !at.covers(place));
        self.source = Source::Ring(VecDeque::new());
        true
    }

    /// Goes on from the hub's place.
    fn go_to_the_head(&mut self, reason: GapReason) -> Pulled {
        let (seq, head, came) = self.feed.head_of(&self.group);
        // Below a floor the group had events that were not for this one.
        let known = self.had.filter(|_| reason == GapReason::Slow && self.floor.is_none());
        let missed = known.map(|had| came.saturating_sub(had));
        self.source = Source::Ring(VecDeque::new());
        (self.seq, self.place, self.floor, self.resuming) = (seq, head, None, false);
        self.had = Some(came);
        Pulled::Gap(Gap { reason, missed })
    }

    fn read_log(&mut self, catch_up: Option<CatchUp>) {
        let catch_up = catch_up.unwrap_or_else(|| {
            let (blocks, filter) = (self.feed.blocks.clone(), self.group.filter.clone());
            let window = self.feed.bounded.repeat_window;
            CatchUp::new(blocks, filter, Cursor::clone(&self.place), window)
        });
        let (done, read) = oneshot::channel();
        let (base, bell) = (self.feed.base().1, self.bell.clone());
        tokio::spawn(async move {
            let mut done = done;
            let read = tokio::select! {
                read = catch_up.next(base) => read,
                () = done.closed() => return, // the subscription ended
            };
            drop(done.send(read)); // as above
            bell.notify_one();
        });
        self.source = Source::Log(read);
    }

    fn take_read(&mut self, catch_up: CatchUp, read: Read) -> Option<Pulled> {
        let (partition, events, place) = match read {
            Read::Gap(reason) => return Some(self.go_to_the_head(reason)),
            Read::Events(partition, events, place) => (partition, events, Arc::new(place)),
        };
        self.place = place.clone();
        if !self.enter_ring() {
            self.read_log(Some(catch_up));
        }
        let parcel = Parcel::new((0, Instant::now()), partition, events, place);
        (!parcel.events.is_empty()).then(|| Pulled::Events(Arc::new(parcel)))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let standing_at = self.is_live().then_some(self.seq);
        self.feed.leave(&self.group, self.member, standing_at);
    }
}
