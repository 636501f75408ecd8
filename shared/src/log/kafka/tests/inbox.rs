//! The inbox without a broker.

use bytes::Bytes;

use super::*;
use crate::log::Headers;

fn records(partition: Partition, offsets: std::ops::Range<Offset>) -> Vec<Record> {
    let record = |offset| Record {
        partition,
        offset,
        logged_at_ms: 0,
        key: None,
        value: Bytes::new(),
        headers: Headers::default(),
    };
    offsets.map(record).collect()
}

/// An inbox whose owner was told of these partitions and gave them place 0.
fn started(partitions: &[Partition]) -> Inbox {
    let mut inbox = Inbox::default();
    inbox.assigned(partitions.to_vec());
    assert!(matches!(inbox.pop(), Some(LogEvent::Assigned(_))));
    for &partition in partitions {
        inbox.seek(partition, 0);
    }
    inbox
}

fn generation(inbox: &Inbox, partition: Partition) -> u64 {
    inbox.starts()[&partition].generation
}

#[test]
fn records_fetched_before_a_seek_never_come_out_queued_or_not() {
    let mut inbox = started(&[0, 1]);
    let (old, other) = (generation(&inbox, 0), generation(&inbox, 1));
    inbox.deliver(0, old, records(0, 0..5), 500);
    inbox.deliver(1, other, records(1, 0..2), 200);
    inbox.seek(0, 3);
    inbox.deliver(0, old, records(0, 5..9), 400);
    assert_eq!(inbox.starts()[&0].place, 3);
    inbox.deliver(0, generation(&inbox, 0), records(0, 3..4), 100);
    assert!(matches!(inbox.pop(), Some(LogEvent::Records(1, _))));
    let Some(LogEvent::Records(0, read)) = inbox.pop() else { panic!("no records") };
    assert_eq!(read[0].offset, 3);
    assert!(inbox.pop().is_none());
    assert_eq!((inbox.records, inbox.bytes), (0, 0));
}

#[test]
fn after_a_farewell_nothing_of_the_partition_comes() {
    let mut inbox = started(&[0, 1]);
    let old = generation(&inbox, 0);
    inbox.deliver(0, old, records(0, 0..5), 500);
    inbox.revoked(&[0]);
    inbox.deliver(0, old, records(0, 5..6), 100);
    assert!(matches!(inbox.pop(), Some(LogEvent::Revoked(gone)) if gone == [0]));
    assert!(inbox.pop().is_none());
    assert_eq!((inbox.records, inbox.bytes), (0, 0));
}

#[test]
fn a_seek_for_an_assignment_the_owner_has_not_heard_of_is_ignored() {
    let mut inbox = started(&[0]);
    inbox.revoked(&[0]);
    inbox.assigned(vec![0]);
    inbox.seek(0, 7);
    assert!(inbox.starts().is_empty());
    assert!(matches!(inbox.pop(), Some(LogEvent::Revoked(_))));
    inbox.seek(0, 7);
    assert!(inbox.starts().is_empty());
    assert!(matches!(inbox.pop(), Some(LogEvent::Assigned(_))));
    inbox.seek(0, 7);
    assert_eq!(inbox.starts()[&0].place, 7);
}

#[test]
fn a_group_that_rebalances_for_ever_does_not_fill_the_queue_of_an_absent_owner() {
    let mut inbox = started(&[0, 1]);
    for _ in 0..1_000 {
        inbox.revoked(&[0, 1]);
        inbox.assigned(vec![0, 1]);
    }
    assert!(inbox.events.len() <= 2, "{}", inbox.events.len());
    assert!(matches!(inbox.pop(), Some(LogEvent::Revoked(gone)) if gone == [0, 1]));
    assert!(matches!(inbox.pop(), Some(LogEvent::Assigned(ours)) if ours == [0, 1]));
}

#[test]
fn a_place_out_of_range_is_told_once_and_only_if_it_is_still_the_place() {
    let mut inbox = started(&[0]);
    let old = generation(&inbox, 0);
    inbox.seek(0, 9);
    inbox.out_of_range(0, old);
    assert!(inbox.pop().is_none());
    let present = generation(&inbox, 0);
    inbox.out_of_range(0, present);
    inbox.out_of_range(0, present);
    inbox.deliver(0, present, records(0, 9..10), 100);
    assert!(matches!(inbox.pop(), Some(LogEvent::OutOfRange(Some(0)))));
    assert!(inbox.pop().is_none());
    assert!(inbox.starts().is_empty());
}

#[test]
fn fetching_stops_when_full_and_goes_on_when_half_empty() {
    let mut inbox = started(&[0]);
    let generation = generation(&inbox, 0);
    let mut next = 0;
    while !inbox.full() {
        inbox.deliver(0, generation, records(0, next..next + 1_000), 1_000);
        next += 1_000;
    }
    assert!(inbox.records < FULL_RECORDS + 1_000);
    while !inbox.roomy() {
        assert!(inbox.pop().is_some());
    }
    assert!(inbox.records > 0 && !inbox.full());
}
