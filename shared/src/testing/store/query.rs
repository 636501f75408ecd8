//! Rules of [`EventQuery`](crate::store::EventQuery): what was stored is read back, in order, in pages,
//! and only by its owner.
#![expect(missing_docs, reason = "the names of rules are sentences")]

use uuid::Uuid;

use super::{DAY_MS, Fixture, NOW_MS, batch, metadata, place, row};
use crate::event::{ClientId, DeviceId, EventId};
use crate::store::query::{
    Bucket, DEVICE_EVENTS, DeviceState, EventsQuery, Found, Latest, Order, Page, SeriesQuery,
    SortKey, Span,
};
use crate::store::{DeadLetter, DeadReason, StoreBatch, StoreRow, StoredEvent};

/// Makes one `#[tokio::test]` of each rule of queries; the harness hands a [`Fixture`] to a rule.
#[macro_export]
macro_rules! query_conformance {
    ($harness:path) => {
        $crate::store_conformance! { @each $harness, query:
            an_event_is_read_back_to_the_last_digit
            events_come_by_time_then_place_then_id_in_pages_of_any_size
            a_span_includes_its_begin_and_not_its_end
            filters_name_a_device_a_type_or_both
            pages_neither_repeat_nor_skip_while_events_are_stored
            rare_events_are_found_over_days
            nothing_of_another_client_is_seen
            an_id_is_stored_dead_or_unknown
            a_device_tells_the_newest_value_of_each_type
            a_device_is_looked_through_so_far_and_no_further
            devices_come_by_id_in_pages
            buckets_begin_at_multiples_of_the_step_and_empty_ones_are_left_out
            a_mean_of_huge_and_tiny_values_stays_between_them
        }
        $crate::store_conformance! { @each $harness, own_letters:
            a_client_reads_its_own_letters_newest_first_in_pages_of_any_size
            of_its_letters_a_client_reads_those_that_meet_a_filter
            pages_of_letters_neither_repeat_nor_skip_while_others_die
            a_letter_is_read_with_what_it_waits_for
        }
        $crate::store_conformance! { @each $harness, snapshot:
            a_snapshot_holds_the_newest_value_of_each_device_and_type
            a_snapshot_is_of_the_devices_and_types_asked_for
            a_snapshot_and_its_places_are_of_one_moment
            a_snapshot_that_is_not_whole_says_so
        }
    };
}

pub(super) const ME: ClientId = ClientId(1);
pub(super) const OTHER: ClientId = ClientId(2);

pub(super) fn device(number: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(number))
}

/// An event of a device, this long before [`NOW_MS`].
pub(super) fn at(id: u128, number: u128, event_type: &str, ago_ms: i64) -> StoreRow {
    let mut row = row(0, 0, id);
    row.event.device_id = device(number);
    event_type.clone_into(&mut row.event.event_type);
    row.event.timestamp_ms = NOW_MS - ago_ms;
    row
}

/// Stores rows in this order behind what partition 0 has; they get their places here.
pub(super) async fn store(fixture: &Fixture, mut rows: Vec<StoreRow>) {
    let from = fixture.next().await;
    let to = from + i64::try_from(rows.len()).unwrap();
    (from..).zip(&mut rows).for_each(|(offset, row)| row.offset = offset);
    fixture.write(&batch(from, to, rows)).await;
}

fn query() -> EventsQuery {
    EventsQuery {
        client: ME,
        device: None,
        event_type: None,
        span: Span { from_ms: NOW_MS - 6 * DAY_MS, to_ms: NOW_MS + DAY_MS },
        order: Order::Descending,
        after: None,
        limit: 1_000,
        now_ms: NOW_MS,
    }
}

async fn events(fixture: &Fixture, query: &EventsQuery) -> Page<StoredEvent, SortKey> {
    fixture.query.events(query).await.unwrap()
}

/// The ids of all pages.
async fn walk(fixture: &Fixture, mut query: EventsQuery) -> Vec<u128> {
    let mut ids = Vec::new();
    loop {
        let page = events(fixture, &query).await;
        assert!(page.rows.len() <= query.limit);
        ids.extend(page.rows.iter().map(|event| event.id.0.as_u128()));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return ids,
        }
    }
}

