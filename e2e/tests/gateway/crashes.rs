//! A gateway that dies at the worst moments: the key keeps its first body, the event is stored once.

use std::collections::BTreeMap;

use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Home, start_gateway};
use pulsestream_e2e::on_both;
use pulsestream_e2e::process::Process;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::wait_for;
use serde_json::json;
use uuid::Uuid;

use crate::contract::assert_problem;
use crate::idempotency::stored_until;
use crate::raw::{Raw, head};

on_both!(
    an_append_nobody_confirmed_keeps_its_body_and_is_stored_once,
    an_event_whose_client_went_away_is_accepted_all_the_same,
);

/// Interleaving 1.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_forgets_no_key_of_the_embedded_pipeline() {
    let home = Home::new(Engines::Embedded, BTreeMap::new()).await;
    let key = home.make_key("tenant").await;
    let mut process = Process::start("up", &home.variables).await;
    process.ready().await;
    let (client, id, device) = (Client::new(&process.url, &key), Uuid::new_v4(), Uuid::new_v4());
    let (first, second) = (event(device, 1.0), event(device, 2.0));
    let accepted = client.post(id, &first).await.expect("an answer");
    assert_eq!(accepted.status, 202, "{accepted:?}");

    process.kill().await;
    process.restart().await;
    process.ready().await;

    let other = client.post(id, &second).await.expect("an answer");
    assert_problem(&other, 422, "idempotency_mismatch");
    let again = client.post(id, &first).await.expect("an answer");
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"));
    assert_eq!(again.body, accepted.body);
    assert_eq!(process.terminate().await, Some(0));
}

/// Interleaving 2.
#[tokio::test(flavor = "multi_thread")]
async fn a_lapsed_lease_forgets_no_body_and_its_event_is_stored_once() {
    let faults = Faults::default();
    let mut pipeline = Harness::new(Engines::Servers)
        .faults(&faults)
        .set("PULSESTREAM__INGEST__LEASE", "4s")
        .set("PULSESTREAM__INGEST__REQUEST_TIMEOUT", "3s")
        .set("PULSESTREAM__LOG__APPEND_TIMEOUT", "2s")
        .set("PULSESTREAM__LOG__MESSAGE_TIMEOUT", "1s")
        .start()
        .await;
    let url = pipeline.stream_url();
    let mut dashboard = Dashboard::connect(url, &pipeline.key, "").await.expect("connected");
    pipeline.home.faults = None;
    let second_gateway = start_gateway(&pipeline.home).await;
    let (id, device) = (Uuid::new_v4(), pipeline.devices[0]);
    let (first, second) = (event(device, 1.0), event(device, 2.0));

    // The first gateway appends and dies before it writes the outcome.
    faults.next(Method::Settle, usize::MAX, Fault::Before);
    let accepted = pipeline.client().post(id, &first).await.expect("an answer");
    assert_eq!(accepted.status, 202, "{accepted:?}");
    pipeline.services.remove(0).stop().await;

    let client = Client::new(&second_gateway.url, &pipeline.key);
    let refused = async || {
        let answer = client.post(id, &second).await.expect("an answer");
        assert_problem(&answer, 422, "idempotency_mismatch");
    };
    refused().await;
    let waiting = client.post(id, &first).await.expect("an answer");
    assert_problem(&waiting, 409, "in_progress");
    wait_for("the lease to lapse", PATIENCE, async || {
        refused().await;
        let answer = client.post(id, &first).await.expect("an answer");
        assert!(matches!(answer.status, 202 | 409), "{answer:?}");
        answer.status == 202
    })
    .await;
    refused().await;
    let again = client.post(id, &first).await.expect("an answer");
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"));

    // The log holds the event twice now: it is shown once and stored once.
    let last = client.accept(device, 3.0).await;
    let shown = dashboard.take(2).await;
    assert_eq!((&shown[0]["id"], &shown[1]["id"]), (&json!(id), &json!(last)));
    assert_eq!(stored_until(&pipeline, last).await, BTreeMap::from([(id, 1), (last, 1)]));
    second_gateway.stop().await;
    pipeline.stop().await;
}

/// The attempt has given up, so its lease, ten minutes here, is nothing to wait for.
async fn an_append_nobody_confirmed_keeps_its_body_and_is_stored_once(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines)
        .faults(&faults)
        .set("PULSESTREAM__INGEST__LEASE", "10m")
        .set("PULSESTREAM__CACHE__TIMEOUT", "10s")
        .start()
        .await;
    let (client, id, device) = (pipeline.client(), Uuid::new_v4(), pipeline.devices[0]);
    let (first, second) = (event(device, 1.0), event(device, 2.0));
    faults.next(Method::Append, 1, Fault::After);
    let unknown = client.post(id, &first).await.expect("an answer");
    assert_problem(&unknown, 503, "outcome_unknown");
    wait_for("the retry to be accepted", PATIENCE, async || {
        let other = client.post(id, &second).await.expect("an answer");
        assert!(matches!(other.status, 422 | 503), "{other:?}");
        let answer = client.post(id, &first).await.expect("an answer");
        assert!(matches!(answer.status, 202 | 409 | 503), "{answer:?}");
        answer.status == 202
    })
    .await;
    let last = Uuid::new_v4();
    wait_for("the log to be used again", PATIENCE, async || {
        let answer = client.post(last, &event(device, 3.0)).await.expect("an answer");
        answer.status == 202
    })
    .await;
    assert_eq!(stored_until(&pipeline, last).await, BTreeMap::from([(id, 1), (last, 1)]));
    pipeline.stop().await;
}

/// Interleaving 9, first half.
async fn an_event_whose_client_went_away_is_accepted_all_the_same(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines).faults(&faults).start().await;
    let (client, id, device) = (pipeline.client(), Uuid::new_v4(), pipeline.devices[0]);
    let body = event(device, 1.0);
    faults.next(Method::Lock, 1, Fault::HangBefore);
    let text = body.to_string();
    let mut raw = Raw::connect(pipeline.gateway_url()).await;
    raw.send(format!("{}\r\n{text}", head(&pipeline.key, id, text.len()))).await;
    wait_for("the attempt to wait for its lock", PATIENCE, async || faults.hanging() == 1).await;
    drop(raw);
    wait_for("the gateway to see its client gone", PATIENCE, async || {
        let metrics = client.get_text("/metrics").await.expect("metrics");
        metrics.contains("pulsestream_http_requests_in_flight 0")
    })
    .await;
    faults.release();

    wait_for("the event to be stored", PATIENCE, async || {
        stored_until(&pipeline, id).await.contains_key(&id)
    })
    .await;
    let again = client.post(id, &body).await.expect("an answer");
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"));
    pipeline.stop().await;
}
