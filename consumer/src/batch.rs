//! The batch being gathered: which records, and where each partition stands before and after them.
//!
//! A pure state machine: no clock, no I/O.

use std::collections::HashMap;

use pulsestream_shared::codec::{Accepted, Malformed, decode, trace_of};
use pulsestream_shared::dead_letter::replayed;
use pulsestream_shared::event::{ClientId, EventId};
use pulsestream_shared::log::{Offset, Partition, Record};
use pulsestream_shared::store::{
    DeadLetter, DeadReason, LetterPlace, Progress, StoreBatch, StoreRow,
};
use pulsestream_shared::traces::TraceParent;

/// Records on their way into one transaction.
#[derive(Default)]
pub(crate) struct Batch {
    records: Vec<Record>,
    decoded: Vec<Result<Accepted, Malformed>>,
    bytes: usize,
    from: HashMap<Partition, Progress>,
    to: HashMap<Partition, Progress>,
}

impl Batch {
    /// Adds records of one partition that stands at `place`; returns where it stands after them.
    /// Records below `place` are left out: they are settled already.
    pub(crate) fn add(&mut self, place: Progress, records: Vec<Record>) -> Progress {
        let mut after = place;
        for record in records.into_iter().filter(|record| record.offset >= place.next) {
            let decoded = decode(&record);
            after.next = record.offset + 1;
            after.last_id = id_of(&decoded);
            self.bytes += record.value.len();
            self.decoded.push(decoded);
            self.records.push(record);
        }
        if after.next > place.next {
            self.from.entry(place.partition).or_insert(place);
            self.to.insert(place.partition, after);
        }
        after
    }

    /// Forgets the records of a partition: another consumer has it now.
    pub(crate) fn remove(&mut self, partition: Partition) {
        self.from.remove(&partition);
        self.to.remove(&partition);
        let keep: Vec<_> =
            self.records.iter().map(|record| record.partition != partition).collect();
        let mut kept = keep.iter();
        self.decoded.retain(|_| kept.next().copied().unwrap_or(false));
        self.records.retain(|record| record.partition != partition);
        self.bytes = self.records.iter().map(|record| record.value.len()).sum();
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Bytes of values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the partitions of the batch stand before it.
    pub(crate) fn starts(&self) -> impl Iterator<Item = &Progress> {
        self.from.values()
    }

    /// Where the partitions of the batch stand after it.
    pub(crate) fn ends(&self) -> impl Iterator<Item = &Progress> {
        self.to.values()
    }

    /// The clients of the events.
    pub(crate) fn clients(&self) -> impl Iterator<Item = ClientId> {
        self.decoded.iter().flatten().map(|accepted| accepted.client)
    }

    /// When the events were accepted, unix microseconds. Replays are left out: they waited for a person.
    pub(crate) fn received_at_us(&self) -> impl Iterator<Item = i64> {
        let fresh = self.decoded.iter().flatten().filter(|accepted| !accepted.replay);
        fresh.map(|accepted| accepted.received_at_us)
    }

    /// The spans that sent the records, of those whose request was traced.
    pub(crate) fn traces(&self) -> impl Iterator<Item = TraceParent> {
        self.records.iter().filter_map(trace_of)
    }

    /// The records by place.
    pub(crate) fn by_place(&self) -> HashMap<(Partition, Offset), &Record> {
        self.records.iter().map(|record| ((record.partition, record.offset), record)).collect()
    }

    /// What the store is asked to do; `exists` tells which clients do.
    pub(crate) fn to_store<'a>(
        &self,
        group: &'a str,
        exists: impl Fn(ClientId) -> bool,
    ) -> StoreBatch<'a> {
        let mut partitions: Vec<_> = self.from.values().collect();
        // Always in one order, so that two writers cannot wait for each other's rows.
        partitions.sort_unstable_by_key(|place| place.partition);
        let mut batch = StoreBatch {
            group,
            from: partitions.iter().map(|place| **place).collect(),
            to: partitions.iter().filter_map(|p| self.to.get(&p.partition)).copied().collect(),
            rows: Vec::with_capacity(self.records.len()),
            dead: Vec::new(),
        };
        for (record, decoded) in self.records.iter().zip(&self.decoded) {
            match decoded {
                Ok(accepted) if exists(accepted.client) => batch.rows.push(row(record, accepted)),
                Ok(accepted) => batch.dead.push(unknown_client(record, accepted)),
                Err(fault) => batch.dead.push(malformed(record, fault)),
            }
        }
        batch
    }
}