pub async fn an_event_is_read_back_to_the_last_digit(fixture: Fixture) {
    fixture.begin(1).await;
    let values = [0.1 + 0.2, f64::MAX, f64::MIN_POSITIVE, -1.5e-300, 9_007_199_254_740_993.0, 0.0];
    let mut rows = Vec::new();
    for (id, value) in (1..).zip(values) {
        let mut row = at(id, 7, "temperature é\"", 1);
        row.event.value = value;
        row.event.metadata = metadata(r#"{"a":1.50,"b":"x","c":true}"#);
        row.received_at_us = NOW_MS * 1_000 + 987;
        rows.push(row);
    }
    store(&fixture, rows).await;

    let mut read = events(&fixture, &query()).await.rows;
    read.reverse();
    for ((id, value), event) in (1..).zip(values).zip(read) {
        let expected = StoredEvent {
            client: ME,
            id: EventId(Uuid::from_u128(id)),
            device: device(7),
            event_type: "temperature é\"".to_owned(),
            value,
            timestamp_ms: NOW_MS - 1,
            metadata: event.metadata.clone(),
            received_at_us: NOW_MS * 1_000 + 987,
            pos: i64::try_from(id).unwrap() - 1,
        };
        assert_eq!(event, expected);
        let map: serde_json::Value = serde_json::from_str(&event.metadata.unwrap()).unwrap();
        assert_eq!(map, serde_json::json!({"a": 1.5, "b": "x", "c": true}));
    }
}

pub async fn events_come_by_time_then_place_then_id_in_pages_of_any_size(fixture: Fixture) {
    fixture.begin(2).await;
    // Ids against the order of places, many equal times, and the same places in two partitions.
    let rows: Vec<_> = (0..40_u32)
        .map(|n| {
            let mut row = at(u128::from(1_000 - n), 7, "temperature", i64::from(n % 5));
            row.partition = i32::from(n >= 20);
            row.offset = i64::from(n % 20);
            row
        })
        .collect();
    let mut keys: Vec<_> =
        rows.iter().map(|row| (row.event.timestamp_ms, row.offset, row.event.id)).collect();
    let (from, to) = (vec![place(0, 0), place(1, 0)], vec![place(0, 20), place(1, 20)]);
    fixture.write(&StoreBatch { from, to, ..batch(0, 0, rows) }).await;

    keys.sort_unstable();
    let mut expected: Vec<_> = keys.iter().map(|(_, _, id)| id.0.as_u128()).collect();
    for order in [Order::Ascending, Order::Descending] {
        for device in [None, Some(device(7))] {
            for limit in [1, 3, 39, 40, 41] {
                let query = EventsQuery { order, device, limit, ..query() };
                assert_eq!(walk(&fixture, query).await, expected, "{order:?} {device:?} {limit}");
            }
        }
        expected.reverse();
    }
}

pub async fn a_span_includes_its_begin_and_not_its_end(fixture: Fixture) {
    fixture.begin(1).await;
    store(&fixture, (0..5).map(|n| at(n + 1, 7, "cpu", i64::try_from(n).unwrap())).collect()).await;
    let span = Span { from_ms: NOW_MS - 3, to_ms: NOW_MS - 1 };
    for device in [None, Some(device(7))] {
        assert_eq!(walk(&fixture, EventsQuery { span, device, ..query() }).await, [3, 4]);
    }
    let nothing = Span { from_ms: NOW_MS, to_ms: NOW_MS };
    assert_eq!(walk(&fixture, EventsQuery { span: nothing, ..query() }).await, []);
}

pub async fn filters_name_a_device_a_type_or_both(fixture: Fixture) {
    fixture.begin(1).await;
    let rows = [(1, 7, "cpu"), (2, 7, "mem"), (3, 8, "cpu"), (4, 8, "mem")];
    store(&fixture, rows.map(|(id, device, kind)| at(id, device, kind, 0)).to_vec()).await;
    let of = |device: Option<u128>, event_type: Option<&str>| EventsQuery {
        device: device.map(self::device),
        event_type: event_type.map(str::to_owned),
        order: Order::Ascending,
        ..query()
    };
    assert_eq!(walk(&fixture, of(Some(7), None)).await, [1, 2]);
    assert_eq!(walk(&fixture, of(None, Some("cpu"))).await, [1, 3]);
    assert_eq!(walk(&fixture, of(Some(8), Some("cpu"))).await, [3]);
    assert_eq!(walk(&fixture, of(Some(9), None)).await, []);
    assert_eq!(walk(&fixture, of(None, Some("cp"))).await, []);
}

pub async fn pages_neither_repeat_nor_skip_while_events_are_stored(fixture: Fixture) {
    fixture.begin(1).await;
    let ago = |n: u128| i64::try_from(n % 7 * 60_000).unwrap();
    store(&fixture, (0..60).map(|n| at(n + 1, 7, "cpu", ago(n))).collect()).await;
    let at_start = walk(&fixture, query()).await;
    assert_eq!(at_start.len(), 60);

    let mut seen = Vec::new();
    let mut query = EventsQuery { limit: 7, ..query() };
    let mut late = 1_000;
    loop {
        let page = events(&fixture, &query).await;
        seen.extend(page.rows.iter().map(|event| event.id.0.as_u128()));
        // Before, at and behind the place where the walk stands.
        store(&fixture, (0..7).map(|n| at(late + n, 7, "cpu", ago(n))).collect()).await;
        late += 7;
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    let mut once = seen.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), seen.len(), "repeated");
    seen.retain(|id| *id < 1_000);
    assert_eq!(seen, at_start);
}

