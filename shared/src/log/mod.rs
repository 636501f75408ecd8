//! The log: the partitioned durable topic between the gateway and everything else.
//!
//! Words, as in Kafka. A **record** has a key, a value, headers, an **offset** within its **partition**
//! and the time at which the log took it. Offsets grow; they need not be dense. `next` always names the
//! offset *after* the last record seen, so "read from `next`" never repeats and never skips.
//!
//! Two engines stand behind the port: [`kafka`] (Kafka protocol) and [`embedded`] (one SQLite file).
//! Both pass [`crate::testing::log`]. What an event looks like inside a record is [`crate::codec`]'s
//! matter; this module moves bytes.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

pub mod embedded;
mod headers;
pub mod kafka;
mod packed;
mod partitioner;

pub use headers::{Headers, HeadersBuilder};
pub use partitioner::partition_of;

use crate::cache::Outcome;

/// A place within a partition. Negative only as "nothing yet" inside engines.
pub type Offset = i64;

/// The number of a partition, from 0.
pub type Partition = i32;

/// The consumer group that fills the store.
pub const STORE_GROUP: &str = "pulsestream-store";

/// The consumer group that feeds the live bus.
pub const LIVE_GROUP: &str = "pulsestream-live";

/// The topics of a pipeline. Created by `migrate`, never by auto-creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Accepted events, keyed by device; kept for days.
    Raw,
    /// Dead letters; kept until purged.
    Dlq,
}

impl Topic {
    /// The name a Kafka tool shows, before the pipeline's namespace.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "metrics.raw",
            Self::Dlq => "metrics.dlq",
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which log this is: offsets mean what they meant as long as this does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Made by `migrate`; made anew when the log turns out shorter than, or different from, a place
    /// somebody knows.
    pub epoch: Uuid,
    /// Partitions of [`Topic::Raw`]. Never changes in place: a device's events would change partition
    /// while earlier ones are still unread.
    pub partitions: u32,
}

/// A record on its way to the log.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// Where it goes: [`partition_of`] its key, so that one device has one order.
    pub partition: Partition,
    /// The device, as text. `None` only for a dead letter whose original had none.
    pub key: Option<Bytes>,
    /// Opaque here.
    pub value: Bytes,
    /// Opaque here.
    pub headers: Headers,
    /// The idempotency records this append settles: the event's, and with the last of a batch the
    /// batch's. An engine that keeps those beside the log writes them in the same commit as the record;
    /// the others ignore them.
    pub outcomes: Vec<Outcome>,
}

/// A record as the log hands it out.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its partition.
    pub partition: Partition,
    /// Its place; greater than that of every earlier record of the partition.
    pub offset: Offset,
    /// When the log took it (the log's clock, never the device's), unix milliseconds.
    pub logged_at_ms: i64,
    /// As appended.
    pub key: Option<Bytes>,
    /// As appended; empty when the log holds a null.
    pub value: Bytes,
    /// As appended.
    pub headers: Headers,
}

/// Why a record of a batch has no offset. The variants say what the caller may tell its client.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// Certainly not in the log and never will be: the key may be released.
    #[error("the log refused the record: {0}")]
    Refused(String),
    /// Maybe in the log: keep the key, answer "later".
    #[error("the log did not confirm the record: {0}")]
    Unknown(String),
    /// Not tried, because the log cannot take records now. Certainly not there.
    #[error("the log takes no records now: {0}")]
    Unavailable(String),
}

impl AppendError {
    /// The word for it in metrics and spans.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Unknown(_) => "unknown",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

/// The offset of a durable record, or why there is none.
pub type AppendResult = Result<Offset, AppendError>;

/// What a read or a consume can fail with.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Passing: the same call may succeed later.
    #[error("log unavailable: {0}")]
    Unavailable(String),
    /// The log is not the one this process was started for, or is damaged: stop serving.
    #[error("{0}")]
    Unusable(String),
}

/// First kept and next free offset of a partition. `first == next` when it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Offset of the oldest record still kept.
    pub first: Offset,
    /// Offset the next record will get, at least.
    pub next: Offset,
}

/// How much one [`EventLog::read`] may return.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimit {
    /// Records at most.
    pub records: usize,
    /// Stop after the record that passes this many bytes of values.
    pub bytes: usize,
}

