//! Rules of [`EventStore::write`](crate::store::EventStore::write).
#![expect(missing_docs, reason = "the names of rules are sentences")]

use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::{Copies, DAY_MS, Fixture, batch, metadata, place, row, rows, stored, verdict};
use crate::codec::Unsure;
use crate::event::{ClientId, DeviceId};
use crate::store::{DeadLetter, DeadReason, StoreBatch, StoreError, StoreRow, Written};

pub async fn a_batch_is_stored_as_it_was_sent(fixture: Fixture) {
    fixture.begin(1).await;
    let mut sent = row(0, 7, 42);
    sent.event.metadata = metadata(r#"{"room":"b\"1","floor":3}"#);
    sent.event.event_type = "température €".to_owned();
    sent.event.value = 1e300;
    assert_eq!(fixture.write(&batch(0, 8, vec![sent.clone()])).await, stored(1, 0));

    let events = fixture.store.stored_events().await.unwrap();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.client, event.id), (sent.client, sent.event.id));
    assert_eq!(event.device, sent.event.device_id);
    assert_eq!(event.event_type, sent.event.event_type);
    assert_eq!(event.value.to_bits(), sent.event.value.to_bits());
    assert_eq!(event.timestamp_ms, sent.event.timestamp_ms);
    assert_eq!(event.received_at_us, sent.received_at_us);
    assert_eq!(event.pos, 7);
    let map: serde_json::Value = serde_json::from_str(event.metadata.as_ref().unwrap()).unwrap();
    assert_eq!(map, serde_json::json!({"room": "b\"1", "floor": 3}));
}

pub async fn a_batch_of_five_thousand_is_stored(fixture: Fixture) {
    fixture.begin(1).await;
    // Each id once, in an order that is not that of the ids.
    let ids = (0..5_000_u128).map(|n| n * 2_741 % 5_000 + 1);
    assert_eq!(fixture.write(&batch(0, 5_000, rows(0, ids))).await, stored(5_000, 0));
    assert_eq!(fixture.count().await, 5_000);
    // Half of it again, half of it new.
    let written = fixture.write(&batch(5_000, 10_000, rows(5_000, 2_501..=7_500))).await;
    assert_eq!(written, stored(2_500, 2_500));
    assert_eq!(fixture.count().await, 7_500);
}

pub async fn a_batch_without_rows_moves_the_place(fixture: Fixture) {
    fixture.begin(1).await;
    assert_eq!(fixture.write(&batch(0, 9, Vec::new())).await, stored(0, 0));
    assert_eq!(fixture.next().await, 9);
}

pub async fn the_same_batch_again_is_fenced_and_changes_nothing(fixture: Fixture) {
    fixture.begin(1).await;
    let twice = batch(0, 3, rows(0, 1..=3));
    assert_eq!(fixture.write(&twice).await, stored(3, 0));
    assert_eq!(fixture.write(&twice).await, Written::Fenced);
    assert_eq!(fixture.next().await, 3);

    let ahead = batch(2, 9, rows(2, 4..=9));
    assert_eq!(fixture.write(&ahead).await, Written::Fenced);
    assert_eq!(fixture.count().await, 3);
}

pub async fn a_batch_is_fenced_when_one_of_its_partitions_is(fixture: Fixture) {
    fixture.begin(2).await;
    let mut both = batch(0, 1, vec![row(0, 0, 1), row(1, 5, 2)]);
    both.from.push(place(1, 5));
    both.to.push(place(1, 6));
    assert_eq!(fixture.write(&both).await, Written::Fenced);
    assert_eq!(fixture.count().await, 0);
    assert_eq!(fixture.next().await, 0, "the other partition stays too");

    both.from[1].next = 0;
    assert_eq!(fixture.write(&both).await, stored(2, 0));
    let places = fixture.store.progress(super::GROUP).await.unwrap();
    assert_eq!(places, [place(0, 1), place(1, 6)]);
}

pub async fn a_redelivered_row_under_new_offsets_is_a_duplicate(fixture: Fixture) {
    fixture.begin(1).await;
    fixture.write(&batch(0, 2, rows(0, [1, 2]))).await;
    // The gateway's time differs with every attempt of a client and is no part of the event.
    let mut again = rows(2, [2, 3]);
    again[0].received_at_us += 5_000_000;
    assert_eq!(fixture.write(&batch(2, 4, again)).await, stored(1, 1));
    let events = fixture.store.stored_events().await.unwrap();
    assert_eq!(events.iter().map(|event| event.pos).collect::<Vec<_>>(), [0, 1, 3]);
}