pub async fn rare_events_are_found_over_days(fixture: Fixture) {
    fixture.begin(1).await;
    let ago_ms = [-60_000, 0, 9_999, 10_000, 10_001, 3 * DAY_MS, 5 * DAY_MS];
    let rows = (1..).zip(ago_ms).map(|(id, ago_ms)| at(id, 7, "cpu", ago_ms));
    store(&fixture, rows.collect()).await;
    for device in [None, Some(device(7))] {
        let event_type = Some("cpu".to_owned());
        for limit in [1, 2, 1_000] {
            let query = EventsQuery { device, event_type: event_type.clone(), limit, ..query() };
            assert_eq!(walk(&fixture, query.clone()).await, [1, 2, 3, 4, 5, 6, 7]);
            let query = EventsQuery { order: Order::Ascending, ..query };
            assert_eq!(walk(&fixture, query).await, [7, 6, 5, 4, 3, 2, 1]);
        }
    }
}

pub async fn nothing_of_another_client_is_seen(fixture: Fixture) {
    fixture.begin(1).await;
    let mut theirs = at(1, 7, "cpu", 0);
    theirs.client = OTHER;
    let dead = letter(1, OTHER, 2, DeadReason::OutOfRange);
    fixture.write(&StoreBatch { dead: vec![dead], ..batch(0, 2, vec![theirs]) }).await;

    let (query, since_ms) = (&fixture.query, NOW_MS - DAY_MS);
    for id in [1, 2] {
        let id = EventId(Uuid::from_u128(id));
        assert_eq!(query.event(ME, id).await.unwrap(), None);
        assert!(query.event(OTHER, id).await.unwrap().is_some());
    }
    let count = async |client| {
        let page = fixture.query.events(&EventsQuery { client, ..self::query() }).await.unwrap();
        let devices = query.devices(client, since_ms, None, 10).await.unwrap();
        let device = query.device(client, device(7), since_ms).await.unwrap();
        let series = query.series(&SeriesQuery { client, ..series(DAY_MS) }).await.unwrap();
        [page.rows.len(), devices.rows.len(), usize::from(device.is_some()), series.len()]
    };
    assert_eq!(count(ME).await, [0; 4]);
    assert_eq!(count(OTHER).await, [1; 4]);
}

fn letter(offset: i64, client: ClientId, id: u128, reason: DeadReason) -> DeadLetter {
    DeadLetter {
        partition: 0,
        offset,
        client: Some(client),
        id: Some(EventId(Uuid::from_u128(id))),
        reason,
        sqlstate: None,
        detail: "told".to_owned(),
        replay: None,
    }
}

