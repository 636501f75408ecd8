//! Rules of places, progress and maintenance.
#![expect(missing_docs, reason = "the names of rules are sentences")]

use uuid::Uuid;

use super::{
    Copies, DAY_MS, EPOCH, Fixture, GROUP, NOW_MS, RETENTION_DAYS, batch, place, rows, stored,
};
use crate::event::EventId;
use crate::store::{Progress, Written};

pub async fn the_first_place_is_given_once(fixture: Fixture) {
    assert_eq!(fixture.store.progress(GROUP).await.unwrap(), []);
    assert_eq!(fixture.write(&batch(0, 1, rows(0, [1]))).await, Written::Fenced, "no place yet");

    assert_eq!(fixture.store.place(GROUP, None, place(0, 40)).await.unwrap(), place(0, 40));
    // A second process is late: it learns where the partition stands.
    assert_eq!(fixture.other.place(GROUP, None, place(0, 7)).await.unwrap(), place(0, 40));
    assert_eq!(fixture.store.progress(GROUP).await.unwrap(), [place(0, 40)]);
}

pub async fn a_place_is_replaced_only_where_it_was_seen(fixture: Fixture) {
    fixture.begin(2).await;
    let last_id = Some(EventId(Uuid::from_u128(5)));
    let mut moved = batch(0, 3, rows(0, 1..=3));
    moved.to[0].last_id = last_id;
    assert_eq!(fixture.write(&moved).await, stored(3, 0));
    let stands = Progress { last_id, ..place(0, 3) };

    let fresh = Progress { epoch: Uuid::from_u128(0xf), ..place(0, 0) };
    let stale = fixture.store.place(GROUP, Some(place(0, 2)), fresh).await.unwrap();
    assert_eq!(stale, stands);
    let wrong_epoch = Progress { epoch: Uuid::from_u128(1), ..stands };
    assert_eq!(fixture.store.place(GROUP, Some(wrong_epoch), fresh).await.unwrap(), stands);
    assert_eq!(fixture.store.place(GROUP, Some(stands), fresh).await.unwrap(), fresh);
    assert_eq!(fixture.store.progress(GROUP).await.unwrap(), [fresh, place(1, 0)]);
}

pub async fn another_epoch_fences(fixture: Fixture) {
    fixture.begin(1).await;
    let mut foreign = batch(0, 3, rows(0, 1..=3));
    foreign.from[0].epoch = Uuid::from_u128(0xf);
    assert_eq!(fixture.write(&foreign).await, Written::Fenced, "same offset, another log");
    assert_eq!(fixture.count().await, 0);
    foreign.from[0].epoch = EPOCH;
    assert_eq!(fixture.write(&foreign).await, stored(3, 0));
}

pub async fn groups_do_not_meet(fixture: Fixture) {
    fixture.begin(1).await;
    fixture.store.place("other", None, place(0, 9)).await.unwrap();
    fixture.write(&batch(0, 3, rows(0, 1..=3))).await;
    assert_eq!(fixture.store.progress("other").await.unwrap(), [place(0, 9)]);
    assert_eq!(fixture.store.progress(GROUP).await.unwrap(), [place(0, 3)]);
}

pub async fn maintenance_tells_how_far_events_can_be_stored(fixture: Fixture) {
    let maintenance = fixture.store.maintain(NOW_MS).await.unwrap();
    assert!(maintenance.horizon_ms >= NOW_MS + 4 * DAY_MS, "{maintenance:?}");
    assert_eq!(maintenance.dropped_days, 0);
    assert_eq!(fixture.other.maintain(NOW_MS).await.unwrap(), maintenance, "again is harmless");
}

pub async fn retention_drops_old_days_only(fixture: Fixture) {
    fixture.begin(1).await;
    fixture.store.maintain(NOW_MS).await.unwrap();
    let mut sent = rows(0, 1..=8);
    for (days_ago, row) in (0..).zip(&mut sent) {
        row.event.timestamp_ms = NOW_MS - days_ago * DAY_MS;
        row.received_at_us = row.event.timestamp_ms * 1_000;
    }
    assert_eq!(fixture.write(&batch(0, 8, sent.clone())).await, stored(8, 0));
    assert_eq!(fixture.store.maintain(NOW_MS).await.unwrap().dropped_days, 0);

    // Three days later the days 5, 6 and 7 before NOW have ended more than the retention ago.
    let later_ms = NOW_MS + 3 * DAY_MS;
    let maintenance = fixture.store.maintain(later_ms).await.unwrap();
    assert_eq!(maintenance.dropped_days, 3);
    let oldest_ms = later_ms - i64::from(RETENTION_DAYS) * DAY_MS;
    let left = fixture.store.stored_events().await.unwrap();
    assert_eq!(left.len(), 5);
    assert!(left.iter().all(|event| event.timestamp_ms >= oldest_ms));

    // A process that still believes in the dropped days stores there all the same.
    let written = fixture.other.write(&batch(8, 16, sent.clone()), &Copies::default()).await;
    assert_eq!(written.unwrap(), stored(3, 5));
    assert_eq!(fixture.store.maintain(later_ms).await.unwrap().dropped_days, 3);
    assert_eq!(
        fixture.other.write(&batch(16, 24, sent), &Copies::default()).await.unwrap(),
        stored(3, 5)
    );
}

pub async fn two_maintainers_do_not_harm_each_other(fixture: Fixture) {
    for day in 0..3 {
        let now_ms = NOW_MS + day * DAY_MS;
        let (one, two) =
            tokio::join!(fixture.store.maintain(now_ms), fixture.other.maintain(now_ms));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert!(one.horizon_ms.max(two.horizon_ms) >= now_ms + 4 * DAY_MS);
    }
}
