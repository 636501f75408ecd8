//! What a member's thread and its owner share: the events on their way, the place of each partition,
//! commits not yet sent. No clock and no broker here; both sides call it under one lock.
//!
//! Invariants: nothing of a partition is queued unless it is assigned, announced to the owner, and was
//! given a place since; at most one announcement and one farewell a partition are queued, so the queue
//! is bounded by the partitions plus what the thread delivers (it stops fetching at [`Inbox::full`]).

use std::collections::{BTreeMap, VecDeque};

use crate::log::{LogEvent, Offset, Partition, Record};

/// The thread stops fetching at this many records waiting for the owner.
pub(super) const FULL_RECORDS: usize = 4_096;
/// And at this many bytes.
const FULL_BYTES: usize = 2 << 20;

/// Where a partition is to be read from, under which generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    /// Offset of the next record wanted.
    pub(super) place: Offset,
    /// Records fetched under another generation are not wanted any more.
    pub(super) generation: u64,
}

#[derive(Debug)]
struct Slot {
    /// The owner has been handed `Assigned`.
    announced: bool,
    /// `None` until a seek, and after the log turned out not to have the place.
    place: Option<Offset>,
    generation: u64,
    paused: bool,
}

#[derive(Debug)]
struct Queued {
    event: LogEvent,
    bytes: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    events: VecDeque<Queued>,
    records: usize,
    bytes: usize,
    slots: BTreeMap<Partition, Slot>,
    generations: u64,
    moved: bool,
    commits: BTreeMap<Partition, Offset>,
    /// The owner is gone.
    pub(super) closed: bool,
    /// The member ended and why.
    pub(super) failed: Option<String>,
}

/// The owner's side.
impl Inbox {
    /// Takes the next event.
    pub(super) fn pop(&mut self) -> Option<LogEvent> {
        let Queued { event, bytes } = self.events.pop_front()?;
        self.forget(&event, bytes);
        if let LogEvent::Assigned(partitions) = &event {
            for partition in partitions {
                if let Some(slot) = self.slots.get_mut(partition) {
                    slot.announced = true;
                }
            }
        }
        Some(event)
    }

    /// Gives a partition a place. Ignored unless it is assigned and the owner knows.
    pub(super) fn seek(&mut self, partition: Partition, place: Offset) {
        let Some(slot) = self.slots.get_mut(&partition).filter(|slot| slot.announced) else {
            return;
        };
        self.generations += 1;
        slot.generation = self.generations;
        slot.place = Some(place);
        self.moved = true;
        self.drop_queued(partition);
    }

    /// Stops or goes on fetching.
    pub(super) fn set_paused(&mut self, partitions: &[Partition], paused: bool) {
        for partition in partitions {
            if let Some(slot) = self.slots.get_mut(partition) {
                slot.paused = paused;
            }
        }
    }

    /// Notes how far the group got.
    pub(super) fn commit(&mut self, partition: Partition, next: Offset) {
        if self.slots.contains_key(&partition) {
            self.commits.insert(partition, next);
        }
    }
}

/// The thread's side.
impl Inbox {
    /// New partitions are ours.
    pub(super) fn assigned(&mut self, partitions: Vec<Partition>) {
        for &partition in &partitions {
            self.generations += 1;
            let generation = self.generations;
            let slot = Slot { announced: false, place: None, generation, paused: false };
            self.slots.insert(partition, slot);
        }
        if !partitions.is_empty() {
            self.push(LogEvent::Assigned(partitions), 0);
        }
    }

    /// Partitions are ours no longer: what is queued of them goes, and one the owner never heard of is
    /// not announced at all.
    pub(super) fn revoked(&mut self, partitions: &[Partition]) {
        let mut known = Vec::new();
        for &partition in partitions {
            self.commits.remove(&partition);
            let Some(slot) = self.slots.remove(&partition) else { continue };
            self.drop_queued(partition);
            if slot.announced {
                known.push(partition);
            } else {
                self.withdraw(partition);
            }
        }
        if !known.is_empty() {
            self.push(LogEvent::Revoked(known), 0);
        }
    }

