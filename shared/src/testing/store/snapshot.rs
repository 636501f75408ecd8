//! Rules of snapshots: the newest value of each device and type, with the places they were stored up to,
//! of one moment, of one client, and whole or not so called.
#![expect(missing_docs, reason = "the names of rules are sentences")]

use std::collections::BTreeSet;

use super::query::{ME, OTHER, at, device, store};
use super::{DAY_MS, Fixture, GROUP, NOW_MS, batch, metadata, place, row};
use crate::event::ClientId;
use crate::store::query::{Snapshot, SnapshotQuery};
use crate::store::{StoreBatch, StoreRow};

fn query() -> SnapshotQuery {
    SnapshotQuery {
        client: ME,
        group: GROUP.to_owned(),
        devices: Vec::new(),
        event_types: Vec::new(),
        since_ms: NOW_MS - DAY_MS,
        limit: 100,
        most_bytes: 1 << 20,
    }
}

async fn snapshot(fixture: &Fixture, query: &SnapshotQuery) -> Snapshot {
    fixture.query.snapshot(query).await.unwrap()
}

/// The ids of a whole snapshot.
async fn ids(fixture: &Fixture, query: &SnapshotQuery) -> BTreeSet<u128> {
    let snapshot = snapshot(fixture, query).await;
    assert!(snapshot.complete);
    let count = snapshot.events.len();
    let ids: BTreeSet<_> = snapshot.events.iter().map(|event| event.id.0.as_u128()).collect();
    assert_eq!(ids.len(), count, "each once");
    ids
}

pub async fn a_snapshot_holds_the_newest_value_of_each_device_and_type(fixture: Fixture) {
    fixture.begin(2).await;
    let theirs = StoreRow { client: OTHER, ..at(9, 7, "cpu", 0) };
    let rows = vec![
        at(1, 7, "cpu", 50),
        at(2, 7, "cpu", 10),
        at(3, 7, "cpu", 10), // the same time, a later place
        at(4, 7, "cpu", 60), // late
        at(5, 7, "mem", 9_000),
        at(6, 8, "cpu", 5),
        at(7, 7, "old", 3 * DAY_MS),
        theirs,
    ];
    store(&fixture, rows).await;
    assert_eq!(ids(&fixture, &query()).await, [3, 5, 6].into());
    let all_of_it = SnapshotQuery { since_ms: NOW_MS - 4 * DAY_MS, ..query() };
    assert_eq!(ids(&fixture, &all_of_it).await, [3, 5, 6, 7].into());
    assert_eq!(ids(&fixture, &SnapshotQuery { client: OTHER, ..query() }).await, [9].into());
    let of_nobody = snapshot(&fixture, &SnapshotQuery { client: ClientId(3), ..query() }).await;
    let places = vec![place(0, 8), place(1, 0)];
    assert_eq!(of_nobody, Snapshot { places, events: Vec::new(), complete: true });
}

pub async fn a_snapshot_is_of_the_devices_and_types_asked_for(fixture: Fixture) {
    fixture.begin(1).await;
    let mut told = at(1, 7, "cpu", 0);
    told.event.metadata = metadata(r#"{"a":1,"b":"x"}"#);
    let rows = vec![told, at(2, 7, "mem", 0), at(3, 8, "cpu", 0), at(4, 9, "a'b\"", 0)];
    store(&fixture, rows).await;
    let of = |devices: &[u128], types: &[&str]| SnapshotQuery {
        devices: devices.iter().map(|number| device(*number)).collect(),
        event_types: types.iter().map(|name| (*name).to_owned()).collect(),
        ..query()
    };
    assert_eq!(ids(&fixture, &of(&[7, 7, 9, 99], &[])).await, [1, 2, 4].into());
    assert_eq!(ids(&fixture, &of(&[], &["cpu", "a'b\""])).await, [1, 3, 4].into());
    assert_eq!(ids(&fixture, &of(&[8, 7], &["mem"])).await, [2].into());
    assert_eq!(ids(&fixture, &of(&[], &["cp"])).await, [].into());
    assert_eq!(ids(&fixture, &of(&[], &["cp\0u"])).await, [].into(), "no such type can be stored");
    let whole = snapshot(&fixture, &of(&[7], &["cpu"])).await.events.remove(0);
    assert_eq!((whole.client, whole.device, whole.value), (ME, device(7), 21.5));
    assert_eq!((whole.timestamp_ms, whole.event_type.as_str(), whole.pos), (NOW_MS, "cpu", 0));
    let map: serde_json::Value = serde_json::from_str(&whole.metadata.unwrap()).unwrap();
    assert_eq!(map, serde_json::json!({"a": 1, "b": "x"}));
}

pub async fn a_snapshot_and_its_places_are_of_one_moment(fixture: Fixture) {
    fixture.begin(1).await;
    store(&fixture, vec![at(1, 7, "cpu", 1_000)]).await;
    let writer = async {
        for offset in 1..60_i64 {
            let id = u128::from(offset.unsigned_abs()) + 1;
            let newer = StoreRow { offset, ..at(id, 7, "cpu", 1_000 - offset) };
            fixture.write(&batch(offset, offset + 1, vec![newer])).await;
        }
    };
    let reader = async {
        loop {
            let snapshot = snapshot(&fixture, &query()).await;
            let next = snapshot.places[0].next;
            assert_eq!(
                snapshot.events[0].pos,
                next - 1,
                "what was stored up to the place, no more"
            );
            if next == 60 {
                return;
            }
        }
    };
    tokio::join!(writer, reader);
}

pub async fn a_snapshot_that_is_not_whole_says_so(fixture: Fixture) {
    fixture.begin(2).await;
    let rows = (0..6_u128).map(|n| at(n + 1, n / 2, ["cpu", "mem"][n as usize % 2], 0));
    store(&fixture, rows.collect()).await;
    let whole = async |query: SnapshotQuery| snapshot(&fixture, &query).await.complete;
    assert!(whole(SnapshotQuery { limit: 6, ..query() }).await);
    assert!(!whole(SnapshotQuery { limit: 5, ..query() }).await);
    // Devices that were looked through in vain count too: there is an end to it.
    let event_types = vec!["none".to_owned()];
    assert!(whole(SnapshotQuery { limit: 3, event_types: event_types.clone(), ..query() }).await);
    assert!(!whole(SnapshotQuery { limit: 2, event_types, ..query() }).await);
    let devices = vec![device(0), device(1)];
    assert!(whole(SnapshotQuery { limit: 4, devices: devices.clone(), ..query() }).await);
    assert!(!whole(SnapshotQuery { limit: 3, devices, ..query() }).await);
    assert!(!whole(SnapshotQuery { most_bytes: 1_000, ..query() }).await);
    let mut heavy = row(1, 0, 100);
    heavy.event.metadata = metadata(&format!("{{\"a\":\"{}\"}}", "x".repeat(3_000)));
    let (from, to) = (vec![place(1, 0)], vec![place(1, 1)]);
    fixture.write(&StoreBatch { from, to, ..batch(0, 0, vec![heavy]) }).await;
    assert!(!whole(SnapshotQuery { most_bytes: 3_000, ..query() }).await);
    assert!(whole(SnapshotQuery { most_bytes: 6_000, ..query() }).await);
}