pub async fn an_id_is_stored_dead_or_unknown(fixture: Fixture) {
    fixture.begin(1).await;
    let dead = [(1, DeadReason::IdConflict), (2, DeadReason::Rejected)];
    let dead = (1..).zip(dead).map(|(offset, (id, reason))| letter(offset, ME, id, reason));
    let both = StoreBatch { dead: dead.collect(), ..batch(0, 3, vec![at(1, 7, "cpu", 5)]) };
    fixture.write(&both).await;
    let find = async |id| fixture.query.event(ME, EventId(Uuid::from_u128(id))).await.unwrap();

    let Some(Found::Stored(event)) = find(1).await else { panic!("stored, whatever died with it") };
    assert_eq!((event.timestamp_ms, event.device), (NOW_MS - 5, device(7)));
    let reason = "rejected".to_owned();
    assert_eq!(find(2).await, Some(Found::Dead { reason, detail: "told".to_owned() }));
    assert_eq!(find(3).await, None);
    // Put on the log again and good this time.
    store(&fixture, vec![at(2, 7, "cpu", 6)]).await;
    assert!(matches!(find(2).await, Some(Found::Stored(_))));
}

fn latest(event_type: &str, value: f64, ago_ms: i64) -> Latest {
    Latest { event_type: event_type.to_owned(), value, timestamp_ms: NOW_MS - ago_ms }
}

pub async fn a_device_tells_the_newest_value_of_each_type(fixture: Fixture) {
    fixture.begin(1).await;
    // (type, value, ago): the last of two at one time is the newer one.
    let sent = [
        ("mem", 1.0, 9_000),
        ("cpu", 2.0, 50),
        ("cpu", 3.0, 10),
        ("cpu", 4.0, 10),
        ("cpu", 5.0, 60),
        ("old", 6.0, 3 * DAY_MS),
    ];
    let mut rows = Vec::new();
    for (id, (event_type, value, ago_ms)) in (1..).zip(sent) {
        let mut row = at(id, 7, event_type, ago_ms);
        row.event.value = value;
        rows.push(row);
    }
    rows.push(at(100, 8, "cpu", 0));
    store(&fixture, rows).await;
    let find = async |number, since_ms| {
        fixture.query.device(ME, device(number), since_ms).await.unwrap().map(|state| state.latest)
    };
    let recent = vec![latest("cpu", 4.0, 10), latest("mem", 1.0, 9_000)];
    assert_eq!(find(7, NOW_MS - DAY_MS).await, Some(recent.clone()));
    let old = latest("old", 6.0, 3 * DAY_MS);
    assert_eq!(find(7, NOW_MS - 4 * DAY_MS).await, Some([recent, vec![old]].concat()));
    assert_eq!(find(9, NOW_MS - DAY_MS).await, None);
}

pub async fn a_device_is_looked_through_so_far_and_no_further(fixture: Fixture) {
    fixture.begin(1).await;
    let depth = u128::try_from(DEVICE_EVENTS).unwrap();
    let mut rows = vec![at(1, 7, "first", 10_000), at(2, 7, "second", 9_000)];
    rows.extend((0..depth - 1).map(|n| at(10 + n, 7, "many", i64::try_from(n).unwrap())));
    store(&fixture, rows).await;
    let state = fixture.query.device(ME, device(7), NOW_MS - DAY_MS).await.unwrap().unwrap();
    let types: Vec<_> = state.latest.iter().map(|latest| latest.event_type.as_str()).collect();
    assert_eq!(types, ["many", "second"]);
}

