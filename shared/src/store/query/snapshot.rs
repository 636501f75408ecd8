//! What a live view begins with: the newest value of every device and type, and the places up to which
//! they were stored.
//!
//! Values and places are of one moment, so whoever reads the log on from the places misses nothing and
//! needs no clock. An answer is whole or says that it is not: a part of the values, in whatever order,
//! would look like all of them.

use super::StoredEvent;
use crate::event::{ClientId, DeviceId};
use crate::store::Progress;

/// What an event weighs besides its type and metadata, about.
const EVENT_BYTES: usize = 192;

/// Whose newest values, and how many of them.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotQuery {
    /// Whose.
    pub client: ClientId,
    /// The group whose places are told: the one that stores.
    pub group: String,
    /// Of these devices alone; empty: of all.
    pub devices: Vec<DeviceId>,
    /// Of these types alone; empty: of all.
    pub event_types: Vec<String>,
    /// From events at or after this time, unix milliseconds.
    pub since_ms: i64,
    /// At most so many values, of at most so many devices; at least 1.
    pub limit: usize,
    /// At most so many bytes of events, about.
    pub most_bytes: usize,
}

impl SnapshotQuery {
    /// The types that can be stored; `None` when all are asked for. A database takes no U+0000 and
    /// holds none.
    pub(in crate::store) fn types(&self) -> Option<Vec<String>> {
        let storable = |event_type: &&String| !event_type.contains('\0');
        (!self.event_types.is_empty())
            .then(|| self.event_types.iter().filter(storable).cloned().collect())
    }
}

/// The newest values, and how far the log was stored when they were the newest.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// By partition.
    pub places: Vec<Progress>,
    /// In no order; each device and type once.
    pub events: Vec<StoredEvent>,
    /// Nothing was left out because of a bound.
    pub complete: bool,
}

/// Values on their way into an answer.
pub(in crate::store) struct Gathered<'q> {
    query: &'q SnapshotQuery,
    events: Vec<StoredEvent>,
    rows: usize,
    bytes: usize,
}

impl<'q> Gathered<'q> {
    pub(in crate::store) fn new(query: &'q SnapshotQuery) -> Self {
        Self { query, events: Vec::new(), rows: 0, bytes: 0 }
    }

    /// Takes a row: a value, or a device that has none of what is asked for. False when that was more
    /// than an answer holds.
    pub(in crate::store) fn take(&mut self, row: Option<StoredEvent>) -> bool {
        self.rows += 1;
        if let Some(event) = row {
            let metadata = event.metadata.as_ref().map_or(0, String::len);
            self.bytes += EVENT_BYTES + event.event_type.len() + metadata;
            self.events.push(event);
        }
        self.is_complete()
    }

    pub(in crate::store) fn is_complete(&self) -> bool {
        self.rows <= self.query.limit && self.bytes <= self.query.most_bytes
    }

    pub(in crate::store) fn with(self, places: Vec<Progress>) -> Snapshot {
        Snapshot { complete: self.is_complete(), events: self.events, places }
    }
}