pub async fn another_body_under_a_stored_key_is_a_conflict(fixture: Fixture) {
    fixture.begin(1).await;
    fixture.write(&batch(0, 5, rows(0, 1..=5))).await;
    let mut others = rows(5, 1..=5);
    others[0].event.value = 22.0;
    others[1].event.event_type = "humidity".to_owned();
    others[2].event.device_id = DeviceId(Uuid::from_u128(9));
    others[3].event.metadata = metadata("{}");
    let before = fixture.store.stored_events().await.unwrap();
    let written = fixture.write(&batch(5, 10, others)).await;
    let conflicts = (5..9).map(|offset| (offset, "id_conflict")).collect();
    assert_eq!(verdict(&written), (0, 1, conflicts));
    assert_eq!(fixture.store.stored_events().await.unwrap(), before, "the first one wins");
    assert_eq!(fixture.buried().await.len(), 4);
}

pub async fn an_unsure_row_meets_its_id_under_another_timestamp(fixture: Fixture) {
    fixture.begin(1).await;
    let mut first = rows(0, [1, 2]);
    first[0].event.timestamp_ms -= 3 * DAY_MS;
    fixture.write(&batch(0, 2, first)).await;

    let mut later = rows(2, [1, 2, 3]);
    later.iter_mut().for_each(|row| row.unsure = Some(Unsure::Local));
    let written = fixture.write(&batch(2, 5, later)).await;
    assert_eq!(verdict(&written), (1, 1, vec![(2, "id_conflict")]));
    assert_eq!(fixture.count().await, 3);
}

pub async fn of_two_unsure_rows_with_one_id_at_once_one_is_stored(fixture: Fixture) {
    one_is_stored_of(fixture, Some(Unsure::Local), Some(Unsure::Local)).await;
}

/// One gateway does not reach Redis, the other does.
pub async fn of_a_local_and_a_sure_row_with_one_id_at_once_one_is_stored(fixture: Fixture) {
    one_is_stored_of(fixture, Some(Unsure::Local), None).await;
}

/// The key of the second was lost with its lock, and its partition is behind.
pub async fn of_a_late_row_and_one_accepted_since_at_once_one_is_stored(fixture: Fixture) {
    one_is_stored_of(fixture, Some(Unsure::Forgotten { at_ms: super::NOW_MS + 1 }), None).await;
}

/// Two bodies under one id, on two days, written by two processes at once.
async fn one_is_stored_of(fixture: Fixture, one: Option<Unsure>, two: Option<Unsure>) {
    fixture.begin(2).await;
    for round in 0..40_i64 {
        let id = round.unsigned_abs().into();
        let mut early = row(0, round, id);
        let mut late = row(1, round, id);
        late.event.timestamp_ms += DAY_MS / 2;
        (early.unsure, late.unsure) = if round % 2 == 0 { (one, two) } else { (two, one) };
        let [one, two] = [early, late].map(|row| StoreBatch {
            group: super::GROUP,
            from: vec![place(row.partition, round)],
            to: vec![place(row.partition, round + 1)],
            rows: vec![row],
            dead: Vec::new(),
        });
        let sink = Copies::default();
        let (one, two) =
            tokio::join!(fixture.store.write(&one, &sink), fixture.other.write(&two, &sink));
        let mut outcomes = [verdict(&one.unwrap()), verdict(&two.unwrap())];
        outcomes.sort_unstable();
        assert_eq!(outcomes, [(0, 0, vec![(round, "id_conflict")]), (1, 0, vec![])]);
    }
    assert_eq!(fixture.count().await, 40);
}

pub async fn a_sure_row_meets_an_id_that_another_gateway_gave_away_by_itself(fixture: Fixture) {
    fixture.begin(1).await;
    let mut local = rows(0, [1, 2]);
    local.iter_mut().for_each(|row| row.unsure = Some(Unsure::Local));
    assert_eq!(fixture.write(&batch(0, 2, local)).await, stored(2, 0));
    // Redis gave 1 to another body, 2 to the same one, and 3 to one of its own.
    let mut sure = rows(2, [1, 2, 3]);
    sure[0].event.timestamp_ms += DAY_MS / 2;
    sure.iter_mut().for_each(|row| row.received_at_us += DAY_MS / 2 * 1_000);
    for writer in [&fixture.store, &fixture.other] {
        let from = fixture.next().await;
        let written = writer.write(&batch(from, from + 3, sure.clone()), &Copies::default()).await;
        let (new, duplicates, dead) = verdict(&written.unwrap());
        assert_eq!((new + duplicates, dead), (2, vec![(2, "id_conflict")]));
    }
    assert_eq!(fixture.count().await, 3);
}

