//! What every engine of the store must do, written once: `store_conformance!` makes a test of each rule.
//!
//! An engine gives a harness: a function that makes a [`Fixture`] on tables of its own, runs a rule on it
//! and cleans up. The rules are in [`writing`], [`places`], [`keys`], [`letters`], [`failing`], and in [`query`],
//! [`own_letters`] and [`snapshot`] (those have `query_conformance!`, to run behind a fault wrapper too); [`Inspect`] lets them, and the
//! end-to-end tests, compare the tables with what was sent. A second harness gives the others
//! [`Fixture::failing`]: the same tables through the fault wrapper.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a rule that is broken panics")]

pub mod failing;
pub mod keys;
pub mod letters;
pub mod own_letters;
pub mod places;
pub mod query;
pub mod snapshot;
pub mod writing;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::{ClientId, DeviceId, Event, EventId};
use crate::log::{LogError, Offset, Partition};
use crate::metadata::Metadata;
use crate::store::{
    DeadCopy, DeadLetter, DeadLetterSink, DeadLetterStore, EventQuery, EventStore, KeyStore,
    Progress, StoreBatch, StoreError, StoreRow, StoredEvent, Written,
};

/// Makes one `#[tokio::test]` a rule, run by the harness that is named.
#[macro_export]
macro_rules! store_conformance {
    ($harness:path) => {
        $crate::store_conformance! { @each $harness, writing:
            a_batch_is_stored_as_it_was_sent
            a_batch_of_five_thousand_is_stored
            a_batch_without_rows_moves_the_place
            the_same_batch_again_is_fenced_and_changes_nothing
            a_batch_is_fenced_when_one_of_its_partitions_is
            a_redelivered_row_under_new_offsets_is_a_duplicate
            another_body_under_a_stored_key_is_a_conflict
            an_unsure_row_meets_its_id_under_another_timestamp
            of_two_unsure_rows_with_one_id_at_once_one_is_stored
            a_sure_row_meets_an_id_that_another_gateway_gave_away_by_itself
            of_a_local_and_a_sure_row_with_one_id_at_once_one_is_stored
            a_row_stored_late_meets_an_id_given_away_since_keys_were_lost
            of_a_late_row_and_one_accepted_since_at_once_one_is_stored
            two_clients_may_use_the_same_id
            equal_rows_are_duplicates_however_they_are_spelled
            repeats_within_a_batch_are_judged_like_others
            a_repeat_of_a_stored_event_survives_a_conflict_before_it
            poison_goes_alone_wherever_it_lies
            a_batch_of_nothing_but_poison_is_buried
            of_two_writers_from_one_place_one_stores
            nothing_is_stored_while_the_sink_fails
            a_fenced_batch_sends_no_dead_letters
            dead_letters_are_buried_once
            the_same_offset_of_another_epoch_is_another_dead_letter
            a_row_out_of_range_is_a_dead_letter
            a_day_nobody_made_is_made
            a_batch_that_contradicts_itself_is_refused
        }
        $crate::store_conformance! { @each $harness, places:
            the_first_place_is_given_once
            a_place_is_replaced_only_where_it_was_seen
            another_epoch_fences
            groups_do_not_meet
            maintenance_tells_how_far_events_can_be_stored
            retention_drops_old_days_only
            two_maintainers_do_not_harm_each_other
        }
        $crate::store_conformance! { @each $harness, keys:
            a_created_key_is_found_as_it_was_given
            a_hash_or_prefix_exists_once
            a_refused_key_leaves_no_client_behind
            one_name_has_one_random_number
            keys_are_listed_newest_first
            revoking_again_keeps_the_first_time
            an_end_given_later_never_lies_behind_one_given_before
            every_change_of_a_key_is_told_once_and_in_order
            changes_made_together_are_all_told
            changes_come_in_portions
            known_clients_are_those_that_exist
            the_pepper_is_the_same_for_every_process
        }
        $crate::store_conformance! { @each $harness, letters:
            a_letter_is_told_as_it_was_buried
            letters_are_listed_newest_first_and_walked_by_place
            every_filter_leaves_what_meets_it
            a_letter_goes_with_the_batch_that_stores_its_replay
            a_replay_that_dies_changes_its_letter
            of_two_replays_of_one_letter_the_second_leaves_one_letter_or_none
            of_two_replays_in_one_batch_the_second_leaves_one_letter_or_none
            a_replay_that_meets_another_event_stays_a_letter
            a_replay_whose_letter_was_purged_is_not_buried_again
            a_fenced_replay_leaves_its_letter
            a_marked_letter_waits_until_the_store_has_passed_its_replay
            purge_takes_what_is_as_it_was_seen
            a_replay_meets_its_id_under_another_timestamp
        }
        $crate::store_conformance! { @each $harness, failing:
            a_batch_whose_answer_was_lost_is_fenced_and_stored_once
            a_key_whose_answer_was_lost_exists
            days_dropped_without_an_answer_are_not_dropped_again
        }
    };
    (@each $harness:path, $module:ident: $($rule:ident)*) => {
        $(
            #[tokio::test]
            async fn $rule() {
                $harness($crate::testing::store::$module::$rule).await;
            }
        )*
    };
}

