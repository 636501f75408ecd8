//! Rules of one member of a group.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{
    Fixture, Member, PARTITIONS, append, bounds_of, every_partition, numbered, record, values,
};
use crate::log::Topic;

/// Another partition's later record comes through, the unsought one's earlier does not.
pub async fn nothing_of_a_partition_comes_before_its_seek(it: Fixture) {
    append(&it.log, Topic::Raw, numbered(0, "silent", 3)).await;
    let mut member = Member::join_alone(&it.log, "suite").await;
    member.seek(1, 0);
    append(&it.log, Topic::Raw, numbered(0, "silent", 3)).await;
    // `Member` fails at any record of a partition without a place.
    member.fence(&it.log, 1).await;
    member.seek(0, 0);
    member.until("the sought partition", |it| it.count_of(0) == 6).await;
}

/// Every partition, in order, with every part of the record.
pub async fn records_are_consumed_as_they_were_appended(it: Fixture) {
    let mut member = Member::join_alone(&it.log, "suite").await;
    for partition in every_partition() {
        member.seek(partition, 0);
        append(&it.log, Topic::Raw, numbered(partition, "n", 700)).await;
    }
    member.until("all records", |it| it.records.len() >= 700 * PARTITIONS as usize).await;
    for partition in every_partition() {
        let consumed = member.of(partition);
        assert_eq!(values(&consumed), (0..700).map(|n| format!("n-{n}")).collect::<Vec<_>>());
        let key = format!("key-{partition}");
        assert!(consumed.iter().all(|record| record.key.as_deref() == Some(key.as_bytes())));
        assert!(consumed.iter().all(|record| record.headers.get("client") == Some(b"7")));
        assert!(consumed.iter().all(|record| record.logged_at_ms > 0));
    }
}

/// Neither stops the other; nothing is lost or repeated between them.
pub async fn consuming_goes_on_while_appending_goes_on(it: Fixture) {
    let mut member = Member::join_alone(&it.log, "suite").await;
    every_partition().for_each(|partition| member.seek(partition, 0));
    let log = Arc::clone(&it.log);
    let writer = tokio::spawn(async move {
        for batch in 0..60 {
            for partition in every_partition() {
                append(&log, Topic::Raw, numbered(partition, &batch.to_string(), 20)).await;
            }
        }
    });
    member.until("all records", |it| it.records.len() >= 1_200 * PARTITIONS as usize).await;
    writer.await.expect("the writer ends well");
    let expected: Vec<_> = (0..60).flat_map(|b| (0..20).map(move |n| format!("{b}-{n}"))).collect();
    for partition in every_partition() {
        assert_eq!(values(&member.of(partition)), expected);
    }
}

/// Backwards repeats, forwards skips; the first record after a seek is the one asked for.
pub async fn a_seek_drops_what_was_fetched_for_an_earlier_place(it: Fixture) {
    append(&it.log, Topic::Raw, numbered(0, "n", 3_000)).await;
    let mut member = Member::join_alone(&it.log, "suite").await;
    for place in [0, 2_900, 0, 1_500, 1_499, 2_999, 0] {
        member.seek(0, place);
        member.records.clear();
        member.until("the first records after a seek", |it| !it.records.is_empty()).await;
        assert_eq!(member.records[0].offset, place);
    }
    // Twice in a row without an event between: the later one holds.
    member.seek(0, 10);
    member.seek(0, 2_000);
    member.records.clear();
    member.until("the rest", |it| it.records.len() >= 1_000).await;
    let offsets = member.records.iter().map(|record| record.offset);
    assert!(offsets.eq(2_000..3_000), "each record from the place on, once");
}

/// What is appended during a pause comes after it, once.
pub async fn a_paused_partition_is_silent_until_it_is_resumed(it: Fixture) {
    let mut member = Member::join_alone(&it.log, "suite").await;
    every_partition().for_each(|partition| member.seek(partition, 0));
    append(&it.log, Topic::Raw, vec![record(0, "before"), record(1, "before")]).await;
    member.until("both partitions", |it| it.records.len() == 2).await;
    member.consumer.pause(&[0]);
    append(&it.log, Topic::Raw, numbered(0, "during", 10)).await;
    member.fence(&it.log, 1).await;
    assert_eq!(member.count_of(0), 1, "a paused partition is silent");
    member.consumer.resume(&[0]);
    member.until("what came during the pause", |it| it.count_of(0) >= 11).await;
    append(&it.log, Topic::Raw, vec![record(0, "after")]).await;
    member.until("what came after it", |it| it.count_of(0) >= 12).await;
    assert!(member.of(0).iter().map(|record| record.offset).eq(0..12), "each once, in order");
}

/// `next` under a timeout that mostly fires: nothing is lost, repeated or reordered.
pub async fn a_dropped_wait_for_the_next_event_loses_nothing(it: Fixture) {
    let mut member = Member::join_alone(&it.log, "suite").await;
    every_partition().for_each(|partition| member.seek(partition, 0));
    let log = Arc::clone(&it.log);
    let writer = tokio::spawn(async move {
        for batch in 0..50 {
            append(&log, Topic::Raw, numbered(2, &batch.to_string(), 10)).await;
        }
    });
    let all = async {
        while member.count_of(2) < 500 {
            if let Ok(event) = timeout(Duration::from_micros(200), member.consumer.next()).await {
                member.take(event.expect("the member lives"));
            }
        }
    };
    timeout(super::PATIENCE, all).await.expect("all records in time");
    writer.await.expect("the writer ends well");
    assert!(member.of(2).iter().map(|record| record.offset).eq(0..500));
}

/// No delivery from there, not even of records that make the place valid later.
pub async fn a_place_beyond_the_log_is_told_and_waits_for_a_new_seek(it: Fixture) {
    append(&it.log, Topic::Raw, numbered(0, "n", 5)).await;
    let mut member = Member::join_alone(&it.log, "suite").await;
    member.seek(0, 1_000);
    member.until("out of range", |it| it.out_of_range > 0).await;
    member.seek(1, 0);
    append(&it.log, Topic::Raw, vec![record(0, "later")]).await;
    member.fence(&it.log, 1).await;
    assert_eq!(member.count_of(0), 0, "delivery has stopped");
    member.seek(0, 2);
    member.until("delivery from the new place", |it| it.count_of(0) >= 4).await;
    let next = bounds_of(&it.log, Topic::Raw, 0).await.next;
    assert!(member.of(0).iter().map(|record| record.offset).eq(2..next));
}