pub async fn a_row_stored_late_meets_an_id_given_away_since_keys_were_lost(fixture: Fixture) {
    fixture.begin(2).await;
    let lost_at_ms = super::NOW_MS + 60_000;
    let mut since = rows(0, [1, 2]);
    for row in &mut since {
        row.unsure = Some(Unsure::Forgotten { at_ms: lost_at_ms });
        row.received_at_us = (lost_at_ms + 1_000) * 1_000;
        row.event.timestamp_ms += DAY_MS / 2;
    }
    // The first loss that this process hears of, and then one that it knows.
    for (offset, row) in (0..).zip(since) {
        assert_eq!(fixture.write(&batch(offset, offset + 1, vec![row])).await, stored(1, 0));
    }
    let mut late = [row(1, 0, 1), row(1, 1, 2), row(1, 2, 3)].to_vec();
    late[1].event.timestamp_ms += DAY_MS / 2;
    let behind = StoreBatch { from: vec![place(1, 0)], to: vec![place(1, 3)], ..batch(0, 0, late) };
    let written = fixture.other.write(&behind, &Copies::default()).await.unwrap();
    assert_eq!(verdict(&written), (1, 1, vec![(0, "id_conflict")]));
    assert_eq!(fixture.count().await, 3);
}

pub async fn two_clients_may_use_the_same_id(fixture: Fixture) {
    fixture.begin(1).await;
    let mut both = rows(0, [1, 1]);
    both[1].client = ClientId(2);
    both[1].event.value = -3.0;
    assert_eq!(fixture.write(&batch(0, 2, both.clone())).await, stored(2, 0));
    both.iter_mut().for_each(|row| row.unsure = Some(Unsure::Local));
    assert_eq!(fixture.write(&batch(2, 4, both)).await, stored(0, 2));
}

