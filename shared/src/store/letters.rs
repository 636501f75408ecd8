//! Dead letters as rows of a table: [`DeadLetterStore`], what an operator can do with them.
//!
//! The life of a row:
//!
//! ```text
//!           a batch buries a record           a replay is appended             its event is stored
//! (nothing) ------------------------> dead ------------------------> replayed ---------------------> (gone)
//!                                      |  ^                             |
//!                                purge |  '-----------------------------'
//!                                      v    the replay died too (one attempt more), or was lost with its log
//!                                   (gone)
//! ```
//!
//! The row keeps its key through all deaths: where the record died first. It changes or goes in the transaction
//! that settles the replay, so at every moment a letter is in the table or its event is stored, and never
//! both. Nothing else removes it but a purge.
//!
//! Whether a row is dead or replayed is not written down but judged ([`Letter::state`]): a replay waits while
//! the store has not passed the place where it lies. A letter may be replayed twice all the same, because a
//! command ended between the append and the note of it. `replays` says why that is harmless, and its test
//! tries.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use uuid::Uuid;

use super::{DeadReason, Progress, StoreError};
use crate::event::{ClientId, DeviceId, EventId};
use crate::log::{Offset, Partition};

/// Where a record of [`Topic::Raw`](crate::log::Topic::Raw) lies, or lay. Of a letter: where it died first, the
/// key of its row. In another epoch the same offset is another record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LetterPlace {
    /// Its partition.
    pub partition: Partition,
    /// The log it is in.
    pub epoch: Uuid,
    /// Its offset there.
    pub offset: Offset,
}

impl LetterPlace {
    /// Of the columns of a row, which has all of them or none.
    pub(super) fn of_columns(
        partition: Option<Partition>,
        epoch: Option<Uuid>,
        offset: Option<Offset>,
    ) -> Option<Self> {
        Some(Self { partition: partition?, epoch: epoch?, offset: offset? })
    }
}

impl fmt::Display for LetterPlace {
    /// `PARTITION-OFFSET@EPOCH`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}@{}", self.partition, self.offset, self.epoch.as_simple())
    }
}

impl FromStr for LetterPlace {
    type Err = NotAPlace;

    fn from_str(text: &str) -> Result<Self, NotAPlace> {
        let parse = || {
            let (place, epoch) = text.split_once('@')?;
            let (partition, offset) = place.split_once('-')?;
            Some(Self {
                partition: partition.parse().ok()?,
                epoch: Uuid::try_parse(epoch).ok()?,
                offset: offset.parse().ok()?,
            })
        };
        parse().ok_or(NotAPlace)
    }
}

/// A text that is not `PARTITION-OFFSET@EPOCH`.
#[derive(Debug, thiserror::Error)]
#[error("not PARTITION-OFFSET@EPOCH")]
pub struct NotAPlace;

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// Where the record died first.
    pub place: LetterPlace,
    /// Its client, as far as it could be read.
    pub client: Option<ClientId>,
    /// Its id, as far as it could be read.
    pub id: Option<EventId>,
    /// Its key, when that is a device.
    pub device: Option<DeviceId>,
    /// A word of [`DeadReason`]; a newer version may know others.
    pub reason: String,
    /// The database's own code, when it was the judge.
    pub sqlstate: Option<String>,
    /// A sentence without row values.
    pub detail: String,
    /// How often it died, this time included.
    pub attempt: u32,
    /// When it died last, unix microseconds.
    pub died_at_us: i64,
    /// Its copy on [`Topic::Dlq`](crate::log::Topic::Dlq); `None` when an older version buried it.
    pub copy: Option<(Partition, Offset)>,
    /// Where its last replay lies.
    pub replay: Option<LetterPlace>,
}

/// What a letter waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterState {
    /// A person.
    Dead,
    /// The store: a replay is in the log and not settled.
    Replayed,
}

impl LetterState {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Replayed => "replayed",
        }
    }
}

impl Letter {
    /// What it waits for, by how far the store has come. `progress` must have been read *before* the
    /// letter: a row that is still here although the store had passed its replay lost that replay.
    pub fn state(&self, progress: &[Progress]) -> LetterState {
        let waits = self.replay.is_some_and(|replay| {
            let place = progress.iter().find(|place| place.partition == replay.partition);
            // A partition nobody reads yet: everything in it waits.
            place.is_none_or(|it| it.epoch == replay.epoch && it.next <= replay.offset)
        });
        if waits { LetterState::Replayed } else { LetterState::Dead }
    }
}

/// Which letters; those that meet everything that is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LetterFilter {
    /// Of this reason.
    pub reason: Option<DeadReason>,
    /// Died at or after this, unix microseconds.
    pub since_us: Option<i64>,
    /// Died at or before this, unix microseconds.
    pub until_us: Option<i64>,
    /// Of this client.
    pub client: Option<ClientId>,
    /// With this device as key.
    pub device: Option<DeviceId>,
    /// Of this event.
    pub id: Option<EventId>,
    /// In this partition.
    pub partition: Option<Partition>,
    /// At this offset.
    pub offset: Option<Offset>,
    /// In this log.
    pub epoch: Option<Uuid>,
    /// That died fewer times than this.
    pub max_attempts: Option<u32>,
}

/// What an operator can do with dead letters. What buries and settles them is
/// [`EventStore::write`](super::EventStore::write).
///
/// **Durability.** What was marked or purged is committed. **Order.** As each method says.
/// **Cancellation.** Harmless: a dropped call happened as a whole or not at all.
#[async_trait]
pub trait DeadLetterStore: Send + Sync {
    /// The newest letters, newest first, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn newest(&self, filter: &LetterFilter, limit: usize) -> Result<Vec<Letter>, StoreError>;

    /// Letters behind `after` in the order of their places, at most `limit`; none: there are no more. Of one
    /// device that is the order in which they were accepted.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn walk(
        &self,
        filter: &LetterFilter,
        after: Option<LetterPlace>,
        limit: usize,
    ) -> Result<Vec<Letter>, StoreError>;

    /// How many letters there are of each reason, most first.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn count(&self, filter: &LetterFilter) -> Result<Vec<(String, u64)>, StoreError>;

    /// Notes for each letter where its replay lies. One that is settled meanwhile stays gone.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn mark_replayed(&self, marks: &[(LetterPlace, LetterPlace)]) -> Result<(), StoreError>;

    /// Deletes those of the letters that are as they are given here; answers how many. One that was replayed,
    /// or died again, since it was read is left.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn purge(&self, letters: &[Letter]) -> Result<u64, StoreError>;
}
