//! What the hub showed lately, step by step: a pure state machine.
//!
//! A step covers a part of one partition. Steps of all partitions stand in one row and are numbered, so
//! that a number names a place in every partition: what the hub had shown after that step. A subscriber
//! that comes back finds its events here without a read of the log, and one that stands at a step shares
//! its place, and its frames, with all others that do.
//!
//! Bounded in bytes and in time; what is dropped is in the log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::log::{Offset, Partition};
use tokio::time::Instant;

use crate::cursor::Cursor;
use crate::digest::Digest;
use crate::filter::Filter;
use crate::parcel::Parcel;
use crate::range::LiveEvent;

/// What a step weighs besides its events' JSON, about.
const STEP_BYTES: usize = 320;
/// What an event weighs besides its JSON, about.
const EVENT_BYTES: usize = 160;

/// Steps of one run at most, and events of one that takes in another step.
const RUN_STEPS: u64 = 64;
const RUN_EVENTS: usize = 128;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) bytes: usize,
    pub(crate) age: Duration,
}

/// Steps that follow each other, as one to pass over.
struct Run {
    first: u64,
    last: u64,
    events: usize,
    digest: Digest,
}

pub(crate) struct Ring {
    kept: Kept,
    steps: VecDeque<Arc<Parcel>>,
    /// Every step kept is of one.
    runs: VecDeque<Run>,
    bytes: usize,
    /// The step before the oldest kept, and the place after it.
    base: (u64, Arc<Cursor>),
    /// The newest step and the place after it.
    head: (u64, Arc<Cursor>),
}

impl Ring {
    /// Begins at a place, numbered from `seq` on.
    pub(crate) fn new(seq: u64, place: Cursor, kept: Kept) -> Self {
        let here = (seq, Arc::new(place));
        let (steps, runs) = (VecDeque::new(), VecDeque::new());
        Self { kept, steps, runs, bytes: 0, base: here.clone(), head: here }
    }

    pub(crate) fn base(&self) -> &(u64, Arc<Cursor>) {
        &self.base
    }

    pub(crate) fn head(&self) -> &(u64, Arc<Cursor>) {
        &self.head
    }

    /// The partition is shown up to `last`, these events of it were new.
    pub(crate) fn push(
        &mut self,
        partition: Partition,
        last: Offset,
        events: Vec<LiveEvent>,
        now: Instant,
    ) -> Arc<Parcel> {
        let next = self.head.1.at(partition).max(last + 1);
        let place = Arc::new(self.head.1.with(partition, next));
        self.add(Parcel::new((self.head.0 + 1, now), partition, events, place))
    }

    /// Of the partition everything below `first` that was not shown is gone for good.
    pub(crate) fn push_lost(
        &mut self,
        partition: Partition,
        first: Offset,
        now: Instant,
    ) -> Arc<Parcel> {
        let next = self.head.1.at(partition).max(first);
        let place = Arc::new(self.head.1.with(partition, next));
        self.add(Parcel::lost((self.head.0 + 1, now), partition, place))
    }

    fn add(&mut self, step: Parcel) -> Arc<Parcel> {
        let (now, step) = (step.at, Arc::new(step));
        self.head = (step.seq, step.place.clone());
        self.bytes += weight(&step);
        self.steps.push_back(step.clone());
        self.add_to_run(&step);
        while self.steps.front().is_some_and(|oldest| self.is_over(oldest, now)) {
            let Some(oldest) = self.steps.pop_front() else { break };
            self.bytes -= weight(&oldest);
            self.base = (oldest.seq, oldest.place.clone());
        }
        while self.runs.front().is_some_and(|oldest| oldest.last <= self.base.0) {
            self.runs.pop_front();
        }
        step
    }

    fn add_to_run(&mut self, step: &Parcel) {
        let fits = |run: &Run| run.events < RUN_EVENTS && step.seq - run.first < RUN_STEPS;
        if !self.runs.back().is_some_and(fits) {
            let digest = Digest::default();
            self.runs.push_back(Run { first: step.seq, last: step.seq, events: 0, digest });
        }
        if let Some(run) = self.runs.back_mut() {
            run.last = step.seq;
            run.events += step.events.len();
            run.digest.add(step);
        }
    }

    fn is_over(&self, oldest: &Parcel, now: Instant) -> bool {
        self.bytes > self.kept.bytes || now.duration_since(oldest.at) > self.kept.age
    }

