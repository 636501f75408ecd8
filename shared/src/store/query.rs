//! The read side of the store: [`EventQuery`], and the words of its questions and answers.
//!
//! Both engines pass [`crate::testing::store::query`]. Not here: who may ask, how many may ask at once,
//! and the form of cursors and JSON (the gateway's `read`). What both engines share is [`walk`].
//!
//! Every question is served by the indexes that ingestion pays for anyway: (client, device, time) and
//! time. Where they do not serve a question, the question is cut to what they serve, and its promise
//! says so; an index of its own would cost every insert.

use async_trait::async_trait;

use super::{Letter, LetterState, StoreError};
use crate::event::{ClientId, DeviceId, EventId};
use crate::log::Offset;

pub(super) mod letters;
pub(super) mod snapshot;
pub(super) mod walk;

pub use letters::{LetterKey, LettersQuery};
pub use snapshot::{Snapshot, SnapshotQuery};

/// An event as the table holds it.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the columns of the table, under the names of the event")]
pub struct StoredEvent {
    pub client: ClientId,
    pub id: EventId,
    pub device: DeviceId,
    pub event_type: String,
    pub value: f64,
    pub timestamp_ms: i64,
    /// JSON. PostgreSQL keeps it as a map: other order and spacing than was sent, same content.
    pub metadata: Option<String>,
    pub received_at_us: i64,
    pub pos: Offset,
}

impl StoredEvent {
    /// Where it stands among the events of its client.
    pub fn sort_key(&self) -> SortKey {
        SortKey { timestamp_ms: self.timestamp_ms, pos: self.pos, id: self.id }
    }
}

/// The one order of a client's events: by time, then by place in the log, then by id.
///
/// Newest = greatest (time, place) everywhere. Places repeat between partitions of the log, hence the
/// id: (client, id, time) is a key of the table, so no two events of a client are equal in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SortKey {
    /// The event's timestamp, unix milliseconds.
    pub timestamp_ms: i64,
    /// Its log offset.
    pub pos: Offset,
    /// Its id.
    pub id: EventId,
}

impl SortKey {
    /// Before every event of that time, after every earlier one.
    fn start_of(timestamp_ms: i64) -> Self {
        Self { timestamp_ms, pos: Offset::MIN, id: EventId(uuid::Uuid::nil()) }
    }
}

/// Which end of the order comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// A span of time, unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Inclusive.
    pub from_ms: i64,
    /// Exclusive.
    pub to_ms: i64,
}

/// Which events, and in what order.
#[derive(Debug, Clone, PartialEq)]
pub struct EventsQuery {
    /// Whose.
    pub client: ClientId,
    /// Of this device alone.
    pub device: Option<DeviceId>,
    /// Of this type alone; no U+0000.
    pub event_type: Option<String>,
    /// With a timestamp in this span.
    pub span: Span,
    /// In this order.
    pub order: Order,
    /// Behind this key, in that order.
    pub after: Option<SortKey>,
    /// At most so many; at least 1.
    pub limit: usize,
    /// The clock: a search from the newest begins here, not at the end of a span that lies ahead.
    pub now_ms: i64,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<Row, Key> {
    /// In the order asked for.
    pub rows: Vec<Row>,
    /// Go on behind this; `None`: there is no more. A page may be short, even empty, and yet not the
    /// last.
    pub next: Option<Key>,
}

/// What the store knows of an id.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// The event is stored, whatever else happened under its id.
    Stored(Box<StoredEvent>),
    /// It is a dead letter, and nothing is stored under its id.
    Dead {
        /// A word of [`super::DeadReason`].
        reason: String,
        /// A sentence without values of the event.
        detail: String,
    },
}

/// The newest value of one event type.
#[derive(Debug, Clone, PartialEq)]
pub struct Latest {
    /// The type.
    pub event_type: String,
    /// Of the newest event of that type.
    pub value: f64,
    /// Of the same event, unix milliseconds.
    pub timestamp_ms: i64,
}

/// What a device told last.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceState {
    /// The device.
    pub device: DeviceId,
    /// One for each type among its newest [`DEVICE_EVENTS`] events, newest first; at least one.
    pub latest: Vec<Latest>,
}

/// How many events of a device are looked through for types. Without an index by type nobody can tell
/// which types there are but by reading; this bounds the reading.
pub const DEVICE_EVENTS: i64 = 1_000;

/// Which events to sum up, and how finely.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesQuery {
    /// Whose.
    pub client: ClientId,
    /// Of this device alone.
    pub device: Option<DeviceId>,
    /// Of this type; no U+0000.
    pub event_type: String,
    /// With a timestamp in this span.
    pub span: Span,
    /// Length of a bucket in milliseconds, at least 1. Who asks bounds the number of buckets.
    pub step_ms: i64,
}

