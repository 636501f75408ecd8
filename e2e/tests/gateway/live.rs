//! What a dashboard sees: what it asked for, of its own tenant, in the order of each device.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use pulsestream_e2e::client::{Dashboard, event, refusal};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline, start_broadcaster};
use pulsestream_e2e::on_both;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::contract::assert_problem;

on_both!(
    a_filter_lets_through_what_it_names,
    a_plain_socket_sends_each_event_as_it_was_accepted_and_nothing_else,
    each_device_keeps_its_order,
);

async fn connect(pipeline: &Pipeline, query: &str) -> Dashboard {
    let url = pipeline.stream_url();
    Dashboard::connect(url, &pipeline.key, query).await.expect("connected")
}

fn values(events: &[Value]) -> Vec<i64> {
    events.iter().filter_map(|event| event["value"].as_i64()).collect()
}

async fn a_filter_lets_through_what_it_names(engines: Engines) {
    let pipeline = Harness::new(engines).devices(3).start().await;
    let [a, b, c] = pipeline.devices[..] else { panic!("three devices") };
    let mut all = connect(&pipeline, "").await;
    let mut of_two = connect(&pipeline, &format!("deviceId={a}&deviceId={b}")).await;
    let mut of_types = connect(&pipeline, "eventType=cpu&eventType=mem%20free").await;
    let mut of_both = connect(&pipeline, &format!("deviceId={c}&eventType=cpu&x=1")).await;
    let types = ["cpu", "mem free", "disk"];
    let devices = [a, b, c];
    for value in 0..9_usize {
        let mut body = event(devices[value / 3], 0.0);
        body["value"] = value.into();
        body["eventType"] = types[value % 3].into();
        let answer = pipeline.client().post(Uuid::new_v4(), &body).await.expect("an answer");
        assert_eq!(answer.status, 202);
    }
    let sorted = |events: Vec<Value>| {
        let mut values = values(&events);
        values.sort_unstable();
        values
    };
    assert_eq!(sorted(all.take(9).await), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(sorted(of_two.take(6).await), [0, 1, 2, 3, 4, 5]);
    assert_eq!(sorted(of_types.take(6).await), [0, 1, 3, 4, 6, 7]);
    assert_eq!(values(&of_both.take(1).await), [6]);
    // Nothing else came: what is sent now is the next that each sees.
    let mut last = event(c, 99.0);
    last["eventType"] = "cpu".into();
    pipeline.client().post(Uuid::new_v4(), &last).await.expect("an answer");
    assert_eq!(of_types.next().await["value"], 99);
    assert_eq!(of_both.next().await["value"], 99);
    pipeline.client().accept(a, 100.0).await;
    assert_eq!(of_two.next().await["value"], 100);
    pipeline.stop().await;
}

async fn a_plain_socket_sends_each_event_as_it_was_accepted_and_nothing_else(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let mut dashboard = connect(&pipeline, "").await;
    let id = Uuid::new_v4();
    let mut body = event(pipeline.devices[0], 21.5);
    body["metadata"] = json!({"site": "Zürich \"7\"", "floor": 3, "lit": true});
    body["unknown"] = json!([1, 2]);
    let answer = pipeline.client().post(id, &body).await.expect("an answer");
    assert_eq!(answer.status, 202);
    body.as_object_mut().expect("an object").remove("unknown");
    body["id"] = json!(id);
    assert_eq!(dashboard.next().await, body);
    pipeline.stop().await;
}

async fn each_device_keeps_its_order(engines: Engines) {
    const EACH: usize = 15;
    let pipeline = Harness::new(engines).devices(6).start().await;
    let mut dashboard = connect(&pipeline, "").await;
    let client = pipeline.client();
    let one_by_one = |device| {
        let client = client.clone();
        async move {
            for value in 0..EACH {
                client.accept(device, value as f64).await;
            }
        }
    };
    join_all(pipeline.devices.iter().copied().map(one_by_one)).await;
    let shown = dashboard.take(6 * EACH).await;
    assert_order(&shown, EACH);
    pipeline.stop().await;
}

/// Each device's values are 0, 1, 2, … in this order.
#[track_caller]
fn assert_order(shown: &[Value], each: usize) {
    let mut by_device = BTreeMap::<_, Vec<_>>::new();
    for event in shown {
        by_device.entry(event["deviceId"].to_string()).or_default().push(event["value"].as_i64());
    }
    let expected: Vec<_> = (0..each).map(|value| i64::try_from(value).ok()).collect();
    assert!(by_device.values().all(|values| *values == expected), "{by_device:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broadcaster_shows_every_event() {
    const EACH: usize = 10;
    let pipeline = Harness::new(Engines::Servers).devices(6).start().await;
    let second = start_broadcaster(&pipeline.home).await;
    let mut here = connect(&pipeline, "").await;
    let mut there = Dashboard::connect(&second.url, &pipeline.key, "").await.expect("connected");
    let client = pipeline.client();
    for value in 0..EACH {
        let posts = pipeline.devices.iter().map(|device| client.accept(*device, value as f64));
        join_all(posts).await;
    }
    for dashboard in [&mut here, &mut there] {
        assert_order(&dashboard.take(6 * EACH).await, EACH);
    }
    second.stop().await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_cannot_be_served_is_refused() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let url = pipeline.stream_url();
    for query in ["deviceId=nope", "eventType=x", "deviceId=&eventType=cpu"] {
        let connected = Dashboard::connect(url, &pipeline.key, query).await;
        assert_eq!(refusal(connected), 400, "{query}");
    }
    let client = pipeline.client();
    let plain = client.send(|http, url| http.get(format!("{url}/v1/stream")));
    assert_problem(&plain.await.expect("an answer"), 400, "bad_request");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dev_server_shows_everything_to_a_dashboard_without_a_key() {
    let pipeline =
        Harness::new(Engines::Embedded).set("PULSESTREAM__SERVER__DEV", "true").start().await;
    let other_key = pipeline.home.make_key("other").await;
    let url = pipeline.stream_url();
    let mut anonymous = Dashboard::connect(url, "", "").await.expect("connected");
    let mut ours = connect(&pipeline, "").await;
    assert_eq!(refusal(Dashboard::connect(url, "ps_test_nobody", "").await), 401);
    pipeline.client().with_key(&other_key).accept(pipeline.devices[0], 1.0).await;
    assert_eq!(anonymous.next().await["value"], 1);
    pipeline.client().accept(pipeline.devices[0], 2.0).await;
    assert_eq!(anonymous.next().await["value"], 2);
    assert_eq!(ours.next().await["value"], 2);
    pipeline.stop().await;
}