/// The id of an event or, as far as it can be read, of what was meant to be one.
pub(crate) fn id_of(decoded: &Result<Accepted, Malformed>) -> Option<EventId> {
    match decoded {
        Ok(accepted) => Some(accepted.event.id),
        Err(malformed) => malformed.id,
    }
}

fn row(record: &Record, accepted: &Accepted) -> StoreRow {
    StoreRow {
        event: accepted.event.clone(),
        client: accepted.client,
        received_at_us: accepted.received_at_us,
        partition: record.partition,
        offset: record.offset,
        unsure: accepted.unsure,
        replay: if accepted.replay { replay_of(record) } else { None },
    }
}

fn unknown_client(record: &Record, accepted: &Accepted) -> DeadLetter {
    DeadLetter {
        partition: record.partition,
        offset: record.offset,
        client: Some(accepted.client),
        id: Some(accepted.event.id),
        reason: DeadReason::UnknownClient,
        sqlstate: None,
        detail: format!("client {} does not exist", accepted.client),
        replay: replay_of(record),
    }
}

fn malformed(record: &Record, fault: &Malformed) -> DeadLetter {
    DeadLetter {
        partition: record.partition,
        offset: record.offset,
        client: fault.client,
        id: fault.id,
        reason: DeadReason::Malformed,
        sqlstate: None,
        detail: fault.detail.clone(),
        replay: replay_of(record),
    }
}

fn replay_of(record: &Record) -> Option<Box<LetterPlace>> {
    replayed(record).map(Box::new)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pulsestream_shared::log::Headers;
    use uuid::Uuid;

    use super::*;

    fn place(partition: Partition, next: Offset) -> Progress {
        Progress { partition, epoch: Uuid::from_u128(1), next, last_id: None }
    }

    fn poison(partition: Partition, offset: Offset) -> Record {
        Record {
            partition,
            offset,
            logged_at_ms: 0,
            key: None,
            value: Bytes::from_static(b"poison"),
            headers: Headers::default(),
        }
    }

    #[test]
    fn a_batch_spans_from_the_first_place_to_after_the_last_record_of_each_partition() {
        let mut batch = Batch::default();
        let after = batch.add(place(1, 5), vec![poison(1, 5), poison(1, 9)]);
        assert_eq!(after.next, 10);
        assert_eq!(batch.add(after, vec![poison(1, 10)]).next, 11);
        batch.add(place(0, 0), vec![poison(0, 3)]);
        let to_store = batch.to_store("g", |_| true);
        let nexts =
            |places: &[Progress]| places.iter().map(|p| (p.partition, p.next)).collect::<Vec<_>>();
        assert_eq!(nexts(&to_store.from), [(0, 0), (1, 5)]);
        assert_eq!(nexts(&to_store.to), [(0, 4), (1, 11)]);
        assert_eq!(to_store.dead.len(), 4);
        assert_eq!(batch.bytes(), 24);
    }

    #[test]
    fn records_below_the_place_are_left_out() {
        let mut batch = Batch::default();
        let after = batch.add(place(1, 5), vec![poison(1, 3), poison(1, 4)]);
        assert_eq!((after.next, batch.len()), (5, 0));
        assert_eq!(batch.starts().count(), 0);
    }

    #[test]
    fn a_removed_partition_leaves_nothing_behind() {
        let mut batch = Batch::default();
        batch.add(place(0, 0), vec![poison(0, 0)]);
        batch.add(place(1, 0), vec![poison(1, 0), poison(1, 1)]);
        batch.remove(1);
        let to_store = batch.to_store("g", |_| true);
        assert_eq!((to_store.from.len(), to_store.dead.len(), batch.bytes()), (1, 1, 6));
    }
}