/// What happened within one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// A multiple of the step since 1970, unix milliseconds. It may lie before the span: then only the
    /// part within the span is counted.
    pub start_ms: i64,
    /// Events; never 0.
    pub count: i64,
    /// Smallest value.
    pub min: f64,
    /// Greatest value.
    pub max: f64,
    /// Arithmetic mean, between the two.
    pub avg: f64,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The database works and would need longer than a query may take: ask for less.
    #[error("the query takes too long")]
    TooSlow,
    /// The database did not answer. The same question may be answered later.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Questions about stored events.
///
/// **Tenants.** Every question names its client, and no answer holds anything of another.
/// **Bounds.** Each statement has a time (`read.timeout`), judged by the database itself; an answer
/// holds at most `limit` rows. **Consistency.** What was committed before the call is seen. A page is
/// one or more statements, each of one snapshot. **Order and pages.** Pages follow a total order and
/// never overlap: of the events that are stored when a walk through pages begins, and kept while it
/// lasts, each comes exactly once, whatever is stored meanwhile. **Cancellation.** Harmless.
#[async_trait]
pub trait EventQuery: Send + Sync {
    /// A page of events. It ends early when the search has taken its time: a short page, with a place
    /// to go on from.
    ///
    /// # Errors
    /// [`QueryError`].
    async fn events(&self, query: &EventsQuery) -> Result<Page<StoredEvent, SortKey>, QueryError>;

    /// What became of an event; `None` when nothing is known (yet).
    ///
    /// # Errors
    /// [`QueryError`].
    async fn event(&self, client: ClientId, id: EventId) -> Result<Option<Found>, QueryError>;

    /// Devices by id, behind `after`, of those that sent anything at or after `since_ms`.
    ///
    /// # Errors
    /// [`QueryError`].
    async fn devices(
        &self,
        client: ClientId,
        since_ms: i64,
        after: Option<DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceState, DeviceId>, QueryError>;

    /// One device, from its events at or after `since_ms`; `None` when there are none.
    ///
    /// # Errors
    /// [`QueryError`].
    async fn device(
        &self,
        client: ClientId,
        device: DeviceId,
        since_ms: i64,
    ) -> Result<Option<DeviceState>, QueryError>;

    /// Buckets with at least one event, oldest first.
    ///
    /// # Errors
    /// [`QueryError`].
    async fn series(&self, query: &SeriesQuery) -> Result<Vec<Bucket>, QueryError>;

    /// A page of dead letters, newest first, each with what it waits for. One that dies again while somebody
    /// walks through the pages moves to the first one.
    ///
    /// # Errors
    /// [`QueryError`].
    async fn letters(
        &self,
        query: &LettersQuery,
    ) -> Result<Page<(Letter, LetterState), LetterKey>, QueryError>;

    /// The newest value of each device and type, and the places up to which they were stored, of one
    /// moment. A type is found among a device's newest [`DEVICE_EVENTS`] events.
    ///
    /// # Errors
    /// [`QueryError`].
    async fn snapshot(&self, query: &SnapshotQuery) -> Result<Snapshot, QueryError>;
}

/// The arithmetic mean from two sums: of the values below [`HUGE`], and of the others divided by
/// [`SCALE`]. A plain sum of doubles may leave their range though no mean does, and PostgreSQL's
/// `avg(float8)` fails already when a square does.
pub(super) fn mean(small: f64, huge: f64, count: i64, (min, max): (f64, f64)) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of rows is far below 2^53")]
    let count = count as f64;
    (small / count + huge / count * SCALE).max(min).min(max)
}

/// 2^64: dividing a huge value by it loses nothing, and 2^64 rows would be needed to leave the range.
pub(super) const SCALE: f64 = 18_446_744_073_709_551_616.0;

/// From here on values are summed apart.
pub(super) const HUGE: f64 = 1e200;

/// Puts rows of (device, newest value of a type), in the order of devices, together by device.
pub(super) fn by_device(rows: Vec<(DeviceId, Latest)>) -> Vec<DeviceState> {
    let mut devices: Vec<DeviceState> = Vec::new();
    for (device, latest) in rows {
        match devices.last_mut().filter(|last| last.device == device) {
            Some(last) => last.latest.push(latest),
            None => devices.push(DeviceState { device, latest: vec![latest] }),
        }
    }
    devices
}

/// A limit as SQL has it.
pub(super) fn rows_at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Cuts a page out of rows of which one more than `limit` was asked for.
pub(super) fn page_of<Row, Key>(
    mut rows: Vec<Row>,
    limit: usize,
    key: impl Fn(&Row) -> Key,
) -> Page<Row, Key> {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(key);
    Page { rows, next }
}
