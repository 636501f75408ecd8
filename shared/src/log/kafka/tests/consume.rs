//! Members of a group.

use std::time::Instant;

use super::read::delete_before;
use super::*;
use crate::log::kafka::inbox::FULL_RECORDS;

under_both_protocols!(
    nothing_is_handed_out_before_a_seek_and_everything_after_it,
    a_record_appended_while_waiting_arrives_within_milliseconds,
    a_seek_backwards_repeats_and_a_seek_forwards_skips_what_was_fetched,
    two_members_share_the_partitions_and_nothing_comes_after_a_farewell,
    a_paused_partition_is_silent_and_goes_on_where_it_was,
    a_commit_outlives_its_member,
    a_place_outside_the_log_is_told_and_delivery_waits_for_a_seek,
    an_owner_that_never_calls_keeps_its_membership_and_a_bounded_queue,
);

async fn log_under(rebalance_protocol: RebalanceProtocol, partitions: u32) -> KafkaLog {
    made(KafkaConfig { rebalance_protocol, ..config(partitions) }).await
}

async fn nothing_is_handed_out_before_a_seek_and_everything_after_it(protocol: RebalanceProtocol) {
    let log = log_under(protocol, 2).await;
    fill(&log, 0, 10).await;
    let mut member = log.consume(GROUP).await.unwrap();
    assert_eq!(assigned(&mut *member).await, [0, 1]);
    assert!(silent(&mut *member, Duration::from_millis(700)).await);
    member.seek(0, 4);
    assert_eq!(offsets(&records(&mut *member, 6).await), [4, 5, 6, 7, 8, 9]);
    fill(&log, 0, 1).await;
    assert_eq!(offsets(&records(&mut *member, 1).await), [10]);
    // The other partition waits for its own place.
    fill(&log, 1, 1).await;
    assert!(silent(&mut *member, Duration::from_millis(300)).await);
    member.seek(1, 0);
    let read = records(&mut *member, 1).await;
    assert_eq!((read[0].partition, read[0].offset), (1, 0));
}

async fn a_record_appended_while_waiting_arrives_within_milliseconds(protocol: RebalanceProtocol) {
    let log = log_under(protocol, 12).await;
    let mut member = log.consume(GROUP).await.unwrap();
    for partition in assigned(&mut *member).await {
        member.seek(partition, 0);
    }
    fill(&log, 3, 1).await;
    records(&mut *member, 1).await;
    let mut times = Vec::new();
    for n in 0..20 {
        let started = Instant::now();
        fill(&log, n % 12, 1).await;
        records(&mut *member, 1).await;
        times.push(started.elapsed());
    }
    times.sort();
    assert!(times[10] < Duration::from_millis(100), "{times:?}");
}

async fn a_seek_backwards_repeats_and_a_seek_forwards_skips_what_was_fetched(
    protocol: RebalanceProtocol,
) {
    let log = log_under(protocol, 1).await;
    fill(&log, 0, 1_000).await;
    let mut member = log.consume(GROUP).await.unwrap();
    assigned(&mut *member).await;
    member.seek(0, 0);
    assert_eq!(records(&mut *member, 1_000).await.len(), 1_000);
    for place in [500, 900, 0, 999, 1] {
        member.seek(0, place);
        let expected: Vec<_> = (place..1_000).collect();
        let read = records(&mut *member, expected.len()).await;
        assert_eq!(offsets(&read), expected, "after a seek to {place}");
        // And now with records under way and in the queue.
        member.seek(0, 0);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    member.seek(0, 998);
    assert_eq!(offsets(&records(&mut *member, 2).await), [998, 999]);
}

async fn two_members_share_the_partitions_and_nothing_comes_after_a_farewell(
    protocol: RebalanceProtocol,
) {
    let log = log_under(protocol, 4).await;
    let mut first = log.consume(GROUP).await.unwrap();
    let mut own = assigned(&mut *first).await;
    assert_eq!(own, [0, 1, 2, 3]);
    own.iter().for_each(|&partition| first.seek(partition, 0));
    let mut second = log.consume(GROUP).await.unwrap();
    let mut theirs = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while own.len() != 2 || theirs.len() != 2 {
        assert!(Instant::now() < deadline, "{own:?} {theirs:?}");
        // Records keep coming all the while.
        log.append(Topic::Raw, (0..4).map(|p| record(p, "x")).collect()).await;
        for (member, owned) in [(&mut first, &mut own), (&mut second, &mut theirs)] {
            let event = tokio::time::timeout(Duration::from_millis(50), member.next()).await;
            let Ok(event) = event.map(Result::unwrap) else { continue };
            if follow(owned, &event) {
                owned.iter().for_each(|&partition| member.seek(partition, 0));
            } else {
                let LogEvent::Records(partition, _) = event else { panic!("{event:?}") };
                assert!(owned.contains(&partition));
            }
        }
    }
    let mut all = [own.clone(), theirs].concat();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3]);
    // The one that goes leaves at once, not after its session times out.
    drop(second);
    let left = Instant::now();
    while own.len() < 4 {
        follow(&mut own, &next(&mut *first).await);
    }
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_cooperative_member_gives_back_what_another_gets_and_goes_on_with_the_rest() {
    let log = log_under(RebalanceProtocol::Cooperative, 4).await;
    let mut first = log.consume(GROUP).await.unwrap();
    let mut own = assigned(&mut *first).await;
    own.iter().for_each(|&partition| first.seek(partition, 0));
    fill(&log, 0, 1).await;
    records(&mut *first, 1).await;
    let mut second = log.consume(GROUP).await.unwrap();
    let event = next(&mut *first).await;
    assert!(matches!(&event, LogEvent::Revoked(gone) if gone.len() == 2), "{event:?}");
    follow(&mut own, &event);
    let theirs = assigned(&mut *second).await;
    assert_eq!(theirs.len(), 2);
    // Nobody had to give it a place again.
    fill(&log, theirs[0], 1).await;
    fill(&log, own[0], 1).await;
    assert_eq!(records(&mut *first, 1).await[0].partition, own[0]);
}

