//! Rules of groups: committed places, sharing, taking over.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    Fixture, Member, PARTITIONS, PATIENCE, append, every_partition, numbered, record, values,
};
use crate::log::{EventLog, Offset, Partition, Topic};
use crate::testing::wait_for;

/// Waits until a member reads back those places.
async fn until_committed(member: &mut Member, expected: &[Option<Offset>]) {
    let partitions: Vec<Partition> = every_partition().collect();
    let consumer = tokio::sync::Mutex::new(&mut member.consumer);
    wait_for("the committed places", PATIENCE, || async {
        consumer.lock().await.committed(&partitions).await.is_ok_and(|places| places == expected)
    })
    .await;
}

/// What one member committed the next one reads; a partition without a commit has none.
pub async fn committed_places_survive_a_new_member(it: Fixture) {
    append(&it.log, Topic::Raw, numbered(1, "n", 5)).await;
    let mut first = Member::join_alone(&it.log, "suite").await;
    until_committed(&mut first, &[None; 4]).await;
    first.consumer.commit(1, 2);
    first.consumer.commit(1, 3);
    first.consumer.commit(2, 0);
    until_committed(&mut first, &[None, Some(3), Some(0), None]).await;
    drop(first);
    let mut second = Member::join_alone(&it.log, "suite").await;
    until_committed(&mut second, &[None, Some(3), Some(0), None]).await;
    // Places may go back: the store's own offsets decide.
    second.consumer.commit(1, 1);
    until_committed(&mut second, &[None, Some(1), Some(0), None]).await;
}

/// The log keeps them, not the process.
pub async fn committed_places_survive_a_reopen(it: Fixture) {
    append(&it.log, Topic::Raw, numbered(3, "n", 5)).await;
    let mut member = Member::join_alone(&it.log, "suite").await;
    member.consumer.commit(3, 4);
    until_committed(&mut member, &[None, None, None, Some(4)]).await;
    drop(member);
    let it = it.reopen().await;
    let mut member = Member::join_alone(&it.log, "suite").await;
    until_committed(&mut member, &[None, None, None, Some(4)]).await;
}

/// Each group gets everything and has places of its own.
pub async fn groups_do_not_share_records_or_places(it: Fixture) {
    let mut one = Member::join_alone(&it.log, "one").await;
    let mut two = Member::join_alone(&it.log, "two").await;
    for partition in every_partition() {
        one.seek(partition, 0);
        two.seek(partition, 0);
        append(&it.log, Topic::Raw, numbered(partition, "n", 10)).await;
    }
    for member in [&mut one, &mut two] {
        member.until("everything", |it| it.records.len() == 10 * PARTITIONS as usize).await;
    }
    one.consumer.commit(0, 10);
    until_committed(&mut one, &[Some(10), None, None, None]).await;
    until_committed(&mut two, &[None; 4]).await;
}

/// Takes events of both until they hold disjoint halves.
async fn until_split(one: &mut Member, two: &mut Member) {
    let half = PARTITIONS as usize / 2;
    let split = async {
        while !(one.assigned.len() == half
            && two.assigned.len() == half
            && one.assigned.is_disjoint(&two.assigned))
        {
            tokio::select! {
                event = one.consumer.next() => one.take(event.expect("the member lives")),
                event = two.consumer.next() => two.take(event.expect("the member lives")),
            }
        }
    };
    tokio::time::timeout(PATIENCE, split).await.expect("an even split in time");
}

async fn fill_every_partition(log: &Arc<dyn EventLog>, prefix: &str, count: usize) {
    for partition in every_partition() {
        append(log, Topic::Raw, numbered(partition, prefix, count)).await;
    }
}

/// Half and half, nothing in both, nothing in neither.
pub async fn two_members_split_the_partitions_and_each_record_comes_once(it: Fixture) {
    let mut one = Member::join(&it.log, "suite").await;
    let mut two = Member::join(&it.log, "suite").await;
    until_split(&mut one, &mut two).await;
    for member in [&mut one, &mut two] {
        member.assigned.clone().into_iter().for_each(|partition| member.seek(partition, 0));
    }
    fill_every_partition(&it.log, "n", 50).await;
    for member in [&mut one, &mut two] {
        member.until("its half", |it| it.records.len() >= 100).await;
    }
    for partition in every_partition() {
        let (ours, theirs) = (one.of(partition), two.of(partition));
        assert!(ours.is_empty() || theirs.is_empty(), "one member a partition");
        let came: Vec<_> = ours.iter().chain(&theirs).map(|record| record.offset).collect();
        assert!(came.into_iter().eq(0..50), "each record once, in order");
    }
}

/// `Member` fails at any record of a partition that was revoked; the new owner goes on from the place
/// the old one reached.
pub async fn a_member_that_joins_takes_over_without_repeats_after_revoked(it: Fixture) {
    let mut one = Member::join_alone(&it.log, "suite").await;
    every_partition().for_each(|partition| one.seek(partition, 0));
    fill_every_partition(&it.log, "early", 2_000).await;
    one.until("the first records", |it| !it.records.is_empty()).await;
    let mut two = Member::join(&it.log, "suite").await;
    until_split(&mut one, &mut two).await;
    let mut places: BTreeMap<Partition, Offset> = every_partition().map(|p| (p, 0)).collect();
    for record in &one.records {
        places.insert(record.partition, record.offset + 1);
    }
    for member in [&mut one, &mut two] {
        for partition in member.assigned.clone() {
            member.seek(partition, places[&partition]);
        }
    }
    fill_every_partition(&it.log, "late", 1).await;
    let end = |member: &Member, partition| {
        member.of(partition).last().is_some_and(|record| &record.value[..] == b"late-0")
    };
    for member in [&mut one, &mut two] {
        let ours = member.assigned.clone();
        member.until("the last records", |it| ours.iter().all(|p| end(it, *p))).await;
    }
    for partition in every_partition() {
        let all = one.of(partition).into_iter().chain(two.of(partition));
        assert!(all.map(|record| record.offset).eq(0..2_001), "partition {partition}");
    }
}

/// Leaving is dropping; nobody has to be told.
pub async fn the_others_get_everything_when_a_member_is_dropped(it: Fixture) {
    let mut one = Member::join(&it.log, "suite").await;
    let mut two = Member::join(&it.log, "suite").await;
    until_split(&mut one, &mut two).await;
    append(&it.log, Topic::Raw, vec![record(0, "before")]).await;
    drop(one);
    two.until("every partition", |it| it.assigned.len() == PARTITIONS as usize).await;
    every_partition().for_each(|partition| two.seek(partition, 0));
    fill_every_partition(&it.log, "after", 1).await;
    two.until("everything", |it| it.records.len() > PARTITIONS as usize).await;
    assert_eq!(values(&two.of(0)), ["before", "after-0"]);
}
