//! Who sends too much, or too slowly, or when there is no room: told so, at once and without harm to others.

use std::time::Duration;

use pulsestream_e2e::client::{PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::testing::wait_for;
use tokio::time::Instant;
use uuid::Uuid;

use crate::contract::{assert_problem, assert_problem_body};
use crate::raw::{Raw, head};

on_both!(a_key_over_its_rate_waits_as_long_as_it_is_told_and_is_then_let_through);

async fn a_key_over_its_rate_waits_as_long_as_it_is_told_and_is_then_let_through(engines: Engines) {
    let pipeline = Harness::new(engines)
        .set("PULSESTREAM__LIMITS__KEY_RATE", "1")
        .set("PULSESTREAM__LIMITS__KEY_BURST", "3")
        .start()
        .await;
    let (client, device) = (pipeline.client(), pipeline.devices[0]);
    let (id, body) = (Uuid::new_v4(), event(device, 1.0));
    let first = client.post(id, &body).await.expect("an answer");
    assert_eq!(first.status, 202);
    assert_eq!(first.header("ratelimit-policy"), "\"key\";q=1;w=1");
    assert_eq!(first.header("ratelimit"), "\"key\";r=2;t=1");
    // A retry costs as much, and a bad body nothing.
    let replayed = client.post(id, &body).await.expect("an answer");
    assert_eq!(replayed.header("idempotency-replayed"), "true");
    let mut bad = body.clone();
    bad["value"] = "much".into();
    for _ in 0..5 {
        assert_eq!(client.post(Uuid::new_v4(), &bad).await.expect("an answer").status, 400);
    }
    let mut accepted = 0;
    let refused = loop {
        let answer = client.post(Uuid::new_v4(), &event(device, 2.0)).await.expect("an answer");
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 1_000, "never refused");
    };
    assert_problem(&refused, 429, "quota_exceeded");
    assert_eq!(refused.header("ratelimit"), "\"key\";r=0;t=1");
    let wait = refused.header("retry-after").parse().expect("seconds");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    client.accept(device, 3.0).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_runs_wild_is_stopped_and_its_neighbour_and_its_key_are_not() {
    let pipeline = Harness::new(Engines::Embedded)
        .devices(2)
        .set("PULSESTREAM__LIMITS__DEVICE_RATE", "1")
        .set("PULSESTREAM__LIMITS__DEVICE_BURST", "1")
        .start()
        .await;
    let client = pipeline.client();
    let wild = async || client.post(Uuid::new_v4(), &event(pipeline.devices[0], 1.0)).await;
    let mut last = wild().await.expect("an answer");
    while last.status == 202 {
        assert_eq!(last.header("ratelimit"), "", "the key is unlimited");
        last = wild().await.expect("an answer");
    }
    assert_problem(&last, 429, "quota_exceeded");
    assert_eq!(last.header("ratelimit-policy"), "\"device\";q=1;w=1");
    client.accept(pipeline.devices[1], 1.0).await;
    assert!(
        series(&pipeline, "limit_decisions_total{result=\"refused\",scope=\"device\"}").await > 0
    );
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_is_cut_long_before_its_deadline() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__INGEST__BODY_STALL_TIMEOUT", "300ms")
        .start()
        .await;
    let mut raw = Raw::connect(pipeline.gateway_url()).await;
    let sent = Instant::now();
    raw.send(format!("{}\r\n{{\"deviceId\":", head(&pipeline.key, Uuid::new_v4(), 200))).await;
    let heard = raw.answer().await;
    assert_problem_body(&heard.body, 408, "request_timeout");
    assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
    raw.closed_within(Duration::from_secs(2)).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_only_declared_take_their_room_and_give_it_back() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__INGEST__MAX_IN_FLIGHT_BYTES", "1048576")
        .set("PULSESTREAM__INGEST__BODY_STALL_TIMEOUT", "7s")
        .start()
        .await;
    let client = pipeline.client();
    let mut holders = Vec::new();
    for _ in 0..102 {
        let mut raw = Raw::connect(pipeline.gateway_url()).await;
        raw.send(format!("{}\r\n{{", head(&pipeline.key, Uuid::new_v4(), 10_240))).await;
        holders.push(raw);
    }
    let mut big = event(pipeline.devices[0], 1.0);
    big["padding"] = "x".repeat(8_000).into();
    wait_for("the room to be taken", PATIENCE, async || {
        series(&pipeline, "http_body_bytes_in_flight").await == 102 * 10_240
    })
    .await;
    let full = async || client.post(Uuid::new_v4(), &big).await.expect("an answer");
    let answer = full().await;
    assert_problem(&answer, 503, "overloaded");
    let wait: u32 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=3).contains(&wait), "{wait}");
    assert_eq!(series(&pipeline, "shed_total{reason=\"requests\"}").await, 0);
    drop(holders);
    wait_for("room", Duration::from_secs(5), async || full().await.status == 202).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_a_free_place_says_so_at_once_whoever_asks() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__INGEST__MAX_IN_FLIGHT", "1")
        .start()
        .await;
    let mut holder = Raw::connect(pipeline.gateway_url()).await;
    holder.send(format!("{}\r\n{{", head(&pipeline.key, Uuid::new_v4(), 200))).await;
    wait_for("the place to be taken", PATIENCE, async || {
        series(&pipeline, "http_requests_in_flight").await == 1
    })
    .await;
    let (client, body) = (pipeline.client(), event(pipeline.devices[0], 1.0));
    let mut quickest = PATIENCE;
    for _ in 0..10 {
        let sent = Instant::now();
        let stranger = client.with_key("unknown").post(Uuid::new_v4(), &body).await;
        assert_problem(&stranger.expect("an answer"), 503, "overloaded");
        quickest = quickest.min(sent.elapsed());
    }
    assert!(quickest < Duration::from_millis(100), "{quickest:?}");
    assert_eq!(series(&pipeline, "shed_total{reason=\"requests\"}").await, 10);
    assert_eq!(client.get("/readyz").await.expect("an answer").status, 200);
    drop(holder);
    wait_for("room", PATIENCE, async || {
        client.post(Uuid::new_v4(), &body).await.is_ok_and(|answer| answer.status == 202)
    })
    .await;
    pipeline.stop().await;
}

/// The value of a gateway's series, `pulsestream_` left out.
pub(crate) async fn series(pipeline: &Pipeline, name: &str) -> u64 {
    pipeline.client().figure(&format!("pulsestream_{name}")).await.expect("the series")
}
