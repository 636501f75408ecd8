//! Sockets that do not read, do not answer, or meet the end of their server.

use std::time::Duration;

use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::testing::wait_for;
use uuid::Uuid;

on_both!(a_drain_closes_every_socket_with_1012_after_its_last_event);

/// More than the kernel takes in for a socket nobody reads.
const MOST_EVENTS: usize = 4_000;

async fn connect(pipeline: &Pipeline) -> Dashboard {
    let url = pipeline.stream_url();
    Dashboard::connect(url, &pipeline.key, "").await.expect("connected")
}

/// The value of an unlabelled or fully labelled series of the broadcaster.
async fn series(pipeline: &Pipeline, name: &str) -> u64 {
    Client::new(pipeline.stream_url(), "").figure(name).await.unwrap_or(0)
}

const DROPPED: &str = "pulsestream_live_dropped_total{reason=\"slow\"}";
const OPEN: &str = "pulsestream_live_connections{transport=\"websocket\"}";

async fn a_drain_closes_every_socket_with_1012_after_its_last_event(engines: Engines) {
    let mut pipeline = Harness::new(engines).start().await;
    let (mut one, mut other) = (connect(&pipeline).await, connect(&pipeline).await);
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    assert_eq!(one.next().await["value"], 1);
    let (one, other, ()) =
        tokio::join!(one.close_code(), other.close_code(), pipeline.stop_services());
    assert_eq!((one, other), (1012, 1012));
    pipeline.home.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_socket_is_closed_4008_without_a_hole_and_a_quick_one_gets_everything() {
    let pipeline =
        Harness::new(Engines::Embedded).set("PULSESTREAM__LIVE__MAX_LAG", "1s").start().await;
    let (mut slow, mut quick) = (connect(&pipeline).await, connect(&pipeline).await);
    let client = pipeline.client();
    let mut sent = 0;
    while series(&pipeline, DROPPED).await == 0 {
        assert!(sent < MOST_EVENTS, "never too slow");
        for _ in 0..4 {
            let mut body = event(pipeline.devices[0], sent as f64);
            body["metadata"] = serde_json::json!({"padding": "x".repeat(9_000)});
            let answer = client.post(Uuid::new_v4(), &body).await.expect("an answer");
            assert_eq!(answer.status, 202);
            assert_eq!(quick.next().await["value"], sent);
            sent += 1;
        }
    }
    let (seen, code) = slow.read_to_the_end().await;
    assert_eq!(code, 4008);
    let expected: Vec<_> = (0..seen.len()).collect();
    assert!(seen.iter().map(|event| &event["value"]).eq(&expected), "a hole before the end");
    assert!(seen.len() < sent);
    client.accept(pipeline.devices[0], -1.0).await;
    assert_eq!(quick.next().await["value"], -1);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_never_answers_a_ping_is_dropped_and_one_that_does_stays() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__LIVE__PING_INTERVAL", "900ms")
        .set("PULSESTREAM__LIVE__PONG_TIMEOUT", "600ms")
        .start()
        .await;
    let silent = connect(&pipeline).await;
    let mut lively = connect(&pipeline).await;
    assert_eq!(series(&pipeline, OPEN).await, 2);
    let reads = tokio::spawn(async move { (lively.next().await, lively) });
    wait_for("the silent socket to be dropped", Duration::from_secs(8), async || {
        series(&pipeline, OPEN).await < 2
    })
    .await;
    // The other has been pinged at least as often: it is there still and gets what is sent.
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    let (shown, _lively) =
        tokio::time::timeout(PATIENCE, reads).await.expect("in time").expect("read");
    assert_eq!(shown["value"], 1);
    assert_eq!(series(&pipeline, OPEN).await, 1);
    drop(silent);
    pipeline.stop().await;
}
