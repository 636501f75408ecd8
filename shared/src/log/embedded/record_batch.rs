//! Record batches: what one commit gives a partition, packed into one row of `records`.
//!
//! A row costs the file's thread several times what its bytes cost, and each record of a commit would be
//! one. The row's `offset` is that of its first record, `count` how many it stands for. Packed record: key,
//! which may be none, value, headers ([`packed`](crate::log::packed)).
//!
//! Deleting below an offset within a batch moves `offset` and `count` and leaves the packed records: a row
//! stands for the **last** `count` of what it holds. A writer that is behind another meets its row at the
//! same `offset`, because both begin a batch at the next offset of the partition.

use bytes::{Bytes, BytesMut};

use super::group::Row;
use crate::log::packed::{pack_bytes, take_bytes};
use crate::log::{Headers, Offset, Partition, Record, Topic};

/// Records and bytes of one batch: whoever wants one record reads all of them.
const MAX_RECORDS: usize = 256;
const MAX_BYTES: usize = 64 << 10;

/// A row on its way to the file.
#[derive(Debug)]
pub(super) struct RecordBatch {
    pub(super) topic: Topic,
    pub(super) partition: Partition,
    /// Of the first record.
    pub(super) offset: Offset,
    pub(super) count: i64,
    pub(super) packed: Bytes,
}

/// Packs records that have their offsets; those of a partition stand together, in order.
pub(super) fn pack(rows: &[Row]) -> Vec<RecordBatch> {
    let mut batches = Vec::new();
    for partition in rows.chunk_by(|a, b| (a.topic, a.partition) == (b.topic, b.partition)) {
        let mut rest = partition;
        while let Some(first) = rest.first() {
            let mut packed = BytesMut::new();
            let mut count = 0;
            while let Some(row) = rest.get(count)
                && count < MAX_RECORDS
                && packed.len() < MAX_BYTES
            {
                push(&mut packed, row);
                count += 1;
            }
            batches.push(RecordBatch {
                topic: first.topic,
                partition: first.partition,
                offset: first.offset,
                count: count as i64,
                packed: packed.freeze(),
            });
            rest = rest.get(count..).unwrap_or_default();
        }
    }
    batches
}

fn push(packed: &mut BytesMut, row: &Row) {
    let record = &row.record;
    pack_bytes(packed, record.key.as_deref());
    pack_bytes(packed, Some(&record.value));
    pack_bytes(packed, Some(record.headers.as_bytes()));
}

/// The records a row stands for; `None` when it does not hold them.
pub(super) fn unpack(
    partition: Partition,
    offset: Offset,
    count: usize,
    logged_at_ms: i64,
    packed: Bytes,
) -> Option<Vec<Record>> {
    let mut records = Vec::with_capacity(count.min(MAX_RECORDS));
    let mut rest = &packed[..];
    while !rest.is_empty() {
        let key = take_bytes(&mut rest)?.map(|key| packed.slice_ref(key));
        let value = packed.slice_ref(take_bytes(&mut rest)??);
        let headers = Headers::from_bytes(packed.slice_ref(take_bytes(&mut rest)??));
        records.push(Record { partition, offset: 0, logged_at_ms, key, value, headers });
    }
    drop(records.drain(..records.len().checked_sub(count)?));
    for (record, offset) in records.iter_mut().zip(offset..) {
        record.offset = offset;
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use tokio::sync::oneshot;

    use super::super::group::{Group, NextOffsets};
    use super::*;
    use crate::log::NewRecord;

    fn placed(records: Vec<NewRecord>) -> Vec<Row> {
        let mut group = Group::default();
        group.add(Topic::Raw, records, 3, oneshot::channel().0);
        group.place(&mut NextOffsets { raw: vec![7, 0, 1_000], dlq: vec![] });
        group.rows
    }

    fn record() -> impl Strategy<Value = NewRecord> {
        let small = || vec(any::<u8>(), 0..40);
        let value = prop_oneof![20 => small(), 1 => vec(any::<u8>(), 30_000..70_000)];
        (0..3_i32, proptest::option::of(small()), value, small()).prop_map(
            |(partition, key, value, headers)| NewRecord {
                partition,
                key: key.map(Bytes::from),
                value: value.into(),
                headers: Headers::from_bytes(headers.into()),
                outcomes: Vec::new(),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_in_order_and_in_bounds(records in vec(record(), 0..700)) {
            let rows = placed(records);
            let mut unpacked = Vec::new();
            for batch in pack(&rows) {
                let count = usize::try_from(batch.count).unwrap();
                prop_assert!((1..=MAX_RECORDS).contains(&count));
                prop_assert!(count == 1 || batch.packed.len() < MAX_BYTES + 71_000);
                let records = unpack(batch.partition, batch.offset, count, 5, batch.packed).unwrap();
                prop_assert_eq!(records.len(), count);
                unpacked.extend(records);
            }
            prop_assert_eq!(unpacked.len(), rows.len());
            for (row, record) in rows.into_iter().zip(unpacked) {
                let expected = row.into_record(5);
                prop_assert_eq!(expected.partition, record.partition);
                prop_assert_eq!(expected.offset, record.offset);
                prop_assert_eq!(expected.key, record.key);
                prop_assert_eq!(expected.value, record.value);
                prop_assert_eq!(expected.headers, record.headers);
            }
        }

        #[test]
        fn bytes_that_are_no_batch_are_none_and_nothing_panics(
            bytes in vec(any::<u8>(), 0..200), count in 0..5_usize,
        ) {
            let records = unpack(0, 0, count, 0, bytes.into());
            prop_assert!(records.is_none_or(|records| records.len() == count));
        }
    }

    #[test]
    fn a_row_stands_for_the_last_of_what_it_holds() {
        let records = ["a", "b", "c"].map(|value| NewRecord {
            partition: 0,
            key: None,
            value: value.into(),
            headers: Headers::default(),
            outcomes: Vec::new(),
        });
        let packed = pack(&placed(records.into()))[0].packed.clone();
        let left = unpack(0, 9, 1, 5, packed.clone()).unwrap();
        assert_eq!((left[0].offset, &left[0].value[..]), (9, &b"c"[..]));
        assert!(unpack(0, 7, 4, 5, packed).is_none());
    }
}