    /// Queues records, unless the partition was revoked or sought meanwhile.
    pub(super) fn deliver(
        &mut self,
        partition: Partition,
        generation: u64,
        records: Vec<Record>,
        bytes: usize,
    ) {
        let Some(slot) = self.slots.get_mut(&partition) else { return };
        let Some(last) = records.last() else { return };
        if slot.generation != generation || slot.place.is_none() {
            return;
        }
        slot.place = Some(last.offset + 1);
        self.push(LogEvent::Records(partition, records), bytes);
    }

    /// The log does not have the partition's place: nothing comes of it until a seek.
    pub(super) fn out_of_range(&mut self, partition: Partition, generation: u64) {
        let slot = self.slots.get_mut(&partition);
        let Some(slot) = slot.filter(|slot| slot.generation == generation) else { return };
        if slot.place.take().is_some() {
            self.push(LogEvent::OutOfRange(Some(partition)), 0);
        }
    }

    /// Every partition that has a place.
    pub(super) fn starts(&self) -> BTreeMap<Partition, Start> {
        let start = |slot: &Slot| {
            let generation = slot.generation;
            slot.place.map(|place| Start { place, generation })
        };
        self.slots.iter().filter_map(|(&p, slot)| Some((p, start(slot)?))).collect()
    }

    /// Whether the owner moved a partition since the last call.
    pub(super) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Whether a partition is not to be fetched, by the owner's wish.
    pub(super) fn paused(&self, partition: Partition) -> bool {
        self.slots.get(&partition).is_some_and(|slot| slot.paused)
    }

    /// Commits to send now.
    pub(super) fn take_commits(&mut self) -> BTreeMap<Partition, Offset> {
        std::mem::take(&mut self.commits)
    }

    /// Time to stop fetching.
    pub(super) fn full(&self) -> bool {
        self.records >= FULL_RECORDS || self.bytes >= FULL_BYTES
    }

    /// Time to fetch again. Half of full, because librdkafka throws away what it fetched ahead whenever
    /// a partition is paused.
    pub(super) fn roomy(&self) -> bool {
        self.records <= FULL_RECORDS / 2 && self.bytes <= FULL_BYTES / 2
    }

    fn push(&mut self, event: LogEvent, bytes: usize) {
        if let LogEvent::Records(_, records) = &event {
            self.records += records.len();
        }
        self.bytes += bytes;
        self.events.push_back(Queued { event, bytes });
    }

    fn forget(&mut self, event: &LogEvent, bytes: usize) {
        if let LogEvent::Records(_, records) = event {
            self.records -= records.len();
        }
        self.bytes -= bytes;
    }

    /// Drops what is queued of the partition's records.
    fn drop_queued(&mut self, partition: Partition) {
        let of_partition = |event: &LogEvent| match event {
            LogEvent::Records(of, _) => *of == partition,
            LogEvent::OutOfRange(of) => *of == Some(partition),
            LogEvent::Assigned(_) | LogEvent::Revoked(_) => false,
        };
        let events = std::mem::take(&mut self.events);
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            events.into_iter().partition(|queued| of_partition(&queued.event));
        self.events = kept;
        for Queued { event, bytes } in gone {
            self.forget(&event, bytes);
        }
    }

    /// Takes the partition out of the announcement that is still queued.
    fn withdraw(&mut self, partition: Partition) {
        for queued in &mut self.events {
            if let LogEvent::Assigned(partitions) = &mut queued.event {
                partitions.retain(|of| *of != partition);
            }
        }
        self.events.retain(|queued| {
            !matches!(&queued.event, LogEvent::Assigned(partitions) if partitions.is_empty())
        });
    }
}

#[cfg(test)]
#[path = "tests/inbox.rs"]
mod tests;
