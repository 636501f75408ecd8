//! A tenant learns nothing of another: not from what it is answered, not from how long that takes, not
//! from what its own requests come to.

use std::time::Duration;

use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::clock;
use pulsestream_shared::engine;
use pulsestream_shared::log::partition_of;
use pulsestream_shared::store::Scope;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::raw::said_to_get;
use crate::read::{bury, read, status_is};

on_both!(
    not_yours_and_not_there_are_the_same_bytes_on_every_read_route,
    keys_that_do_not_work_are_told_apart_by_nothing,
    ids_devices_and_quotas_of_one_tenant_are_free_to_another,
    a_stream_tells_nothing_of_another_tenants_device,
);

const CLOSE: &str = "connection: close\r\n";
const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                       sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// What one tenant has, and the key of another.
struct Neighbours {
    pipeline: Pipeline,
    theirs: String,
    stored: Uuid,
    dead: Uuid,
    cursor: String,
}

impl Neighbours {
    async fn new(engines: Engines) -> Self {
        let pipeline = Harness::new(engines).start().await;
        let theirs = pipeline.home.make_key("another").await;
        let (mine, device) = (pipeline.client(), pipeline.devices[0]);
        mine.accept(device, 1.0).await;
        let stored = mine.accept(device, 2.0).await;
        let dead = bury(&pipeline).await;
        status_is(&mine, stored, "stored").await;
        status_is(&mine, dead, "dead-lettered").await;
        let page = read(&mine, "/v1/events?limit=1").await;
        let cursor = page["nextCursor"].as_str().expect("more").to_owned();
        Self { pipeline, theirs, stored, dead, cursor }
    }

    /// Each route once with what the first tenant has, and once with what nobody has.
    fn pairs(&self) -> Vec<(String, String)> {
        let (device, nobody) = (self.pipeline.devices[0], Uuid::new_v4());
        let until_ms = clock::unix_ms() + 60_000;
        let series = |device: Uuid| {
            let span = format!("from={}&to={until_ms}&step=60000", until_ms - 600_000);
            format!("/v1/series?eventType=temperature&{span}&deviceId={device}")
        };
        vec![
            (format!("/v1/events/{}", self.stored), format!("/v1/events/{nobody}")),
            (format!("/v1/events/{}", self.dead), format!("/v1/events/{nobody}")),
            (format!("/v1/devices/{device}"), format!("/v1/devices/{nobody}")),
            (format!("/v1/events?deviceId={device}"), format!("/v1/events?deviceId={nobody}")),
            (series(device), series(nobody)),
            (
                format!("/v1/events?limit=1&cursor={}", self.cursor),
                "/v1/events?limit=1&cursor=bm9ib2R5J3M".to_owned(),
            ),
            (format!("/v1/devices?cursor={}", self.cursor), "/v1/devices?cursor=eA".to_owned()),
        ]
    }

    async fn said(&self, key: &str, path: &str) -> String {
        said_to_get(self.pipeline.gateway_url(), path, key, CLOSE).await
    }

    /// Median times of the two, asked in turns.
    async fn times(&self, (hidden, absent): &(String, String)) -> [Duration; 2] {
        let mut took = [Vec::new(), Vec::new()];
        for _ in 0..25 {
            for (took, path) in took.iter_mut().zip([hidden, absent]) {
                let begun = Instant::now();
                self.said(&self.theirs, path).await;
                took.push(begun.elapsed());
            }
        }
        took.map(|mut took| {
            took.sort_unstable();
            took[took.len() / 2]
        })
    }
}

async fn not_yours_and_not_there_are_the_same_bytes_on_every_read_route(engines: Engines) {
    let neighbours = Neighbours::new(engines).await;
    for pair in neighbours.pairs() {
        let (hidden, absent) = &pair;
        let mine = neighbours.said(&neighbours.pipeline.key, hidden).await;
        let theirs = neighbours.said(&neighbours.theirs, hidden).await;
        assert_eq!(theirs, neighbours.said(&neighbours.theirs, absent).await, "{hidden}");
        assert!(theirs.starts_with("HTTP/1.1 "), "{theirs}");
        if !hidden.starts_with("/v1/devices?") {
            assert_ne!(mine, theirs, "{hidden} shows its owner nothing");
        }
        let [hidden_took, absent_took] = neighbours.times(&pair).await;
        eprintln!("{engines:?} {hidden}: {hidden_took:?}, absent {absent_took:?}");
        let (less, more) = (hidden_took.min(absent_took), hidden_took.max(absent_took));
        let slack = Duration::from_millis(10);
        assert!(more < less * 3 + slack, "{hidden}: {hidden_took:?}, absent {absent_took:?}");
    }
    neighbours.pipeline.stop().await;
}