    /// The steps that follow `seq`, as far as they are looked through at once; `None` when the first of
    /// them is kept no more. Those that have nothing for the filter are passed over but for the last, which
    /// tells the place after them.
    pub(crate) fn after(&self, seq: u64, filter: &Filter) -> Option<Vec<Arc<Parcel>>> {
        let index = |seq: u64| usize::try_from(seq.checked_sub(self.base.0)?).ok();
        let (mut from, mut to) = (index(seq)?, self.steps.len());
        let next = self.runs.partition_point(|run| run.last <= seq);
        for run in self.runs.range(next..) {
            to = index(run.last)?;
            if run.digest.may_concern(filter) {
                break;
            }
            from = to - 1;
        }
        Some(self.steps.iter().skip(from).take(to.saturating_sub(from)).cloned().collect())
    }

    /// The newest step whose place is nowhere beyond that one: who reads on from there, leaving out what
    /// lies below its place, misses nothing. `None` when it is kept no more.
    pub(crate) fn step_before(&self, place: &Cursor) -> Option<(u64, Arc<Cursor>)> {
        let below = self.steps.partition_point(|step| place.covers(&step.place));
        match below.checked_sub(1).and_then(|index| self.steps.get(index)) {
            Some(step) => Some((step.seq, step.place.clone())),
            None => place.covers(&self.base.1).then(|| self.base.clone()),
        }
    }
}

fn weight(step: &Parcel) -> usize {
    STEP_BYTES + step.bytes() + step.events.len() * EVENT_BYTES
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::event::ClientId;
    use uuid::Uuid;

    use super::*;
    use crate::filter::Audience;
    use crate::range::tests::event;

    fn place(next: &[Offset]) -> Cursor {
        Cursor { epoch: Uuid::from_u128(1), next: next.into() }
    }

    fn ring(bytes: usize) -> Ring {
        Ring::new(7, place(&[5, 5]), Kept { bytes, age: Duration::from_secs(120) })
    }

    fn push(ring: &mut Ring, partition: Partition, offset: Offset) {
        ring.push(partition, offset, vec![event(offset, 1)], Instant::now());
    }

    #[test]
    fn a_step_names_a_place_in_every_partition() {
        let mut ring = ring(10_000);
        push(&mut ring, 0, 5);
        push(&mut ring, 1, 7);
        assert_eq!(ring.head(), &(9, Arc::new(place(&[6, 8]))));
        let after = |seq| ring.after(seq, &asking(7)).map(|steps| steps.len());
        assert_eq!((after(6), after(7), after(8), after(9)), (None, Some(2), Some(1), Some(0)));
    }

    fn asking(client: i32) -> Filter {
        Filter::parse(Audience::Client(ClientId(client)), "").unwrap()
    }

    #[test]
    fn runs_that_have_nothing_for_a_subscriber_are_passed_over() {
        let mut ring = ring(1_000_000);
        (5..505).for_each(|offset| push(&mut ring, 0, offset));
        let seqs = |ring: &Ring, seq, client| {
            let steps = ring.after(seq, &asking(client)).unwrap();
            steps.iter().map(|step| step.seq).collect::<Vec<_>>()
        };
        assert_eq!(seqs(&ring, 20, 7), (21..=71).collect::<Vec<_>>(), "to the end of the run");
        assert_eq!(seqs(&ring, 71, 7), (72..=135).collect::<Vec<_>>());
        assert_eq!(seqs(&ring, 20, 8), [507], "the newest alone");
        assert_eq!(seqs(&ring, 507, 8), [0; 0]);
        push(&mut ring, 0, 505);
        ring.push_lost(1, 9, Instant::now());
        assert_eq!(seqs(&ring, 20, 8).last(), Some(&509), "a hole concerns everybody");
    }

    #[test]
    fn a_place_is_found_at_the_newest_step_that_is_nowhere_beyond_it() {
        let mut ring = ring(10_000);
        for (partition, offset) in [(0, 5), (1, 5), (0, 6), (1, 6)] {
            push(&mut ring, partition, offset);
        }
        let found = |next: &[Offset]| ring.step_before(&place(next)).map(|(seq, _)| seq);
        assert_eq!(found(&[5, 5]), Some(7));
        assert_eq!(found(&[6, 9]), Some(9));
        assert_eq!(found(&[9, 6]), Some(10));
        assert_eq!(found(&[9, 9]), Some(11));
        assert_eq!(found(&[4, 9]), None);
    }

    #[test]
    fn what_is_too_much_or_too_old_is_dropped_from_the_old_end() {
        let mut small = ring(1_100);
        (5..9).for_each(|offset| push(&mut small, 0, offset));
        assert_eq!(small.base(), &(9, Arc::new(place(&[7, 5]))));
        assert!(
            small.after(8, &asking(7)).is_none() && small.step_before(&place(&[6, 5])).is_none()
        );
        let mut old = ring(10_000);
        let now = Instant::now();
        old.push(0, 5, Vec::new(), now);
        old.push(0, 6, Vec::new(), now + Duration::from_secs(121));
        assert_eq!(old.base().0, 8);
    }
}