pub async fn devices_come_by_id_in_pages(fixture: Fixture) {
    fixture.begin(1).await;
    let mut rows: Vec<_> = (1..=9).map(|n| at(n, 10 - n, "cpu", 100)).collect();
    rows.push(at(10, 3, "mem", 50));
    rows.push(at(11, 20, "cpu", 5 * DAY_MS));
    store(&fixture, rows).await;
    let since_ms = NOW_MS - DAY_MS;
    for limit in [1, 2, 8, 9, 10] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = fixture.query.devices(ME, since_ms, after, limit).await.unwrap();
            assert!(page.rows.len() <= limit);
            seen.extend(page.rows);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let ids: Vec<_> = seen.iter().map(|state| state.device.0.as_u128()).collect();
        assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 8, 9], "{limit}");
        let third = vec![latest("mem", 21.5, 50), latest("cpu", 21.5, 100)];
        assert_eq!(seen[2], DeviceState { device: device(3), latest: third });
    }
}

/// Of all there is of one type.
pub fn series(step_ms: i64) -> SeriesQuery {
    let EventsQuery { client, device, span, .. } = query();
    SeriesQuery { client, device, event_type: "cpu".to_owned(), span, step_ms }
}

pub async fn buckets_begin_at_multiples_of_the_step_and_empty_ones_are_left_out(fixture: Fixture) {
    fixture.begin(1).await;
    let step_ms = 7_000;
    let start_ms = NOW_MS.div_euclid(step_ms) * step_ms;
    let sent = [(1.0, 0), (2.0, 6_999), (6.0, 3_000), (10.0, 7_000), (-4.0, 3 * 7_000)];
    let mut rows = Vec::new();
    for (id, (value, after_start_ms)) in (1..).zip(sent) {
        let mut row = at(id, 7, "cpu", NOW_MS - start_ms - after_start_ms);
        row.event.value = value;
        rows.push(row);
    }
    rows.push(at(100, 7, "mem", 0));
    rows.push(at(101, 8, "cpu", NOW_MS - start_ms - 7_000));
    store(&fixture, rows).await;
    let bucket = |steps: i64, count, min, max, avg| Bucket {
        start_ms: start_ms + steps * step_ms,
        count,
        min,
        max,
        avg,
    };
    let read = async |query: SeriesQuery| fixture.query.series(&query).await.unwrap();
    let first = bucket(0, 3, 1.0, 6.0, 3.0);
    let last = bucket(3, 1, -4.0, -4.0, -4.0);
    let all = read(series(step_ms)).await;
    assert_eq!(all, [first.clone(), bucket(1, 2, 10.0, 21.5, 15.75), last.clone()]);
    let one = read(SeriesQuery { device: Some(device(7)), ..series(step_ms) }).await;
    assert_eq!(one, [first, bucket(1, 1, 10.0, 10.0, 10.0), last]);
    // A span that begins within a bucket counts the rest of it.
    let span = Span { from_ms: start_ms + 1, to_ms: start_ms + 6_999 };
    let part = read(SeriesQuery { span, ..series(step_ms) }).await;
    assert_eq!(part, [bucket(0, 1, 6.0, 6.0, 6.0)]);
}

pub async fn a_mean_of_huge_and_tiny_values_stays_between_them(fixture: Fixture) {
    fixture.begin(1).await;
    let cases = [
        vec![f64::MAX, f64::MAX, f64::MAX],
        vec![f64::MIN, f64::MIN],
        vec![f64::MAX, f64::MIN],
        vec![1e200, -1e200, 1e250],
        vec![f64::MIN_POSITIVE, 5e-324, 0.0],
        vec![0.1, 0.2],
    ];
    let mut rows = Vec::new();
    for (steps, values) in (0..).zip(&cases) {
        for value in values {
            let mut row = at(u128::try_from(rows.len()).unwrap() + 1, 7, "cpu", 0);
            row.event.value = *value;
            row.event.timestamp_ms += steps * 1_000;
            rows.push(row);
        }
    }
    store(&fixture, rows).await;
    let buckets = fixture.query.series(&series(1_000)).await.unwrap();
    let averages: Vec<_> = buckets.iter().map(|bucket| bucket.avg).collect();
    assert_eq!(averages[..3], [f64::MAX, f64::MIN, 0.0]);
    assert!((averages[3] / (1e250 / 3.0) - 1.0).abs() < 1e-12, "{averages:?}");
    assert!((0.0..1e-300).contains(&averages[4]), "{averages:?}");
    assert!((averages[5] - 0.15).abs() < 1e-15, "{averages:?}");
}
