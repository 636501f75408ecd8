//! The conformance suite of [`EventLog`], [`LogConsumer`] and [`LogIdentity`].
//!
//! Each rule of the port's documentation is one function whose name is the rule. An engine runs them all
//! with [`log_conformance!`](crate::log_conformance) over a function that gives a [`Fixture`]: a fresh,
//! empty, migrated log of [`PARTITIONS`] partitions. Rules wait for conditions with one generous
//! deadline (a rebalance of a real broker takes seconds) and never sleep. That something does *not*
//! come is shown by a fence: another record, sent later, that does come.
//!
//! What only one engine can show (crash points, retention, lock files) is tested beside that engine.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use crate::log::{
    EventLog, Headers, LogConsumer, LogEvent, LogIdentity, NewRecord, Offset, Partition, ReadLimit,
    Record, Topic,
};

mod append;
mod consume;
mod groups;
mod identity;
mod reading;

pub use append::*;
pub use consume::*;
pub use groups::*;
pub use identity::*;
pub use reading::*;

/// Partitions of every log the suite is given.
pub const PARTITIONS: u32 = 4;

/// How long a rule waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// More than any rule appends.
const ALL: ReadLimit = ReadLimit { records: 100_000, bytes: 64 << 20 };

/// Ends the engine as its process would and opens the same log again.
pub type Reopen = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = Fixture> + Send>> + Send>;

/// A fresh, empty, migrated log of [`PARTITIONS`] partitions; whatever it needs lives in `reopen`.
pub struct Fixture {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Its name for itself.
    pub identity: Arc<dyn LogIdentity>,
    /// Opens the same log again. Called after the other two are dropped.
    pub reopen: Reopen,
}

impl Fixture {
    async fn reopen(self) -> Self {
        let Self { log, identity, reopen } = self;
        drop((log, identity));
        reopen().await
    }
}

/// Makes one `#[tokio::test]` of each rule: `log_conformance!(fixture);` where `fixture` is a path to an
/// `async fn() -> Fixture`.
#[macro_export]
macro_rules! log_conformance {
    ($fixture:path) => {
        $crate::log_conformance! { @rules $fixture:
            records_come_back_byte_for_byte
            offsets_grow_and_a_partition_keeps_the_order_of_its_batches
            an_empty_batch_is_answered_with_nothing
            a_record_for_a_partition_that_does_not_exist_is_refused_alone
            many_appends_at_once_are_each_answered_and_keep_their_order
            records_carry_the_time_at_which_the_log_took_them
            dropping_an_append_loses_only_the_answer
            dead_letters_are_apart_from_events
            bounds_cover_what_was_confirmed
            reading_starts_at_the_place_and_ends_at_the_limit
            reading_on_from_the_last_record_gives_each_record_once
            a_time_is_located_at_the_first_record_logged_then_or_later
            records_and_offsets_survive_a_reopen
            the_identity_is_stable_over_a_reopen
            renewing_changes_the_epoch_once_for_two_that_saw_the_same
            a_renewed_identity_survives_a_reopen
        }
        $crate::group_conformance!($fixture);
    };
    (@rules $fixture:path: $($rule:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $rule() {
                $crate::testing::log::$rule($fixture().await).await;
            }
        )+
    };
}

/// The rules of groups and their members alone, for an engine that has more than one kind of them.
#[macro_export]
macro_rules! group_conformance {
    ($fixture:path) => {
        $crate::log_conformance! { @rules $fixture:
            nothing_of_a_partition_comes_before_its_seek
            records_are_consumed_as_they_were_appended
            consuming_goes_on_while_appending_goes_on
            a_seek_drops_what_was_fetched_for_an_earlier_place
            a_paused_partition_is_silent_until_it_is_resumed
            a_dropped_wait_for_the_next_event_loses_nothing
            a_place_beyond_the_log_is_told_and_waits_for_a_new_seek
            committed_places_survive_a_new_member
            committed_places_survive_a_reopen
            groups_do_not_share_records_or_places
            two_members_split_the_partitions_and_each_record_comes_once
            a_member_that_joins_takes_over_without_repeats_after_revoked
            the_others_get_everything_when_a_member_is_dropped
        }
    };
}

/// A record of a partition, with a key of its own.
fn record(partition: Partition, value: impl Into<String>) -> NewRecord {
    NewRecord {
        partition,
        key: Some(Bytes::from(format!("key-{partition}"))),
        value: Bytes::from(value.into()),
        headers: Headers::builder().with("client", b"7").build(),
        outcomes: Vec::new(),
    }
}

/// `count` records of a partition whose values are `PREFIX-0`, `PREFIX-1`, ...
fn numbered(partition: Partition, prefix: &str, count: usize) -> Vec<NewRecord> {
    (0..count).map(|n| record(partition, format!("{prefix}-{n}"))).collect()
}

fn every_partition() -> impl Iterator<Item = Partition> {
    0..Partition::try_from(PARTITIONS).expect("a small number")
}