/// A row of `dead_letters`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of the table, under the names of the dead letter")]
pub struct BuriedRecord {
    pub partition: Partition,
    pub epoch: Uuid,
    pub offset: Offset,
    pub client: Option<ClientId>,
    pub id: Option<EventId>,
    pub reason: String,
    pub sqlstate: Option<String>,
}

/// Looks into the tables, so that a test can compare them with what it sent.
#[async_trait]
pub trait Inspect: Send + Sync {
    /// How many events there are.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn count_events(&self) -> Result<u64, StoreError>;

    /// Every event, by client, id and time.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn stored_events(&self) -> Result<Vec<StoredEvent>, StoreError>;

    /// Every dead letter, by place.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn buried_records(&self) -> Result<Vec<BuriedRecord>, StoreError>;

    /// The name of every client, sorted.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn client_names(&self) -> Result<Vec<String>, StoreError>;

    /// Gives a number a client, as restoring a backup would.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn restore_client(&self, number: ClientId, name: &str) -> Result<(), StoreError>;
}

/// All that a store is to its tests.
pub trait TestedStore: EventStore + KeyStore + DeadLetterStore + Inspect {}

impl<S: EventStore + KeyStore + DeadLetterStore + Inspect> TestedStore for S {}

/// A store with a retention of [`RETENTION_DAYS`], on empty tables of its own.
#[derive(Clone)]
pub struct Fixture {
    /// The store.
    pub store: Arc<dyn TestedStore>,
    /// The same store, read.
    pub query: Arc<dyn EventQuery>,
    /// Another process on the same tables.
    pub other: Arc<dyn TestedStore>,
    /// Makes a row such that this engine refuses its values, in several ways by number.
    pub poison: fn(&mut StoreRow, usize),
}

/// Retention of the stores in fixtures.
pub const RETENTION_DAYS: u32 = 7;

/// When everything happens in these rules: 2026-11-21T10:00:00Z. No rule may depend on the clock.
pub const NOW_MS: i64 = 1_795_255_200_000;

/// Milliseconds of a day.
pub const DAY_MS: i64 = 86_400_000;

/// The group of all rules that do not say otherwise.
pub const GROUP: &str = "pulsestream-store";

/// The epoch of all rules that do not say otherwise.
pub const EPOCH: Uuid = Uuid::from_u128(0xe);

/// An event with that id at that place, of client 1.
pub fn row(partition: Partition, offset: Offset, id: u128) -> StoreRow {
    StoreRow {
        event: Event {
            id: EventId(Uuid::from_u128(id)),
            device_id: DeviceId(Uuid::from_u128(0xd)),
            event_type: "temperature".to_owned(),
            value: 21.5,
            timestamp_ms: NOW_MS,
            metadata: None,
        },
        client: ClientId(1),
        received_at_us: NOW_MS * 1_000 + 250,
        partition,
        offset,
        unsure: None,
        replay: None,
    }
}

/// Rows of partition 0 from an offset on, with these ids.
pub fn rows(first: Offset, ids: impl IntoIterator<Item = u128>) -> Vec<StoreRow> {
    (first..).zip(ids).map(|(offset, id)| row(0, offset, id)).collect()
}

