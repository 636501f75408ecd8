//! Messages of librdkafka become our records here.
//!
//! Records lie one behind the other in pieces of memory that are all of one size: one allocation for some two hundred
//! records instead of four for each, and what is freed fits what is wanted next. A record kept alive keeps its piece
//! alive.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::{Bytes, BytesMut};
use rdkafka::message::{BorrowedHeaders, BorrowedMessage, Headers as _, Message as _};

use crate::log::{Headers, Record, headers};

/// Of a piece, in bytes. A record for which that is not enough has one of its own.
const PIECE: usize = 64 << 10;

/// Where records are put that are copied out of librdkafka's buffers.
#[derive(Default)]
pub(super) struct Pieces {
    /// What is left of the newest.
    rest: BytesMut,
}

/// Records of one partition being gathered.
#[derive(Default)]
pub(super) struct Batch {
    records: Vec<Record>,
    value_bytes: usize,
    held_bytes: usize,
}

impl Pieces {
    fn record(&mut self, message: &BorrowedMessage<'_>) -> Record {
        let value = message.payload().unwrap_or_default();
        let key = message.key();
        let length = value.len() + key.map_or(0, <[u8]>::len);
        if self.rest.capacity() < length {
            self.rest = BytesMut::with_capacity(PIECE.max(length));
        }
        self.rest.extend_from_slice(value);
        self.rest.extend_from_slice(key.unwrap_or_default());
        if let Some(found) = message.headers() {
            // Moves the record to another piece when there is no room for them.
            pack_headers(found, &mut self.rest);
        }
        let mut packed = self.rest.split().freeze();
        Record {
            partition: message.partition(),
            offset: message.offset(),
            logged_at_ms: message.timestamp().to_millis().unwrap_or(0),
            value: unshared(packed.split_to(value.len())),
            key: key.map(|key| packed.split_to(key.len())),
            headers: if packed.is_empty() {
                Headers::default()
            } else {
                Headers::from_bytes(packed)
            },
        }
    }
}

impl Batch {
    /// Copies a message out of librdkafka's buffers.
    pub(super) fn push(&mut self, message: &BorrowedMessage<'_>, pieces: &mut Pieces) {
        let record = pieces.record(message);
        self.value_bytes += record.value.len();
        let key = record.key.as_ref().map_or(0, Bytes::len);
        let headers = record.headers.as_bytes().len();
        self.held_bytes += size_of::<Record>() + record.value.len() + key + headers;
        self.records.push(record);
    }

    /// Records gathered.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Bytes of all values.
    pub(super) fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Bytes held in memory.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The records, in the order they were pushed.
    pub(super) fn finish(self) -> Vec<Record> {
        self.records
    }
}

/// An empty slice needs no share in the piece.
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