fn values(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8_lossy(&record.value).into_owned()).collect()
}

/// Appends, and asks for an offset for each record.
async fn append(log: &Arc<dyn EventLog>, topic: Topic, records: Vec<NewRecord>) -> Vec<Offset> {
    let count = records.len();
    let results =
        timeout(PATIENCE, log.append(topic, records)).await.expect("append answers in time");
    assert_eq!(results.len(), count, "one answer a record");
    results.into_iter().map(|result| result.expect("the log takes the record")).collect()
}

async fn read_all(log: &Arc<dyn EventLog>, topic: Topic, partition: Partition) -> Vec<Record> {
    let first = bounds_of(log, topic, partition).await.first;
    let mut records: Vec<Record> = Vec::new();
    loop {
        let from = records.last().map_or(first, |last| last.offset + 1);
        let more = log.read(topic, partition, from, ALL).await.expect("the log can be read");
        if more.is_empty() {
            return records;
        }
        records.extend(more);
    }
}

async fn bounds_of(
    log: &Arc<dyn EventLog>,
    topic: Topic,
    partition: Partition,
) -> crate::log::Bounds {
    let bounds = log.bounds(topic).await.expect("the log tells its bounds");
    let index = usize::try_from(partition).expect("not negative");
    *bounds.get(index).expect("bounds of every partition")
}

/// A member of a group that checks the protocol at every event and keeps what it was told.
struct Member {
    consumer: Box<dyn LogConsumer>,
    assigned: BTreeSet<Partition>,
    sought: BTreeSet<Partition>,
    records: Vec<Record>,
    out_of_range: usize,
}

impl Member {
    async fn join(log: &Arc<dyn EventLog>, group: &str) -> Self {
        let consumer = log.consume(group).await.expect("a member can start");
        let (assigned, sought) = Default::default();
        Self { consumer, assigned, sought, records: Vec::new(), out_of_range: 0 }
    }

    /// Joins as the only member and waits for every partition, without giving any a place.
    async fn join_alone(log: &Arc<dyn EventLog>, group: &str) -> Self {
        let mut member = Self::join(log, group).await;
        member.until("every partition", |it| it.assigned.len() == PARTITIONS as usize).await;
        member
    }

    fn seek(&mut self, partition: Partition, offset: Offset) {
        self.consumer.seek(partition, offset);
        self.sought.insert(partition);
    }

    /// Takes events until the condition holds; partitions get no place by themselves.
    async fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = tokio::time::Instant::now() + PATIENCE;
        while !done(self) {
            let event = tokio::time::timeout_at(end, self.consumer.next())
                .await
                .unwrap_or_else(|_| self.give_up(what))
                .expect("the member lives");
            self.take(event);
        }
    }

    /// Shows that nothing else comes: records of a served partition, appended one after the other, each
    /// waited for. Whatever was to come before them has had its turn.
    async fn fence(&mut self, log: &Arc<dyn EventLog>, partition: Partition) {
        for _ in 0..3 {
            let before = self.count_of(partition);
            append(log, Topic::Raw, vec![record(partition, "fence")]).await;
            self.until("a fence", |it| it.count_of(partition) > before).await;
        }
    }

    fn take(&mut self, event: LogEvent) {
        match event {
            LogEvent::Assigned(partitions) => {
                for partition in partitions {
                    assert!(self.assigned.insert(partition), "{partition} was assigned twice");
                    assert!(!self.sought.contains(&partition), "a place outlived the assignment");
                }
            }
            LogEvent::Revoked(partitions) => {
                for partition in partitions {
                    assert!(self.assigned.remove(&partition), "{partition} was not ours");
                    self.sought.remove(&partition);
                }
            }
            LogEvent::Records(partition, records) => self.take_records(partition, records),
            LogEvent::OutOfRange(_) => self.out_of_range += 1,
        }
    }

    fn take_records(&mut self, partition: Partition, records: Vec<Record>) {
        assert!(self.assigned.contains(&partition), "records of {partition}, which is not ours");
        assert!(self.sought.contains(&partition), "records of {partition} before its seek");
        assert!(!records.is_empty(), "an empty batch is no event");
        assert!(
            records.iter().all(|record| record.partition == partition),
            "one partition a batch"
        );
        assert!(records.is_sorted_by(|a, b| a.offset < b.offset), "a batch is in offset order");
        self.records.extend(records);
    }

    /// What came of one partition, in the order in which it came.
    fn of(&self, partition: Partition) -> Vec<Record> {
        self.records.iter().filter(|record| record.partition == partition).cloned().collect()
    }

    fn count_of(&self, partition: Partition) -> usize {
        self.records.iter().filter(|record| record.partition == partition).count()
    }

    #[expect(clippy::panic, reason = "a rule that waits in vain has failed")]
    fn give_up(&self, what: &str) -> ! {
        let (assigned, records) = (&self.assigned, self.records.len());
        panic!("waited {PATIENCE:?} in vain for {what}; have {assigned:?} and {records} records")
    }
}