/// The partitioned durable log.
///
/// **Durability.** `Ok` from [`append`](Self::append) means the record survives `kill -9` and, as far
/// as the engine promises, power loss: Kafka `acks=all`, embedded fsync.
/// **Order.** Records of one partition keep the order in which `append` was given them, within a batch
/// and between batches whose calls did not overlap.
/// **Duplicates.** `append` itself never writes a record twice; a caller that retries after
/// [`AppendError::Unknown`] may.
/// **Cancellation.** Dropping the future of `append` cancels nothing that was handed to the engine; the
/// caller only loses the answer. Reads may be dropped freely.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Appends a batch and answers for each record, in order, when the whole batch is settled.
    ///
    /// Bounded in time by the engine's own deadline (`log.append_timeout`), after which the rest is
    /// [`AppendError::Unknown`]. Never blocks the runtime.
    async fn append(&self, topic: Topic, records: Vec<NewRecord>) -> Vec<AppendResult>;

    /// Whether one partition may hang while others take appends. Where it may, whoever appends keeps the
    /// partitions apart, so that the devices of one do not wait for another.
    fn partitions_fail_alone(&self) -> bool;

    /// Joins a consumer group on [`Topic::Raw`]. Dropping the consumer leaves the group.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when the engine cannot even start a member; an absent broker is not an
    /// error here, the member waits for it.
    async fn consume(&self, group: &str) -> Result<Box<dyn LogConsumer>, LogError>;

    /// Reads records from `from` (inclusive) in offset order, outside any group. May return fewer than
    /// asked; empty only when nothing is there *now*. `from` below the first offset reads from the
    /// first: compare the offset of what comes back.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    async fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Record>, LogError>;

    /// First and next offset of every partition, by partition number. A record whose append was
    /// confirmed before the call is below its `next`.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, LogError>;

    /// Per partition of [`Topic::Raw`] the offset of the first record logged at or after that time,
    /// `next` where there is none.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    async fn locate(&self, logged_at_ms: i64) -> Result<Vec<Offset>, LogError>;
}

/// The log's name for itself; kept in the log, so that it is lost when the log is.
#[async_trait]
pub trait LogIdentity: Send + Sync {
    /// Reads the present identity from the log.
    ///
    /// # Errors
    /// [`LogError::Unavailable`]; [`LogError::Unusable`] when `migrate` has not run, or the topic's
    /// partition count is not the one written there.
    async fn identity(&self) -> Result<Identity, LogError>;

    /// Makes a new epoch unless somebody already replaced `seen`; returns the one in force. Two callers
    /// that race may both write; the later one wins for all.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    async fn renew(&self, seen: Uuid) -> Result<Identity, LogError>;
}

/// What a member of a consumer group is told, in this order for each partition:
/// `Assigned`, then after [`LogConsumer::seek`] any number of `Records`, then `Revoked`.
#[derive(Debug)]
pub enum LogEvent {
    /// These partitions are ours. Nothing of them comes before each is given a place with `seek`.
    Assigned(Vec<Partition>),
    /// These are no longer ours. Nothing of them comes after this.
    Revoked(Vec<Partition>),
    /// Records of one partition in offset order, at least one.
    Records(Partition, Vec<Record>),
    /// The place we read at is outside the log (retention passed us, or the log was cut). Delivery of
    /// that partition has stopped until a new `seek`; `None` when the engine cannot say which it was.
    OutOfRange(Option<Partition>),
}

/// One member of a consumer group.
///
/// The engine keeps its membership alive by itself: however slowly [`next`](Self::next) is called, the
/// poll is never blocked, and what is fetched ahead is bounded. `seek`, `pause` and `resume` take
/// effect at once for the caller: records fetched for an earlier place are dropped, not handed out.
#[async_trait]
pub trait LogConsumer: Send {
    /// Waits for the next event. Cancel safe: an event not returned stays queued.
    ///
    /// # Errors
    /// [`LogError::Unusable`] ends the member. Passing trouble is waited out inside.
    async fn next(&mut self) -> Result<LogEvent, LogError>;

    /// Starts, or restarts, delivery of an assigned partition at `offset`. Ignored when not assigned.
    fn seek(&mut self, partition: Partition, offset: Offset);

    /// Stops fetching these partitions; what is already here is still handed out.
    fn pause(&mut self, partitions: &[Partition]);

    /// Undoes `pause`.
    fn resume(&mut self, partitions: &[Partition]);

    /// Tells the group how far it got. Not awaited and not durable before some later moment: the store's
    /// own offsets decide for the store group; the live group may repeat what it published.
    fn commit(&mut self, partition: Partition, next: Offset);

    /// The group's committed place of each given partition, in order; `None` where there is none.
    ///
    /// # Errors
    /// [`LogError::Unavailable`].
    async fn committed(
        &mut self,
        partitions: &[Partition],
    ) -> Result<Vec<Option<Offset>>, LogError>;
}
