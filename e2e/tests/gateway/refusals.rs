//! Requests that are too big, too slow or never finished: answered or closed in time, never waited for.

use std::time::Duration;

use pulsestream_e2e::client::event;
use pulsestream_e2e::harness::{Engines, Harness};
use tokio::time::Instant;
use uuid::Uuid;

use crate::contract::{assert_problem, assert_problem_body};
use crate::raw::{Raw, head};

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let client = pipeline.client();
    let mut body = event(pipeline.devices[0], 1.0);
    body["padding"] = "x".repeat(11 * 1_024).into();
    let answer = client.post(Uuid::new_v4(), &body).await.expect("an answer");
    assert_problem(&answer, 413, "payload_too_large");

    body["padding"] = "".into();
    body["padding"] = "x".repeat(10_240 - body.to_string().len()).into();
    let answer = client.post(Uuid::new_v4(), &body).await.expect("an answer");
    assert_eq!((body.to_string().len(), answer.status), (10_240, 202));

    // Without a declared length the limit holds all the same.
    let mut raw = Raw::connect(pipeline.gateway_url()).await;
    let head = head(&pipeline.key, Uuid::new_v4(), 0);
    let head = head.replace("content-length: 0", "transfer-encoding: chunked");
    raw.send(format!("{head}\r\n{:x}\r\n{}\r\n", 11_000, "x".repeat(11_000))).await;
    assert_problem_body(&raw.answer().await.body, 413, "payload_too_large");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_declares_too_much_is_refused_before_it_is_sent() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let mut raw = Raw::connect(pipeline.gateway_url()).await;
    let head = head(&pipeline.key, Uuid::new_v4(), 2_000_000_000);
    raw.send(format!("{head}\r\n")).await;
    let heard = raw.answer().await;
    assert_eq!(heard.status, 413, "{heard:?}");
    assert_problem_body(&heard.body, 413, "payload_too_large");
    raw.closed_within(Duration::from_secs(5)).await;

    // A client that asks first is told before it sends a byte of the body.
    let mut polite = Raw::connect(pipeline.gateway_url()).await;
    polite.send(format!("{head}expect: 100-continue\r\n\r\n")).await;
    assert_eq!(polite.answer().await.status, 413);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_is_answered_at_the_deadline_and_its_connection_closed() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__INGEST__REQUEST_TIMEOUT", "500ms")
        .set("PULSESTREAM__LOG__APPEND_TIMEOUT", "400ms")
        .set("PULSESTREAM__LOG__MESSAGE_TIMEOUT", "300ms")
        .start()
        .await;
    let mut raw = Raw::connect(pipeline.gateway_url()).await;
    raw.send(format!("{}\r\n{{\"deviceId\":", head(&pipeline.key, Uuid::new_v4(), 200))).await;
    let sent = Instant::now();
    let heard = raw.answer().await;
    assert_eq!(heard.status, 408, "{heard:?}");
    assert_problem_body(&heard.body, 408, "request_timeout");
    assert_eq!(heard.header("connection"), "close");
    assert!(sent.elapsed() < Duration::from_secs(3), "{:?}", sent.elapsed());
    raw.closed_within(Duration::from_secs(2)).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_head_never_ends_is_closed() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__SERVER__HEADER_TIMEOUT", "300ms")
        .start()
        .await;
    let mut silent = Raw::connect(pipeline.gateway_url()).await;
    let mut slow = Raw::connect(pipeline.gateway_url()).await;
    slow.send("POST /v1/events HTTP/1.1\r\nhost: test\r\nx-slow:").await;
    slow.closed_within(Duration::from_secs(3)).await;
    silent.closed_within(Duration::from_secs(3)).await;
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_closed_and_harms_nobody() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let mut raw = Raw::connect(pipeline.gateway_url()).await;
    raw.send([0_u8, 159, 146, 150, 13, 10, 13, 10]).await;
    let heard = raw.answer_or_end().await;
    assert!(heard.is_none_or(|heard| heard.status == 400));
    let mut cut = Raw::connect(pipeline.gateway_url()).await;
    cut.send(format!("{}\r\n{{", head(&pipeline.key, Uuid::new_v4(), 100))).await;
    drop(cut);
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    pipeline.stop().await;
}