/// Metadata from its JSON.
pub fn metadata(json: &str) -> Option<Metadata> {
    let raw: &RawValue = serde_json::from_str(json).expect("the test wrote JSON");
    Some(Metadata::from_json(raw).expect("the test wrote metadata"))
}

/// A place in [`EPOCH`].
pub fn place(partition: Partition, next: Offset) -> Progress {
    Progress { partition, epoch: EPOCH, next, last_id: None }
}

/// A batch that moves partition 0 from one offset to another.
pub fn batch(from: Offset, to: Offset, rows: Vec<StoreRow>) -> StoreBatch<'static> {
    let (from, to) = (vec![place(0, from)], vec![place(0, to)]);
    StoreBatch { group: GROUP, from, to, rows, dead: Vec::new() }
}

/// The count of a batch that was stored without dead letters.
pub fn stored(new: u64, duplicates: u64) -> Written {
    Written::Stored { new, duplicates, dead: Vec::new() }
}

/// The places and reasons of the dead letters of a stored batch, beside its counts.
///
/// # Panics
/// When it was fenced.
#[track_caller]
pub fn verdict(written: &Written) -> (u64, u64, Vec<(Offset, &'static str)>) {
    let Written::Stored { new, duplicates, dead } = written else { panic!("fenced") };
    let mut dead: Vec<_> =
        dead.iter().map(|letter| (letter.offset, letter.reason.as_str())).collect();
    dead.sort_unstable();
    (*new, *duplicates, dead)
}

/// A sink that remembers what it was given, and fails as often as it is told.
#[derive(Default)]
pub struct Copies {
    /// All letters of all successful calls.
    pub letters: Mutex<Vec<DeadLetter>>,
    /// So many calls fail from now on.
    pub failures: AtomicU32,
}

impl Copies {
    /// The offsets it was given.
    pub fn offsets(&self) -> Vec<Offset> {
        let letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        letters.iter().map(|letter| letter.offset).collect()
    }
}

#[async_trait]
impl DeadLetterSink for Copies {
    async fn accept(&self, letters: &[DeadLetter]) -> Result<Vec<DeadCopy>, LogError> {
        let fails = self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        if fails {
            return Err(LogError::Unavailable("told to fail".to_owned()));
        }
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(letters);
        Ok(letters.iter().map(copy_of).collect())
    }
}

/// What such a sink says of a letter: its place, a thousand further on, as often as it was replayed.
pub fn copy_of(letter: &DeadLetter) -> DeadCopy {
    DeadCopy {
        partition: letter.partition,
        offset: letter.offset + 1_000,
        device: Some(DeviceId(Uuid::from_u128(0xd))),
        attempt: if letter.replay.is_some() { 2 } else { 1 },
    }
}

impl Fixture {
    /// Writes with a sink nobody looks at.
    ///
    /// # Panics
    /// When the store fails.
    pub async fn write(&self, batch: &StoreBatch<'_>) -> Written {
        self.store.write(batch, &Copies::default()).await.expect("the store works")
    }

    /// Gives partitions of [`GROUP`] their first place: offset 0 of [`EPOCH`].
    ///
    /// # Panics
    /// When the store fails.
    pub async fn begin(&self, partitions: i32) {
        for partition in 0..partitions {
            let first = self.store.place(GROUP, None, place(partition, 0)).await;
            assert_eq!(first.expect("the store works"), place(partition, 0));
        }
    }

    /// Where partition 0 of [`GROUP`] stands.
    ///
    /// # Panics
    /// When the store fails or knows no place.
    pub async fn next(&self) -> Offset {
        let places = self.store.progress(GROUP).await.expect("the store works");
        places.first().expect("a place was given").next
    }

    /// The number of events in the table.
    ///
    /// # Panics
    /// When the store fails.
    pub async fn count(&self) -> u64 {
        self.store.count_events().await.expect("the store works")
    }

    /// Offsets and reasons in `dead_letters`.
    ///
    /// # Panics
    /// When the store fails.
    pub async fn buried(&self) -> Vec<(Offset, String)> {
        let buried = self.store.buried_records().await.expect("the store works");
        buried.into_iter().map(|record| (record.offset, record.reason)).collect()
    }
}
