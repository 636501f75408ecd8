//! Messages of librdkafka become our records here.
//!
//! The records of one batch share one buffer: two allocations a batch instead of four a record. A record
//! kept alive therefore keeps its whole batch (at most about a mebibyte) alive.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers as _, Message as _};

use crate::log::{Headers, Offset, Partition, Record, headers};

/// Records of one partition being gathered.
#[derive(Default)]
pub(super) struct Batch {
    buffer: BytesMut,
    entries: Vec<Entry>,
    value_bytes: usize,
}

struct Entry {
    offset: Offset,
    logged_at_ms: i64,
    key_length: Option<usize>,
    value_length: usize,
    headers_length: usize,
}

impl Batch {
    /// Copies a message out of librdkafka's buffers.
    pub(super) fn push(&mut self, message: &BorrowedMessage<'_>) {
        let value = message.payload().unwrap_or_default();
        let key = message.key();
        self.buffer.extend_from_slice(value);
        self.buffer.extend_from_slice(key.unwrap_or_default());
        let before = self.buffer.len();
        if let Some(found) = message.headers() {
            pack_headers(found, &mut self.buffer);
        }
        self.value_bytes += value.len();
        self.entries.push(Entry {
            offset: message.offset(),
            logged_at_ms: message.timestamp().to_millis().unwrap_or(0),
            key_length: key.map(<[u8]>::len),
            value_length: value.len(),
            headers_length: self.buffer.len() - before,
        });
    }

    /// Records gathered.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all values.
    pub(super) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Bytes held in memory.
    pub(super) fn held_bytes(&self) -> usize {
        self.buffer.len() + self.entries.len() * size_of::<Record>()
    }

    /// The records, in the order they were pushed.
    pub(super) fn finish(self, partition: Partition) -> Vec<Record> {
        let mut rest = self.buffer.freeze();
        let records = self.entries.into_iter().map(|entry| {
            let value = rest.split_to(entry.value_length);
            let key = entry.key_length.map(|length| rest.split_to(length));
            let packed = rest.split_to(entry.headers_length);
            let headers =
                if packed.is_empty() { Headers::default() } else { Headers::from_bytes(packed) };
            let Entry { offset, logged_at_ms, .. } = entry;
            Record { partition, offset, logged_at_ms, key, value: unshared(value), headers }
        });
        records.collect()
    }
}

/// An empty slice needs no share in the buffer.
fn unshared(bytes: Bytes) -> Bytes {
    if bytes.is_empty() { Bytes::new() } else { bytes }
}

fn pack_headers(found: &BorrowedHeaders, buffer: &mut BytesMut) {
    for index in 0..found.count() {
        // The client library panics on a name that is not UTF-8, and any producer may write one. Such a
        // header has no place in our list (no name of ours is spelled so) and is left out.
        let header = catch_unwind(AssertUnwindSafe(|| found.try_get(index)));
        if let Ok(Some(header)) = header {
            headers::pack(buffer, header.key, header.value);
        }
    }
}