pub async fn equal_rows_are_duplicates_however_they_are_spelled(fixture: Fixture) {
    fixture.begin(1).await;
    let values = [-0.0, 1e300, f64::MIN_POSITIVE, 0.1 + 0.2, 9_007_199_254_740_993.0];
    let mut sent = rows(0, 1..=7);
    sent.iter_mut().zip(values).for_each(|(row, value)| row.event.value = value);
    sent[5].event.metadata = metadata(r#"{"a":1.0,"b":true,"c":"\u00e9"}"#);
    sent[6].event.metadata = metadata("{}");
    assert_eq!(fixture.write(&batch(0, 7, sent.clone())).await, stored(7, 0));

    sent[5].event.metadata = metadata(r#"{"c":"é","b":true,"a":1}"#);
    for unsure in [None, Some(Unsure::Local), Some(Unsure::Forgotten { at_ms: super::NOW_MS })] {
        sent.iter_mut().for_each(|row| row.unsure = unsure);
        let from = fixture.next().await;
        assert_eq!(fixture.write(&batch(from, from + 7, sent.clone())).await, stored(0, 7));
    }
}

pub async fn repeats_within_a_batch_are_judged_like_others(fixture: Fixture) {
    fixture.begin(1).await;
    let mut sent = rows(0, [1, 2, 1, 1, 2]);
    sent[3].event.value = 99.0;
    sent[4].event.timestamp_ms += 1;
    let written = fixture.write(&batch(0, 5, sent)).await;
    assert_eq!(verdict(&written), (2, 1, vec![(3, "id_conflict"), (4, "id_conflict")]));
    let events = fixture.store.stored_events().await.unwrap();
    assert_eq!(events.iter().map(|event| event.pos).collect::<Vec<_>>(), [0, 1]);
}

pub async fn a_repeat_of_a_stored_event_survives_a_conflict_before_it(fixture: Fixture) {
    fixture.begin(1).await;
    fixture.write(&batch(0, 1, rows(0, [1]))).await;
    let mut sent = rows(1, [1, 1, 2, 2]);
    sent[0].event.value = 99.0;
    (fixture.poison)(&mut sent[2], 0);
    let written = fixture.write(&batch(1, 5, sent)).await;
    assert_eq!(verdict(&written), (1, 1, vec![(1, "id_conflict"), (3, "rejected")]));
}

pub async fn poison_goes_alone_wherever_it_lies(fixture: Fixture) {
    fixture.begin(1).await;
    let mut from = 0;
    for places in [vec![0], vec![7], vec![15], vec![0, 1, 8, 15], vec![3, 4, 5, 6, 7]] {
        let mut sent = rows(from, (from..from + 16).map(|n| n.unsigned_abs().into()));
        for (kind, place) in places.iter().enumerate() {
            (fixture.poison)(&mut sent[*place], kind);
        }
        let written = fixture.write(&batch(from, from + 16, sent)).await;
        let dead = places.iter().map(|place| (from + i64::try_from(*place).unwrap(), "rejected"));
        assert_eq!(verdict(&written), (16 - places.len() as u64, 0, dead.collect()));
        from += 16;
    }
    assert_eq!(fixture.next().await, from);
    let buried = fixture.store.buried_records().await.unwrap();
    assert_eq!(buried.len(), 12);
    assert!(buried.iter().all(|record| record.sqlstate.is_some() && record.id.is_some()));
}

pub async fn a_batch_of_nothing_but_poison_is_buried(fixture: Fixture) {
    fixture.begin(1).await;
    let mut sent = rows(0, 1..=9);
    sent.iter_mut().enumerate().for_each(|(kind, row)| (fixture.poison)(row, kind));
    let (new, duplicates, dead) = verdict(&fixture.write(&batch(0, 9, sent)).await);
    assert_eq!((new, duplicates, dead.len()), (0, 0, 9));
    assert_eq!(fixture.next().await, 9);
}

pub async fn of_two_writers_from_one_place_one_stores(fixture: Fixture) {
    fixture.begin(1).await;
    for round in 0..10_i64 {
        let from = round * 50;
        let ids =
            |half: i64| (0..50).map(move |n| (1_000 * (half + 1) + from + n).unsigned_abs().into());
        let (one, two) = (
            batch(from, from + 50, rows(from, ids(0))),
            batch(from, from + 50, rows(from, ids(1))),
        );
        let (sink_one, sink_two) = (Copies::default(), Copies::default());
        let (one, two) = tokio::join!(
            fixture.store.write(&one, &sink_one),
            fixture.other.write(&two, &sink_two)
        );
        let mut outcomes = [one.unwrap(), two.unwrap()];
        outcomes.sort_by_key(|written| *written == Written::Fenced);
        assert_eq!(outcomes, [stored(50, 0), Written::Fenced]);
    }
    assert_eq!(fixture.count().await, 500);
}

fn dead_letter(offset: i64) -> DeadLetter {
    DeadLetter {
        partition: 0,
        offset,
        client: None,
        id: None,
        reason: DeadReason::Malformed,
        sqlstate: None,
        detail: "no JSON\0".to_owned(),
        replay: None,
    }
}

fn with_a_dead_letter(from: i64) -> StoreBatch<'static> {
    let first = from.unsigned_abs().into();
    let mut batch = batch(from, from + 3, rows(from, first..first + 2));
    batch.dead.push(dead_letter(from + 2));
    batch
}

pub async fn nothing_is_stored_while_the_sink_fails(fixture: Fixture) {
    fixture.begin(1).await;
    let sink = Copies::default();
    sink.failures.store(2, Ordering::SeqCst);
    let batch = with_a_dead_letter(0);
    for _ in 0..2 {
        let error = fixture.store.write(&batch, &sink).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert_eq!((fixture.count().await, fixture.next().await), (0, 0));
        assert_eq!(fixture.buried().await, []);
    }
    let written = fixture.store.write(&batch, &sink).await.unwrap();
    assert_eq!(verdict(&written), (2, 0, vec![(2, "malformed")]));
    assert_eq!((fixture.count().await, fixture.next().await), (2, 3));
    assert_eq!(sink.offsets(), [2]);
}

pub async fn a_fenced_batch_sends_no_dead_letters(fixture: Fixture) {
    fixture.begin(1).await;
    let sink = Copies::default();
    let written = fixture.store.write(&with_a_dead_letter(6), &sink).await.unwrap();
    assert_eq!(written, Written::Fenced);
    assert_eq!(sink.offsets(), [0_i64; 0]);
    assert_eq!(fixture.buried().await, []);
}

pub async fn dead_letters_are_buried_once(fixture: Fixture) {
    fixture.begin(1).await;
    let sink = Copies::default();
    let mut batch = with_a_dead_letter(0);
    batch.dead.push(dead_letter(2));
    fixture.store.write(&batch, &sink).await.unwrap();
    assert_eq!(fixture.buried().await, [(2, "malformed".to_owned())]);
    // A later batch tells of the same record: its place is taken.
    let mut later = super::batch(3, 4, Vec::new());
    later.dead.push(DeadLetter { reason: DeadReason::UnknownClient, ..dead_letter(2) });
    fixture.store.write(&later, &sink).await.unwrap();
    assert_eq!(fixture.buried().await, [(2, "malformed".to_owned())]);
}

pub async fn the_same_offset_of_another_epoch_is_another_dead_letter(fixture: Fixture) {
    fixture.begin(1).await;
    fixture.write(&with_a_dead_letter(0)).await;
    let epoch = Uuid::from_u128(0xf);
    let start = crate::store::Progress { epoch, ..place(0, 0) };
    fixture.store.place(super::GROUP, Some(place(0, 3)), start).await.unwrap();
    let mut again = with_a_dead_letter(0);
    again.from.iter_mut().chain(&mut again.to).for_each(|place| place.epoch = epoch);
    let written = fixture.write(&again).await;
    assert_eq!(verdict(&written), (0, 2, vec![(2, "malformed")]));
    let buried = fixture.store.buried_records().await.unwrap();
    let epochs: Vec<_> = buried.iter().map(|record| (record.offset, record.epoch)).collect();
    assert_eq!(epochs, [(2, super::EPOCH), (2, epoch)]);
}

pub async fn a_row_out_of_range_is_a_dead_letter(fixture: Fixture) {
    fixture.begin(1).await;
    let retention_ms = i64::from(super::RETENTION_DAYS) * DAY_MS;
    let at = |row: &mut StoreRow, delta_ms: i64| row.event.timestamp_ms = super::NOW_MS + delta_ms;
    let mut sent = rows(0, 1..=8);
    at(&mut sent[0], -retention_ms);
    at(&mut sent[1], -retention_ms - 1);
    at(&mut sent[2], DAY_MS);
    at(&mut sent[3], DAY_MS + 1);
    sent[4].event.timestamp_ms = i64::MAX;
    sent[5].received_at_us = i64::MAX;
    sent[6].received_at_us = i64::MIN;
    // Judged by the time of receipt: an old record is not late because it is read late.
    sent[7].received_at_us -= 400 * DAY_MS * 1_000;
    sent[7].event.timestamp_ms -= 400 * DAY_MS;
    let written = fixture.write(&batch(0, 8, sent)).await;
    let dead = [1, 3, 4, 5, 6].map(|offset| (offset, "out_of_range")).to_vec();
    assert_eq!(verdict(&written), (3, 0, dead));
}

pub async fn a_day_nobody_made_is_made(fixture: Fixture) {
    fixture.begin(1).await;
    // No maintenance ever ran: every day of the batch is missing, one of them lies at midnight.
    let mut sent = rows(0, 1..=4);
    let midnight = super::NOW_MS.div_euclid(DAY_MS) * DAY_MS;
    let times = [midnight - 1, midnight, midnight - 3 * DAY_MS, midnight + DAY_MS];
    sent.iter_mut().zip(times).for_each(|(row, time)| row.event.timestamp_ms = time);
    assert_eq!(fixture.write(&batch(0, 4, sent.clone())).await, stored(4, 0));
    let written = fixture.other.write(&batch(4, 8, sent), &Copies::default()).await.unwrap();
    assert_eq!(written, stored(0, 4));
}

pub async fn a_batch_that_contradicts_itself_is_refused(fixture: Fixture) {
    fixture.begin(1).await;
    let homeless = batch(0, 1, vec![row(3, 0, 1)]);
    let mut uneven = batch(0, 1, Vec::new());
    uneven.to.push(place(1, 1));
    for wrong in [homeless, uneven] {
        let error = fixture.store.write(&wrong, &Copies::default()).await.unwrap_err();
        assert!(matches!(error, StoreError::Deployment(_)), "{error}");
    }
    assert_eq!((fixture.count().await, fixture.next().await), (0, 0));
}
