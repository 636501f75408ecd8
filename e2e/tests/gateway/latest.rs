//! `mode=latest`: the newest value of each device and type, those that are stored first, then what is new,
//! of a burst the last. A client keeps what is not older than what it shows.

use std::collections::BTreeMap;
use std::time::Duration;

use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline, start_broadcaster};
use pulsestream_e2e::on_both;
use pulsestream_e2e::sse::Sse;
use pulsestream_shared::clock;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::proxy::{TcpProxy, Traffic};
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::read::get;

on_both!(
    newest_values_come_first_and_then_what_is_new,
    a_burst_becomes_one_event_of_each_device_a_window,
    who_comes_back_gets_the_newest_of_what_was_missed,
    without_the_database_a_stream_begins_without_values_and_goes_on,
    every_transport_begins_with_the_newest_values,
);

/// What a client shows: by device, type, the time and the value.
#[derive(Default)]
struct View {
    shown: BTreeMap<(String, String), (i64, i64)>,
    events: usize,
    cursor: String,
}

impl View {
    fn take(&mut self, frame: &Value) {
        assert_eq!(frame["type"], "events", "{frame}");
        self.show(&frame["events"]);
        if let Some(cursor) = frame["cursor"].as_str() {
            cursor.clone_into(&mut self.cursor);
        }
    }

    fn show(&mut self, events: &Value) {
        for event in events.as_array().expect("events") {
            let key = (text(&event["deviceId"]), text(&event["eventType"]));
            let new = (
                event["timestamp"].as_i64().expect("a time"),
                event["value"].as_i64().unwrap_or(-1),
            );
            let shown = self.shown.entry(key).or_insert(new);
            if new.0 >= shown.0 {
                *shown = new;
            }
            self.events += 1;
        }
    }

    fn value(&self, device: Uuid, event_type: &str) -> Option<i64> {
        let key = (device.to_string(), event_type.to_owned());
        self.shown.get(&key).map(|(_, value)| *value)
    }

    /// Takes frames until the cursor has come that follows the newest values.
    async fn begin(&mut self, dashboard: &mut Dashboard) {
        while self.cursor.is_empty() {
            self.take(&dashboard.next().await);
        }
    }

