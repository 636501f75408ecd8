//! The store: every event once, the place each partition was read up to, and the API keys; [`query`]
//! reads it back.
//!
//! Two engines stand behind the ports: [`postgres`] and [`sqlite`]. Both pass
//! [`crate::testing::store`].
//!
//! The heart is [`EventStore::write`]: rows, dead letters and offsets change in **one transaction**, and
//! the offsets are compared before they are swapped. A redelivery, a zombie consumer or a lost answer
//! to COMMIT then changes nothing.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

pub mod keys;
mod letters;
pub mod postgres;
pub mod query;
mod replays;
mod schema;
mod settle;
pub mod sqlite;

pub use keys::{CHANGES_AT_ONCE, KeyChange, KeyError, KeyHash, KeyRecord, KeyStore, NewKey, Scope};
pub use letters::{DeadLetterStore, Letter, LetterFilter, LetterPlace, LetterState, NotAPlace};
pub use query::{EventQuery, StoredEvent};

use crate::codec::Unsure;
use crate::event::{ClientId, DeviceId, Event, EventId};
use crate::log::{LogError, Offset, Partition};

/// An event on its way into the store.
#[derive(Debug, Clone)]
pub struct StoreRow {
    /// The event.
    pub event: Event,
    /// Its owner.
    pub client: ClientId,
    /// When a gateway accepted it, unix microseconds.
    pub received_at_us: i64,
    /// Where it lies in the log.
    pub partition: Partition,
    /// Its place there; stored as `pos`. Newest = greatest (timestamp, pos).
    pub offset: Offset,
    /// Set when the same id may be stored under another timestamp, so that all days of the table are
    /// probed.
    pub unsure: Option<Unsure>,
    /// The letter this is the replay of. Replayed long after it was accepted, it may meet its id under
    /// another timestamp as well. In a box, because it is rare.
    pub replay: Option<Box<LetterPlace>>,
}

/// A record that will not be stored, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where the record lies in the log.
    pub partition: Partition,
    /// Its place there.
    pub offset: Offset,
    /// Its client, as far as it could be read.
    pub client: Option<ClientId>,
    /// Its id, as far as it could be read.
    pub id: Option<EventId>,
    /// The kind of fault.
    pub reason: DeadReason,
    /// The database's own code, when it was the judge.
    pub sqlstate: Option<String>,
    /// A sentence without row values.
    pub detail: String,
    /// The letter this is the replay of, when it died before. Its row is changed; there is no other.
    pub replay: Option<Box<LetterPlace>>,
}

/// What is known of a letter once it was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadCopy {
    /// Where the copy lies on [`Topic::Dlq`](crate::log::Topic::Dlq).
    pub partition: Partition,
    /// Its place there.
    pub offset: Offset,
    /// The record's key, when it is a device.
    pub device: Option<DeviceId>,
    /// How often the record died, this time included.
    pub attempt: u32,
}

/// Why a record is a dead letter. A closed set: it is a metric label and an operator's filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// Not an event: bytes, JSON, fields, key or headers.
    Malformed,
    /// The client number is unknown to the store.
    UnknownClient,
    /// The timestamp is outside what the store keeps.
    OutOfRange,
    /// Another event is stored under this id.
    IdConflict,
    /// The store refused the values.
    Rejected,
}

impl DeadReason {
    /// Every reason, for metrics and help texts.
    pub const ALL: [Self; 5] =
        [Self::Malformed, Self::UnknownClient, Self::OutOfRange, Self::IdConflict, Self::Rejected];

    /// The word in headers, tables, labels and filters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownClient => "unknown_client",
            Self::OutOfRange => "out_of_range",
            Self::IdConflict => "id_conflict",
            Self::Rejected => "rejected",
        }
    }
}

/// How far a group has stored one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Which partition.
    pub partition: Partition,
    /// The log whose offsets these are.
    pub epoch: Uuid,
    /// The next offset to read.
    pub next: Offset,
    /// The event just before `next`, to be read back from the log on assignment: another event at that
    /// place means that the log was cut and grew again. `None` at the start or after a record without
    /// an id.
    pub last_id: Option<EventId>,
}

