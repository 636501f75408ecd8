//! The life of a stream with a place: heartbeats, its end, who is let in, and a log that does not answer.

use std::process::Stdio;

use pulsestream_e2e::client::{Dashboard, PATIENCE};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_e2e::sse::Sse;
use pulsestream_shared::clock;
use pulsestream_shared::store::Scope;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use crate::contract::assert_problem;

on_both!(a_heartbeat_carries_a_place_that_moved_without_an_event);

async fn framed(pipeline: &Pipeline, key: &str, query: &str) -> Dashboard {
    let url = pipeline.stream_url();
    let mut dashboard = Dashboard::connect(url, key, query).await.expect("connected");
    assert_eq!(dashboard.next().await["type"], "hello");
    dashboard
}

async fn sse(pipeline: &Pipeline, key: &str, query: &str) -> Sse {
    let mut sse = Sse::connect(pipeline.stream_url(), key, query, "").await;
    assert_eq!(sse.next().await.expect("hello").event, "hello");
    sse
}

async fn events_after(pipeline: &Pipeline, cursor: &str) -> Value {
    let client = pipeline.client().at(pipeline.stream_url());
    let path = format!("v1/stream/poll?cursor={cursor}");
    let answer = client.send(|http, url| http.get(format!("{url}/{path}"))).await;
    answer.expect("an answer").body
}

async fn a_heartbeat_carries_a_place_that_moved_without_an_event(engines: Engines) {
    let pipeline = Harness::new(engines)
        .devices(2)
        .set("PULSESTREAM__LIVE__PING_INTERVAL", "300ms")
        .set("PULSESTREAM__LIVE__PONG_TIMEOUT", "250ms")
        .start()
        .await;
    let query = format!("mode=live&deviceId={}", pipeline.devices[1]);
    let mut socket = framed(&pipeline, &pipeline.key, &query).await;
    let mut stream = sse(&pipeline, &pipeline.key, &query).await;
    let seen_by_all = events_after(&pipeline, "").await;
    assert_eq!(seen_by_all["code"], "bad_request", "an empty cursor is a mistake");
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    let frame = socket.next().await;
    assert_eq!((&frame["type"], &frame["events"]), (&json!("events"), &json!([])));
    let message = stream.next().await.expect("a heartbeat");
    assert_eq!((message.event.as_str(), &message.data), ("", &Value::Null));
    for cursor in [frame["cursor"].as_str().expect("a cursor"), &message.id] {
        let answer = events_after(&pipeline, cursor).await;
        assert_eq!((&answer["recovered"], &answer["events"]), (&json!(true), &json!([])));
    }
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_open_long_enough_is_sent_elsewhere_with_its_place() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__LIVE__STREAM_AGE", "1500ms")
        .start()
        .await;
    let mut socket = framed(&pipeline, &pipeline.key, "mode=live").await;
    let mut stream = sse(&pipeline, &pipeline.key, "").await;
    let (frames, code) = socket.read_to_the_end().await;
    assert_eq!(code, 1001);
    let goaway = frames.last().expect("goaway");
    assert_eq!(goaway["type"], "goaway");
    let last = stream.next().await.expect("goaway");
    assert_eq!((last.event.as_str(), &last.data["code"]), ("goaway", &json!(1001)));
    assert_eq!(stream.next().await, None);
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    for cursor in [goaway["cursor"].as_str().expect("a cursor"), &last.id] {
        assert_eq!(events_after(&pipeline, cursor).await["events"][0]["value"], 1);
    }
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_with_their_key() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let home = &pipeline.home;
    let ends_at = clock::unix_ms() + 2_500;
    let key = home.make_key_with("tenant", &[Scope::EventsRead], Some(ends_at)).await;
    let mut socket = framed(&pipeline, &key, "mode=window").await;
    let mut stream = sse(&pipeline, &key, "").await;
    assert_eq!(socket.close_code().await, 4010);
    let last = stream.next().await.expect("goaway");
    assert_eq!((last.event.as_str(), &last.data["code"]), ("goaway", &json!(4010)));
    assert_eq!(stream.next().await, None);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_too_many_streams_is_turned_away_and_no_other() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__LIVE__STREAMS_PER_CLIENT", "2")
        .start()
        .await;
    let other_key = pipeline.home.make_key("other").await;
    let (socket, stream) = (
        framed(&pipeline, &pipeline.key, "mode=live").await,
        sse(&pipeline, &pipeline.key, "").await,
    );
    let client = pipeline.client().at(pipeline.stream_url());
    let poll = async || {
        let answer = client.send(|http, url| http.get(format!("{url}/v1/stream/poll"))).await;
        answer.expect("an answer")
    };
    assert_problem(&poll().await, 429, "too_many_streams");
    sse(&pipeline, &other_key, "").await;
    drop((socket, stream));
    wait_for("room", PATIENCE, async || poll().await.status == 200).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_log_does_not_answer_no_verdict_is_guessed() {
    let faults = Faults::default();
    let pipeline = Harness::new(Engines::Embedded).faults(&faults).start().await;
    let client = pipeline.client().at(pipeline.stream_url());
    let poll = async |query: &str| {
        let path = format!("v1/stream/poll?{query}");
        let answer = client.send(|http, url| http.get(format!("{url}/{path}"))).await;
        answer.expect("an answer")
    };
    let cursor = poll("").await.body["cursor"].as_str().expect("a cursor").to_owned();
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    assert_eq!(poll(&format!("wait=20&cursor={cursor}")).await.body["events"][0]["value"], 1);
    faults.next(Method::Bounds, usize::MAX, Fault::Before);
    assert_problem(&poll("cursor=earliest").await, 503, "unavailable");
    // What is in memory needs no log.
    let answer = poll(&format!("cursor={cursor}")).await;
    assert_eq!(
        (&answer.body["recovered"], &answer.body["events"][0]["value"]),
        (&json!(true), &json!(1))
    );
    assert_eq!(poll("cursor=junk").await.body["reason"], "malformed");
    faults.clear();
    assert_eq!(poll("cursor=earliest&wait=20").await.body["events"][0]["value"], 1);
    pipeline.stop().await;
}

/// What a shell script sees: `curl -N` gets each message when it comes, not when a buffer is full.
#[tokio::test(flavor = "multi_thread")]
async fn curl_shows_each_message_when_it_comes() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let mut curl = Command::new("curl")
        .args(["-sN", "-H", &format!("x-api-key: {}", pipeline.key)])
        .arg(format!("{}/v1/stream/sse?eventType=temperature", pipeline.stream_url()))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("curl runs");
    let mut lines = BufReader::new(curl.stdout.take().expect("its output")).lines();
    let mut data = async || {
        loop {
            let line = timeout(PATIENCE, lines.next_line()).await.expect("in time");
            let line = line.expect("a line").expect("an open stream");
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str::<Value>(data).expect("JSON");
            }
        }
    };
    assert_eq!(data().await["recovered"], Value::Null);
    for value in 0..3 {
        pipeline.client().accept(pipeline.devices[0], f64::from(value)).await;
        assert_eq!(data().await["value"], value);
    }
    drop(curl);
    pipeline.stop().await;
}