async fn a_paused_partition_is_silent_and_goes_on_where_it_was(protocol: RebalanceProtocol) {
    let log = log_under(protocol, 2).await;
    let mut member = log.consume(GROUP).await.unwrap();
    for partition in assigned(&mut *member).await {
        member.seek(partition, 0);
    }
    fill(&log, 0, 5).await;
    records(&mut *member, 5).await;
    member.pause(&[0]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    fill(&log, 0, 5).await;
    fill(&log, 1, 1).await;
    assert_eq!(records(&mut *member, 1).await[0].partition, 1);
    assert!(silent(&mut *member, Duration::from_millis(300)).await);
    member.resume(&[0]);
    assert_eq!(offsets(&records(&mut *member, 5).await), [5, 6, 7, 8, 9]);
}

async fn a_commit_outlives_its_member(protocol: RebalanceProtocol) {
    let log = log_under(protocol, 2).await;
    fill(&log, 0, 10).await;
    let mut member = log.consume(GROUP).await.unwrap();
    assigned(&mut *member).await;
    assert_eq!(member.committed(&[0, 1]).await.unwrap(), [None, None]);
    member.commit(0, 3);
    member.commit(0, 7);
    drop(member);
    let mut member = log.consume(GROUP).await.unwrap();
    assigned(&mut *member).await;
    assert_eq!(member.committed(&[1, 0]).await.unwrap(), [None, Some(7)]);
    member.commit(1, 1);
    crate::testing::wait_for("the commit to be sent", PATIENCE, {
        let member = std::sync::Arc::new(tokio::sync::Mutex::new(member));
        move || {
            let member = std::sync::Arc::clone(&member);
            async move { member.lock().await.committed(&[1]).await.unwrap() == [Some(1)] }
        }
    })
    .await;
}

async fn a_place_outside_the_log_is_told_and_delivery_waits_for_a_seek(
    protocol: RebalanceProtocol,
) {
    let log = log_under(protocol, 2).await;
    fill(&log, 0, 10).await;
    fill(&log, 1, 10).await;
    delete_before(&log, 0, 5).await;
    let mut member = log.consume(GROUP).await.unwrap();
    assigned(&mut *member).await;
    member.seek(1, 10);
    for outside in [0, 4, 11, 1_000] {
        member.seek(0, outside);
        let event = next(&mut *member).await;
        assert!(matches!(event, LogEvent::OutOfRange(Some(0))), "{outside}: {event:?}");
    }
    fill(&log, 1, 1).await;
    let read = records(&mut *member, 1).await;
    assert_eq!((read[0].partition, read[0].offset), (1, 10));
    member.seek(0, 5);
    assert_eq!(offsets(&records(&mut *member, 5).await), [5, 6, 7, 8, 9]);
}

async fn an_owner_that_never_calls_keeps_its_membership_and_a_bounded_queue(
    protocol: RebalanceProtocol,
) {
    let log = log_under(protocol, 1).await;
    let batch = |from: usize| (from..from + 1_000).map(|n| record(0, n.to_string())).collect();
    for from in (0..60_000).step_by(1_000) {
        for result in log.append(Topic::Raw, batch(from)).await {
            result.unwrap();
        }
    }
    let mut member = log.consume(GROUP).await.unwrap();
    assigned(&mut *member).await;
    member.seek(0, 0);
    // Longer than the session timeout of six seconds.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let (mut expected, mut queued) = (0, None);
    while expected < 60_000 {
        let waiting = tokio::time::timeout(Duration::ZERO, member.next()).await;
        let event = match waiting {
            Ok(event) => event.unwrap(),
            Err(_) => {
                queued.get_or_insert(expected);
                next(&mut *member).await
            }
        };
        let LogEvent::Records(_, records) = event else {
            panic!("the member was thrown out of its group: {event:?}");
        };
        for record in records {
            assert_eq!(record.offset, expected);
            expected += 1;
        }
    }
    let queued = queued.expect("the queue ran empty before all was read");
    // While they are taken more may come, but not all.
    assert!(
        (FULL_RECORDS..30_000).contains(&usize::try_from(queued).unwrap()),
        "{queued} records had been queued"
    );
}