/// A batch: what happens together or not at all.
#[derive(Debug, Clone)]
pub struct StoreBatch<'a> {
    /// The consumer group.
    pub group: &'a str,
    /// Where the caller believes each partition of the batch stands.
    pub from: Vec<Progress>,
    /// Where it stands afterwards, same partitions, same order.
    pub to: Vec<Progress>,
    /// Events to store, in log order within a partition.
    pub rows: Vec<StoreRow>,
    /// Records already known to be dead.
    pub dead: Vec<DeadLetter>,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Committed.
    Stored {
        /// Rows that are new in the table.
        new: u64,
        /// Records that change nothing: rows that were there already, equal, and replays that died although
        /// their letter is gone.
        duplicates: u64,
        /// All dead letters of the batch: those it came with and those the store found.
        dead: Vec<DeadLetter>,
    },
    /// Nothing was written: some partition does not stand where the caller believes. Read the progress
    /// again and seek.
    Fenced,
}

/// Takes copies of dead letters before their transaction commits.
#[async_trait]
pub trait DeadLetterSink: Send + Sync {
    /// Makes a durable copy of each record. May be called again for the same ones after a rollback: the
    /// `dead_letters` table decides which copies count. Answers for each letter, in order.
    ///
    /// # Errors
    /// [`LogError`]: the batch is rolled back and tried again.
    async fn accept(&self, letters: &[DeadLetter]) -> Result<Vec<DeadCopy>, LogError>;
}

/// What the caller of the store does next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Passing: the same batch again, for ever, with backoff. Whether a COMMIT took place may be
    /// unknown; the offsets tell on the next try.
    #[error("store unavailable: {0}")]
    Transient(String),
    /// Somebody must act (schema, permissions, password, disk layout): stop loudly, dead-letter nothing.
    #[error("store unusable: {0}")]
    Deployment(String),
}

impl StoreError {
    /// True when the same call may succeed later by itself.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Transient(_))
    }
}

/// What [`EventStore::maintain`] found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maintenance {
    /// Until when events can be stored, unix milliseconds; an alarm is due when it is near.
    pub horizon_ms: i64,
    /// Days (PostgreSQL: partitions, SQLite: days of rows) removed.
    pub dropped_days: u32,
}

/// What a slow store gains by larger batches: in an index that is met at random nearly every row dirties a
/// page of its own, whichever batch it comes in, and the larger the batch the more rows share one.
#[derive(Debug, Clone, Copy)]
pub struct Stretch {
    /// Records and bytes, in multiples of the settings.
    pub times: usize,
    /// Longest time to gather.
    pub wait: Duration,
    /// Shortest time to gather, within that: in multiples of what the last batch took to write.
    pub share: u32,
}

/// The table of events.
///
/// **Durability.** `Stored` means committed and flushed. **Order.** `pos` keeps the log's order.
/// **Duplicates.** A row that meets an equal row is counted, not stored; one that meets a different row
/// with its key is a dead letter. **Cancellation.** A dropped `write` is rolled back or committed as a
/// whole; the offsets tell which.
#[async_trait]
pub trait EventStore: Send + Sync {
    /// Stores a batch: swaps the offsets, copies dead letters to the sink, inserts rows, commits. A replay
    /// that is stored takes its letter out of the table, one that died changes it; where the letter is
    /// gone already, its death is not written.
    ///
    /// Rows the database itself refuses are found and become dead letters; the rest of the batch is
    /// stored. Repeats within the batch are allowed.
    ///
    /// # Errors
    /// [`StoreError`], by SQLSTATE.
    async fn write(
        &self,
        batch: &StoreBatch<'_>,
        dead_letters: &dyn DeadLetterSink,
    ) -> Result<Written, StoreError>;

    /// Whether batches of different partitions can be written at the same time. Where they cannot, a second
    /// writer would only wait for the first.
    fn writes_in_parallel(&self) -> bool;

    /// How far the group got, by partition number; partitions never seen are absent.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn progress(&self, group: &str) -> Result<Vec<Progress>, StoreError>;

    /// Gives a partition its first place (`seen` = `None`) or, after a new epoch, another one, if it
    /// still stands at `seen`; returns where it stands now.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn place(
        &self,
        group: &str,
        seen: Option<Progress>,
        new: Progress,
    ) -> Result<Progress, StoreError>;

    /// How far a batch may outgrow its settings while the store is slow.
    fn stretch(&self) -> Stretch {
        Stretch { times: 1, wait: Duration::from_millis(250), share: 3 }
    }

    /// Creates the days ahead and removes those past retention, judged at `now_ms`. Safe to call from
    /// every consumer: one does the work.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn maintain(&self, now_ms: i64) -> Result<Maintenance, StoreError>;
}
