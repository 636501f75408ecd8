//! The newest events in memory, so that whoever reads at the end of the log (the store's consumer, the
//! live relay) never touches the file. Holds committed records alone; bounded in bytes.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::locked;
use crate::log::{Offset, Partition, ReadLimit, Record};

/// Rough cost of a record beside its bytes.
const OVERHEAD_BYTES: usize = 160;

#[derive(Debug)]
pub(super) struct Tail {
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Per partition, without holes, ending at the partition's `next`.
    partitions: Vec<VecDeque<Record>>,
    /// Partitions in the order in which their records came: the front one is dropped first.
    order: VecDeque<Partition>,
    bytes: usize,
}

impl Tail {
    pub(super) fn new(partitions: u32, max_bytes: usize) -> Self {
        let partitions = (0..partitions).map(|_| VecDeque::new()).collect();
        Self { max_bytes, state: Mutex::new(State { partitions, ..State::default() }) }
    }

    /// Adds committed records; within a partition they must follow what is here.
    pub(super) fn push(&self, records: impl Iterator<Item = Record>) {
        let mut state = locked(&self.state);
        for record in records {
            let bytes = cost(&record);
            let Some(partition) = queue(&mut state.partitions, record.partition) else { continue };
            partition.push_back(record.clone());
            state.order.push_back(record.partition);
            state.bytes += bytes;
        }
        while state.bytes > self.max_bytes {
            let Some(partition) = state.order.pop_front() else { break };
            let dropped = queue(&mut state.partitions, partition).and_then(VecDeque::pop_front);
            state.bytes -= dropped.as_ref().map_or(0, cost);
        }
    }

    /// Forgets everything: somebody else wrote to the file, so what is here may not be its end.
    pub(super) fn clear(&self) {
        let mut state = locked(&self.state);
        state.partitions.iter_mut().for_each(VecDeque::clear);
        state.order.clear();
        state.bytes = 0;
    }

    /// Records from `from` on; `None` when the place is older than what is here.
    pub(super) fn read(
        &self,
        partition: Partition,
        from: Offset,
        limit: ReadLimit,
    ) -> Option<Vec<Record>> {
        let state = locked(&self.state);
        let records = state.partitions.get(usize::try_from(partition).ok()?)?;
        let first = records.front()?.offset;
        let skip = usize::try_from(from.checked_sub(first)?).ok()?;
        let mut bytes = 0;
        let within = |record: &&Record| {
            let more = bytes < limit.bytes;
            bytes += record.value.len();
            more
        };
        Some(records.iter().skip(skip).take(limit.records).take_while(within).cloned().collect())
    }
}

fn queue(
    partitions: &mut [VecDeque<Record>],
    partition: Partition,
) -> Option<&mut VecDeque<Record>> {
    partitions.get_mut(usize::try_from(partition).ok()?)
}

fn cost(record: &Record) -> usize {
    let key = record.key.as_ref().map_or(0, bytes::Bytes::len);
    OVERHEAD_BYTES + key + record.value.len() + record.headers.as_bytes().len()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::log::Headers;

    fn record(partition: Partition, offset: Offset) -> Record {
        let value = Bytes::from(vec![b'x'; 100 - OVERHEAD_BYTES % 100]);
        let headers = Headers::default();
        Record { partition, offset, logged_at_ms: 0, key: None, value, headers }
    }

    const MANY: ReadLimit = ReadLimit { records: 1_000, bytes: 1 << 20 };

    #[test]
    fn the_oldest_records_go_first_whatever_their_partition() {
        let one = cost(&record(0, 0));
        let tail = Tail::new(2, 4 * one);
        tail.push([record(0, 0), record(1, 7), record(0, 1)].into_iter());
        tail.push([record(1, 8), record(0, 2)].into_iter());
        assert!(tail.read(0, 0, MANY).is_none(), "dropped: ask the file");
        let offsets = |partition, from| {
            let records = tail.read(partition, from, MANY).unwrap();
            records.iter().map(|record| record.offset).collect::<Vec<_>>()
        };
        assert_eq!(offsets(0, 1), [1, 2]);
        assert_eq!(offsets(1, 7), [7, 8]);
        assert_eq!(offsets(1, 9), [0; 0], "at the end there is nothing more");
        let two = ReadLimit { records: 1, bytes: 1 << 20 };
        assert_eq!(tail.read(0, 1, two).unwrap().len(), 1);
        let first = ReadLimit { records: 9, bytes: 1 };
        assert_eq!(tail.read(0, 1, first).unwrap().len(), 1, "one record at least");
        tail.clear();
        assert!(tail.read(0, 2, MANY).is_none());
    }
}
