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
use crate::parcel::Parcel;
use crate::range::LiveEvent;

/// What a step weighs besides its events' JSON, about.
const STEP_BYTES: usize = 320;
/// What an event weighs besides its JSON, about.
const EVENT_BYTES: usize = 160;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) bytes: usize,
    pub(crate) age: Duration,
}

pub(crate) struct Ring {
    kept: Kept,
    steps: VecDeque<Arc<Parcel>>,
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
        Self { kept, steps: VecDeque::new(), bytes: 0, base: here.clone(), head: here }
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
        while self.steps.front().is_some_and(|oldest| self.is_over(oldest, now)) {
            let Some(oldest) = self.steps.pop_front() else { break };
            self.bytes -= weight(&oldest);
            self.base = (oldest.seq, oldest.place.clone());
        }
        step
    }

    fn is_over(&self, oldest: &Parcel, now: Instant) -> bool {
        self.bytes > self.kept.bytes || now.duration_since(oldest.at) > self.kept.age
    }

    /// The steps that follow `seq`, `most` of them; `None` when the first of them is kept no more.
    pub(crate) fn after(&self, seq: u64, most: usize) -> Option<Vec<Arc<Parcel>>> {
        let skipped = usize::try_from(seq.checked_sub(self.base.0)?).ok()?;
        Some(self.steps.iter().skip(skipped).take(most).cloned().collect())
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
    use uuid::Uuid;

    use super::*;
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
        let after = |seq| ring.after(seq, 9).map(|steps| steps.len());
        assert_eq!((after(6), after(7), after(8), after(9)), (None, Some(2), Some(1), Some(0)));
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
        assert!(small.after(8, 9).is_none() && small.step_before(&place(&[6, 5])).is_none());
        let mut old = ring(10_000);
        let now = Instant::now();
        old.push(0, 5, Vec::new(), now);
        old.push(0, 6, Vec::new(), now + Duration::from_secs(121));
        assert_eq!(old.base().0, 8);
    }
}
