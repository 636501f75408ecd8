//! The batch being gathered: which records, and where each partition stands before and after them.
//!
//! A pure state machine: no clock, no I/O.

use std::borrow::Cow;

use pulsestream_shared::codec::{Accepted, Malformed, decode, trace_of};
use pulsestream_shared::dead_letter::replayed;
use pulsestream_shared::event::{ClientId, EventId};
use pulsestream_shared::log::{Partition, Record, STORE_GROUP};
use pulsestream_shared::store::{
    DeadLetter, DeadReason, LetterPlace, Progress, StoreBatch, StoreRow,
};
use pulsestream_shared::traces::TraceParent;

/// Records on their way into one transaction.
pub(crate) struct Batch {
    records: Vec<Record>,
    /// What the store is asked to do if all clients exist, which is almost always: made once, while another
    /// batch is written. Places are in the order of their partitions, so that two writers cannot wait for
    /// each other's rows.
    to_store: StoreBatch<'static>,
    /// Those of the rows, each once.
    clients: Vec<ClientId>,
    bytes: usize,
}

impl Default for Batch {
    fn default() -> Self {
        let (from, to, rows, dead) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let to_store = StoreBatch { group: STORE_GROUP, from, to, rows, dead };
        Self { records: Vec::new(), to_store, clients: Vec::new(), bytes: 0 }
    }
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
            match decoded {
                Ok(accepted) => {
                    if !self.clients.contains(&accepted.client) {
                        self.clients.push(accepted.client);
                    }
                    self.to_store.rows.push(row(&record, accepted));
                }
                Err(fault) => self.to_store.dead.push(malformed(&record, fault)),
            }
            self.records.push(record);
        }
        if after.next > place.next {
            let StoreBatch { from, to, .. } = &mut self.to_store;
            let at = |places: &[Progress]| {
                places.binary_search_by_key(&place.partition, |place| place.partition)
            };
            match at(to) {
                Ok(at) => to.splice(at..=at, [after]).for_each(drop),
                Err(at) => {
                    from.insert(at, place);
                    to.insert(at, after);
                }
            }
        }
        after
    }

    /// Forgets the records of a partition: another consumer has it now. Returns how many.
    pub(crate) fn remove(&mut self, partition: Partition) -> usize {
        let before = self.records.len();
        self.records.retain(|record| record.partition != partition);
        self.to_store.rows.retain(|row| row.partition != partition);
        self.to_store.dead.retain(|letter| letter.partition != partition);
        self.to_store.from.retain(|place| place.partition != partition);
        self.to_store.to.retain(|place| place.partition != partition);
        self.bytes = self.records.iter().map(|record| record.value.len()).sum();
        before - self.records.len()
    }

    /// Without records, and with the room it has for them: made anew, each batch would outgrow its lists a dozen
    /// times.
    pub(crate) fn emptied(mut self) -> Self {
        self.records.clear();
        self.to_store.rows.clear();
        self.to_store.dead.clear();
        self.to_store.from.clear();
        self.to_store.to.clear();
        self.clients.clear();
        Self { bytes: 0, ..self }
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
    pub(crate) fn starts(&self) -> &[Progress] {
        &self.to_store.from
    }

    /// Where the partitions of the batch stand after it.
    pub(crate) fn ends(&self) -> &[Progress] {
        &self.to_store.to
    }

    /// The clients of the events.
    pub(crate) fn clients(&self) -> &[ClientId] {
        &self.clients
    }

    /// When the events were accepted, unix microseconds. Replays are left out: they waited for a person.
    pub(crate) fn received_at_us(&self) -> impl Iterator<Item = i64> {
        let fresh = self.to_store.rows.iter().filter(|row| row.replay.is_none());
        fresh.map(|row| row.received_at_us)
    }

    /// The spans that sent the records, of those whose request was traced.
    pub(crate) fn traces(&self) -> impl Iterator<Item = TraceParent> {
        self.records.iter().filter_map(trace_of)
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    /// What the store is asked to do; `exists` tells which clients do.
    pub(crate) fn to_store(
        &self,
        exists: impl Fn(ClientId) -> bool,
    ) -> Cow<'_, StoreBatch<'static>> {
        if self.clients.iter().all(|client| exists(*client)) {
            return Cow::Borrowed(&self.to_store);
        }
        let mut batch = self.to_store.clone();
        let strays = batch.rows.extract_if(.., |row| !exists(row.client));
        batch.dead.extend(strays.map(unknown_client));
        Cow::Owned(batch)
    }
}

/// The id of an event or, as far as it can be read, of what was meant to be one.
pub(crate) fn id_of(decoded: &Result<Accepted, Malformed>) -> Option<EventId> {
    match decoded {
        Ok(accepted) => Some(accepted.event.id),
        Err(malformed) => malformed.id,
    }
}

fn row(record: &Record, accepted: Accepted) -> StoreRow {
    StoreRow {
        event: accepted.event,
        client: accepted.client,
        received_at_us: accepted.received_at_us,
        partition: record.partition,
        offset: record.offset,
        unsure: accepted.unsure,
        replay: if accepted.replay { replay_of(record) } else { None },
    }
}

fn unknown_client(row: StoreRow) -> DeadLetter {
    DeadLetter {
        partition: row.partition,
        offset: row.offset,
        client: Some(row.client),
        id: Some(row.event.id),
        reason: DeadReason::UnknownClient,
        sqlstate: None,
        detail: format!("client {} does not exist", row.client),
        replay: row.replay,
    }
}

fn malformed(record: &Record, fault: Malformed) -> DeadLetter {
    DeadLetter {
        partition: record.partition,
        offset: record.offset,
        client: fault.client,
        id: fault.id,
        reason: DeadReason::Malformed,
        sqlstate: None,
        detail: fault.detail,
        replay: replay_of(record),
    }
}

fn replay_of(record: &Record) -> Option<Box<LetterPlace>> {
    replayed(record).map(Box::new)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pulsestream_shared::log::{Headers, Offset};
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
        let to_store = batch.to_store(|_| true);
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
        assert!(batch.starts().is_empty());
    }

    #[test]
    fn a_removed_partition_leaves_nothing_behind() {
        let mut batch = Batch::default();
        batch.add(place(0, 0), vec![poison(0, 0)]);
        batch.add(place(1, 0), vec![poison(1, 0), poison(1, 1)]);
        assert_eq!(batch.remove(1), 2);
        let to_store = batch.to_store(|_| true);
        assert_eq!((to_store.from.len(), to_store.dead.len(), batch.bytes()), (1, 1, 6));
    }
}