async fn keys_that_do_not_work_are_told_apart_by_nothing(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let home = &pipeline.home;
    let scopes = [Scope::EventsWrite, Scope::EventsRead];
    let expired = home.make_key_with("late", &scopes, Some(clock::unix_ms() - 1)).await;
    let revoked = home.make_key("gone").await;
    let stores = engine::open_store(&home.config()).await.expect("store");
    let prefix: String = revoked.chars().take(20).collect();
    stores.keys.revoke(&prefix, clock::unix_ms()).await.expect("revoked");
    let never = format!("ps_test_{}", Uuid::new_v4().simple());
    for (url, path, headers) in [
        (pipeline.gateway_url(), "/v1/devices", CLOSE),
        (pipeline.stream_url(), "/v1/stream", UPGRADE),
    ] {
        let headers = headers.replace("connection: upgrade", "connection: upgrade, close");
        let said = async |key: &str| said_to_get(url, path, key, &headers).await;
        let unknown = said(&never).await;
        assert!(unknown.starts_with("HTTP/1.1 401 "), "{unknown}");
        for other in [&expired, &revoked] {
            assert_eq!(said(other).await, unknown, "{path}");
        }
    }
    pipeline.stop().await;
}

async fn ids_devices_and_quotas_of_one_tenant_are_free_to_another(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines)
        .faults(&faults)
        .set("PULSESTREAM__LIMITS__DEVICE_RATE", "1")
        .set("PULSESTREAM__LIMITS__DEVICE_BURST", "6")
        .start()
        .await;
    let theirs = pipeline.client().with_key(&pipeline.home.make_key("another").await);
    let (mine, device) = (pipeline.client(), pipeline.devices[0]);
    let accepted = async |client: &Client, id: Uuid, value: f64| {
        let answer = client.post(id, &event(device, value)).await.expect("an answer");
        assert_eq!(answer.status, 202, "{answer:?}");
        assert_eq!(answer.header("idempotency-replayed"), "", "{answer:?}");
    };
    // In the log, in flight, and told in a batch.
    let (done, in_flight, in_batch) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    accepted(&mine, done, 1.0).await;
    accepted(&theirs, done, 2.0).await;
    faults.next(Method::Append, 1, Fault::HangBefore);
    let hanging = tokio::spawn({
        let (mine, body) = (mine.clone(), event(device, 3.0));
        async move { mine.post(in_flight, &body).await.expect("an answer") }
    });
    wait_for("the log to hang", PATIENCE, async || faults.hanging() == 1).await;
    let body = event(elsewhere(&pipeline), 4.0);
    let beside = theirs.post(in_flight, &body).await.expect("an answer");
    assert_eq!((beside.status, hanging.is_finished()), (202, false), "{beside:?}");
    faults.release();
    assert_eq!(hanging.await.expect("no panic").status, 202);
    accepted(&mine, in_batch, 5.0).await;
    let mut again = event(device, 6.0);
    again["id"] = json!(in_batch);
    let batch = theirs.send(|http, url| {
        http.post(format!("{url}/v1/events/batch"))
            .header("content-type", "application/json")
            .body(json!([again]).to_string())
    });
    let batch = batch.await.expect("an answer");
    assert_eq!((batch.status, &batch.body["accepted"]), (202, &json!(1)), "{batch:?}");

    // One tenant's wild device does not use up what another's, of the same id, may send.
    let wild = async || mine.post(Uuid::new_v4(), &event(device, 7.0)).await.expect("an answer");
    while wild().await.status == 202 {}
    let beside = theirs.post(Uuid::new_v4(), &event(device, 8.0)).await.expect("an answer");
    assert_eq!(beside.status, 202, "{beside:?}");

    // Each reads its own under the shared ids.
    for (client, id, value) in [(&mine, done, 1), (&theirs, done, 2), (&theirs, in_batch, 6)] {
        status_is(client, id, "stored").await;
        assert_eq!(read(client, format!("/v1/events/{id}")).await["data"]["value"], value);
    }
    pipeline.stop().await;
}

/// A device whose lane to the log is not that of the pipeline's first.
fn elsewhere(pipeline: &Pipeline) -> Uuid {
    let lane =
        |device: Uuid| partition_of(device.to_string().as_bytes(), pipeline.engine().partitions);
    let mut devices = std::iter::repeat_with(Uuid::new_v4);
    devices.find(|device| lane(*device) != lane(pipeline.devices[0])).expect("endless")
}

async fn a_stream_tells_nothing_of_another_tenants_device(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let theirs = pipeline.home.make_key("another").await;
    let (url, device) = (pipeline.stream_url(), pipeline.devices[0]);
    pipeline.client().accept(device, 1.0).await;
    let connect = async |device: Uuid| {
        let query = format!("deviceId={device}");
        Dashboard::connect(url, &theirs, &query).await.expect("connected")
    };
    let (mut known, mut unknown) = (connect(device).await, connect(Uuid::new_v4()).await);
    let mut all = Dashboard::connect(url, &theirs, "").await.expect("connected");
    let mut own = Dashboard::connect(url, &pipeline.key, "").await.expect("connected");
    for value in 2..6 {
        pipeline.client().accept(device, value.into()).await;
    }
    assert_eq!(own.take(4).await.len(), 4);
    // The first thing each of theirs hears is their own, whatever was shown to others before.
    pipeline.client().with_key(&theirs).accept(device, 9.0).await;
    for dashboard in [&mut known, &mut all] {
        assert_eq!(dashboard.next().await["value"], 9);
    }
    assert_eq!(own.next_within(Duration::from_millis(300)).await, None::<Value>);
    assert_eq!(unknown.next_within(Duration::from_millis(300)).await, None::<Value>);
    pipeline.stop().await;
}