    /// Takes frames until the device shows that value.
    async fn until(&mut self, dashboard: &mut Dashboard, device: Uuid, value: i64) {
        while self.value(device, "temperature") != Some(value) {
            self.take(&dashboard.next().await);
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

async fn latest(pipeline: &Pipeline, query: &str) -> (Dashboard, Value) {
    let query = format!("mode=latest&windowMs=20&{query}");
    let connected = Dashboard::connect(pipeline.stream_url(), &pipeline.key, &query).await;
    let mut dashboard = connected.expect("connected");
    let hello = dashboard.next().await;
    assert_eq!(hello["type"], "hello", "{hello}");
    (dashboard, hello)
}

/// Waits until the store has this value as the device's newest.
async fn stored(client: &Client, device: Uuid, value: i64) {
    wait_for("the value to be stored", PATIENCE, async || {
        let answer = get(client, format!("/v1/devices/{device}")).await;
        answer.body["data"]["latest"]["temperature"]["value"] == value
    })
    .await;
}

async fn post(client: &Client, device: Uuid, event_type: &str, value: i64, timestamp_ms: i64) {
    let mut body = event(device, value as f64);
    body["eventType"] = json!(event_type);
    body["timestamp"] = json!(timestamp_ms);
    let answer = client.post(Uuid::new_v4(), &body).await.expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// These values of each device in one request, each newer than the one before.
async fn post_values(client: &Client, devices: &[Uuid], values: &[i64], metadata: &Value) {
    let now_ms = clock::unix_ms();
    let events: Vec<_> = values
        .iter()
        .flat_map(|value| devices.iter().map(move |device| (value, device)))
        .map(|(value, device)| {
            let mut body = event(*device, *value as f64);
            body["id"] = json!(Uuid::new_v4());
            body["timestamp"] = json!(now_ms - 100_000 + value);
            body["metadata"] = metadata.clone();
            body
        })
        .collect();
    let answer = client.post_json("/v1/events/batch", &json!({"events": events})).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 202, "{:?}", answer.body["results"][0]);
}

async fn newest_values_come_first_and_then_what_is_new(engines: Engines) {
    let pipeline = Harness::new(engines).devices(2).start().await;
    let (client, [a, b]) = (pipeline.client(), [pipeline.devices[0], pipeline.devices[1]]);
    let other = client.with_key(&pipeline.home.make_key("other").await);
    let now_ms = clock::unix_ms();
    other.accept(a, 666.0).await;
    post(&client, a, "temperature", 1, now_ms - 900).await;
    post(&client, a, "temperature", 2, now_ms - 100).await;
    post(&client, a, "temperature", 3, now_ms - 500).await; // late
    post(&client, a, "humidity", 4, now_ms).await;
    post(&client, b, "temperature", 5, now_ms).await;
    stored(&client, b, 5).await;
    stored(&client, a, 2).await;

    let (mut dashboard, hello) = latest(&pipeline, "").await;
    assert_eq!((&hello["snapshot"], &hello["cursor"]), (&json!(true), &Value::Null), "{hello}");
    assert!(hello["recovered"].is_null() && hello["snapshotReason"].is_null(), "{hello}");
    let mut view = View::default();
    view.begin(&mut dashboard).await;
    let value = |view: &View, device, event_type| view.value(device, event_type);
    assert_eq!(value(&view, a, "temperature"), Some(2));
    assert_eq!((value(&view, a, "humidity"), value(&view, b, "temperature")), (Some(4), Some(5)));

    // A subscription of its own has its own values.
    let subscribe = json!({"type": "subscribe", "id": 1, "sub": "b", "mode": "latest",
                           "deviceId": b, "windowMs": 0});
    dashboard.say(&subscribe.to_string()).await;
    let ok = dashboard.next().await;
    assert_eq!(
        (&ok["type"], &ok["snapshot"], &ok["cursor"]),
        (&json!("ok"), &json!(true), &Value::Null)
    );
    let frame = dashboard.next().await;
    assert_eq!((&frame["sub"], &frame["events"][0]["value"]), (&json!("b"), &json!(5)), "{frame}");
    assert_eq!(frame["events"].as_array().map(Vec::len), Some(1));
    assert!(frame["cursor"].is_string(), "{frame}");

    other.accept(a, 667.0).await;
    client.accept(a, 6.0).await;
    view.until(&mut dashboard, a, 6).await;
    assert_eq!(view.shown.len(), 3, "nothing of another tenant: {:?}", view.shown);
    pipeline.stop().await;
}

async fn a_burst_becomes_one_event_of_each_device_a_window(engines: Engines) {
    let pipeline =
        Harness::new(engines).devices(2).set("PULSESTREAM__LIMITS__DEVICE_RATE", "0").start().await;
    let (mut dashboard, _) = latest(&pipeline, "windowMs=1000").await;
    let mut view = View::default();
    view.begin(&mut dashboard).await;
    let values: Vec<_> = (0..400).collect();
    post_values(&pipeline.client(), &pipeline.devices, &values, &json!({})).await;
    for device in &pipeline.devices {
        view.until(&mut dashboard, *device, 399).await;
    }
    // The burst may have come in the last moment of a window, and in two parts.
    assert!(view.events <= 4, "{} events", view.events);
    let metrics = Client::new(pipeline.stream_url(), "");
    let left_out = metrics.figure("pulsestream_live_conflated_total").await;
    assert_eq!(left_out, Some(800 - view.events as u64));
    assert_eq!(metrics.figure("pulsestream_live_snapshots_total{outcome=\"sent\"}").await, Some(1));
    pipeline.stop().await;
}

async fn who_comes_back_gets_the_newest_of_what_was_missed(engines: Engines) {
    let pipeline = Harness::new(engines).devices(2).start().await;
    let (client, [a, b]) = (pipeline.client(), [pipeline.devices[0], pipeline.devices[1]]);
    client.accept(b, 1.0).await;
    stored(&client, b, 1).await;
    let (mut dashboard, _) = latest(&pipeline, "").await;
    let mut view = View::default();
    view.begin(&mut dashboard).await;
    drop(dashboard);
    let url = pipeline.stream_url();
    let watching = Dashboard::connect(url, &pipeline.key, "mode=live").await;
    let mut watching = watching.expect("connected");
    for value in 0..30 {
        client.accept(a, f64::from(value)).await;
    }
    let mut watched = View::default();
    watching.next().await;
    watched.until(&mut watching, a, 29).await;

    let (mut again, hello) = latest(&pipeline, &format!("cursor={}", view.cursor)).await;
    assert_eq!((&hello["recovered"], &hello["snapshot"]), (&json!(true), &Value::Null), "{hello}");
    let before = view.events;
    view.until(&mut again, a, 29).await;
    assert_eq!((view.events - before, view.value(b, "temperature")), (1, Some(1)));
    // A cursor that is none: told so, and given the newest values.
    let (mut anew, hello) = latest(&pipeline, "cursor=nonsense").await;
    assert_eq!((&hello["recovered"], &hello["snapshot"]), (&json!(false), &json!(true)), "{hello}");
    let mut view = View::default();
    view.begin(&mut anew).await;
    view.until(&mut anew, a, 29).await;
    assert_eq!(view.value(b, "temperature"), Some(1));
    pipeline.stop().await;
}

async fn without_the_database_a_stream_begins_without_values_and_goes_on(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines)
        .set("PULSESTREAM__LIVE__SNAPSHOT_TIMEOUT", "100ms")
        .faults(&faults)
        .start()
        .await;
    let (client, device) = (pipeline.client(), pipeline.devices[0]);
    for (fault, reason) in [
        (Fault::Before, "unavailable"),
        (Fault::After, "too_slow"),
        (Fault::HangBefore, "too_slow"),
    ] {
        faults.next(Method::QuerySnapshot, 1, fault);
        let (mut dashboard, hello) = latest(&pipeline, "").await;
        assert_eq!((&hello["snapshot"], &hello["snapshotReason"]), (&json!(false), &json!(reason)));
        assert!(hello["cursor"].is_string(), "{hello}");
        client.accept(device, 7.0).await;
        View::default().until(&mut dashboard, device, 7).await;
    }
    pipeline.stop().await;
}

async fn every_transport_begins_with_the_newest_values(engines: Engines) {
    let pipeline = Harness::new(engines).devices(2).start().await;
    let (client, [a, b]) = (pipeline.client(), [pipeline.devices[0], pipeline.devices[1]]);
    client.accept(a, 1.0).await;
    client.accept(b, 2.0).await;
    stored(&client, a, 1).await;
    stored(&client, b, 2).await;
    let url = pipeline.stream_url();

    let mut sse = Sse::connect(url, &pipeline.key, "mode=latest&windowMs=0", "").await;
    let hello = sse.next().await.expect("hello");
    assert_eq!((&hello.data["snapshot"], hello.id.as_str()), (&json!(true), ""));
    let values = sse.take(2).await;
    let ids: Vec<_> = values.iter().map(|message| message.id.is_empty()).collect();
    assert_eq!(ids, [true, false], "the last has the place");
    client.accept(a, 3.0).await;
    assert_eq!(sse.take(1).await[0].data["value"], 3);
    drop(sse);
    let mut again = Sse::connect(url, &pipeline.key, "mode=latest", &values[1].id).await;
    assert_eq!(again.header("stream-recovered"), "true");
    assert_eq!(again.take(2).await[1].data["value"], 3);

    let poll = async |query: &str| {
        let path = format!("/v1/stream/poll?mode=latest&{query}");
        get(&client.at(url), path).await.body
    };
    let first = poll("").await;
    assert_eq!((&first["snapshot"], &first["recovered"]), (&json!(true), &Value::Null), "{first}");
    let mut view = View::default();
    view.show(&first["events"]);
    assert!(view.value(a, "temperature").is_some());
    assert_eq!(view.value(b, "temperature"), Some(2));
    for value in 4..20 {
        client.accept(a, f64::from(value)).await;
    }
    let mut cursor = text(&first["cursor"]);
    while view.value(a, "temperature") != Some(19) {
        let answer = poll(&format!("wait=20&limit=1&cursor={cursor}")).await;
        assert_eq!(answer["recovered"], true, "{answer}");
        view.show(&answer["events"]);
        cursor = text(&answer["cursor"]);
    }
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_stored_yet_follows_from_the_log() {
    let mut pipeline = Harness::new(Engines::Servers).devices(2).start().await;
    let (client, [a, b]) = (pipeline.client(), [pipeline.devices[0], pipeline.devices[1]]);
    client.accept(a, 1.0).await;
    client.accept(b, 2.0).await;
    stored(&client, a, 1).await;
    stored(&client, b, 2).await;
    // Gateway, consumer, broadcaster.
    pipeline.services.remove(1).stop().await;
    client.accept(a, 3.0).await;
    let (mut dashboard, hello) = latest(&pipeline, "").await;
    assert_eq!(hello["snapshot"], true, "{hello}");
    let mut view = View::default();
    view.begin(&mut dashboard).await;
    assert_eq!(view.value(b, "temperature"), Some(2));
    view.until(&mut dashboard, a, 3).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_values_than_one_snapshot_may_have_are_left_to_the_read_api() {
    let pipeline = Harness::new(Engines::Embedded)
        .devices(3)
        .set("PULSESTREAM__LIVE__SNAPSHOT_VALUES", "2")
        .start()
        .await;
    let client = pipeline.client();
    for device in &pipeline.devices {
        client.accept(*device, 1.0).await;
        stored(&client, *device, 1).await;
    }
    let (mut dashboard, hello) = latest(&pipeline, "").await;
    assert_eq!(
        (&hello["snapshot"], &hello["snapshotReason"]),
        (&json!(false), &json!("too_large"))
    );
    client.accept(pipeline.devices[0], 2.0).await;
    let mut view = View::default();
    view.until(&mut dashboard, pipeline.devices[0], 2).await;
    assert_eq!(view.shown.len(), 1);
    // Fewer are asked for.
    let query = format!("deviceId={}", pipeline.devices[1]);
    let (mut dashboard, hello) = latest(&pipeline, &query).await;
    assert_eq!(hello["snapshot"], true, "{hello}");
    let mut view = View::default();
    view.begin(&mut dashboard).await;
    assert_eq!(view.value(pipeline.devices[1], "temperature"), Some(1));
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_does_not_read_gets_the_newest_and_no_gap() {
    let pipeline = Harness::new(Engines::Embedded)
        .devices(20)
        .set("PULSESTREAM__LIVE__QUEUE_BYTES", "65536")
        .set("PULSESTREAM__LIVE__RING_BYTES", "1048576")
        .set("PULSESTREAM__LIMITS__DEVICE_RATE", "0")
        .start()
        .await;
    // Without windows there is no conflation but that of what waits for the socket.
    let (mut slow, _) = latest(&pipeline, "windowMs=0").await;
    let mut view = View::default();
    view.begin(&mut slow).await;
    // More than the kernel takes in for a socket nobody reads, and the ring besides: 3,200 events of 9 KB.
    let padding = json!({"padding": "x".repeat(9_000)});
    let values: Vec<_> = (0..160).collect();
    for values in values.chunks(20) {
        post_values(&pipeline.client(), &pipeline.devices, values, &padding).await;
    }
    for device in &pipeline.devices {
        // A gap would be no `events`.
        view.until(&mut slow, *device, 159).await;
    }
    assert!(view.events < 3_200, "{} events", view.events);
    pipeline.stop().await;
}

/// With the real database gone, and with one that says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_or_hangs_holds_no_stream_up() {
    let mut pipeline = Harness::new(Engines::Servers).start().await;
    let (client, device) = (pipeline.client(), pipeline.devices[0]);
    client.accept(device, 1.0).await;
    stored(&client, device, 1).await;
    let proxy = pipeline.home.database_through_proxy().await;
    let broadcaster = start_broadcaster(&pipeline.home).await;
    let open = async || {
        let asked = Instant::now();
        let opened = Dashboard::connect(&broadcaster.url, &pipeline.key, "mode=latest").await;
        let mut dashboard = opened.expect("connected");
        let hello = dashboard.next().await;
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
        (dashboard, hello)
    };
    assert_eq!(open().await.1["snapshot"], true);
    for break_it in [TcpProxy::kill, |proxy: &TcpProxy| proxy.set(Traffic::Pause)] {
        break_it(&proxy);
        let (mut dashboard, hello) = open().await;
        assert_eq!(hello["snapshot"], false, "{hello}");
        client.accept(device, 2.0).await;
        View::default().until(&mut dashboard, device, 2).await;
        proxy.restore();
        wait_for("values again", PATIENCE, async || open().await.1["snapshot"] == true).await;
    }
    broadcaster.stop().await;
    pipeline.stop().await;
}
