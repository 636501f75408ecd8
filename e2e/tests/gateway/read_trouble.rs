//! The read API while the database is away, hangs, or is asked too much: 503 in time, and ingestion
//! does not notice.

use std::time::Duration;

use pulsestream_e2e::client::{Client, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, start_gateway};
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::proxy::{TcpProxy, Traffic};
use pulsestream_shared::testing::wait_for;
use tokio::time::Instant;
use uuid::Uuid;

use crate::contract::assert_problem;
use crate::read::get;

/// One request of each route, and the method of the port it comes to.
fn routes() -> [(Method, String); 5] {
    let id = Uuid::from_u128(1);
    [
        (Method::QueryEvents, "/v1/events".to_owned()),
        (Method::QueryEvent, format!("/v1/events/{id}")),
        (Method::QueryDevices, "/v1/devices".to_owned()),
        (Method::QueryDevice, format!("/v1/devices/{id}")),
        (Method::QuerySeries, "/v1/series?eventType=cpu&from=1&to=2&step=1".to_owned()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_the_store_fails_or_does_not_finish_in_time_is_answered_503() {
    let faults = Faults::default();
    let pipeline = Harness::new(Engines::Embedded).faults(&faults).start().await;
    for (method, path) in routes() {
        faults.next(method, 1, Fault::Before);
        assert_problem(&get(&pipeline.client(), &path).await, 503, "unavailable");
        faults.next(method, 1, Fault::After);
        assert_problem(&get(&pipeline.client(), &path).await, 503, "query_timeout");
        assert_ne!(get(&pipeline.client(), &path).await.status, 503, "{path}");
    }
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_beyond_the_bound_are_shed_and_devices_do_not_notice() {
    let faults = Faults::default();
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__READ__CONCURRENT", "2")
        .set("PULSESTREAM__READ__MAX_WAIT", "100ms")
        .faults(&faults)
        .start()
        .await;
    let client = pipeline.client();
    let other = client.with_key(&pipeline.home.make_key("another").await);
    faults.next(Method::QueryDevices, 2, Fault::HangBefore);
    let ask = |client: &Client| {
        let client = client.clone();
        tokio::spawn(async move { get(&client, "/v1/devices").await })
    };
    let first = ask(&client);
    wait_for("it to hang", PATIENCE, async || faults.hanging() == 1).await;
    // One of two turns is one client's, whatever it asks for; the other is left to others.
    assert_problem(&get(&client, "/v1/events").await, 503, "overloaded");
    assert_eq!(get(&other, "/v1/events").await.status, 200);
    let second = ask(&other);
    wait_for("both to hang", PATIENCE, async || faults.hanging() == 2).await;
    for (_, path) in routes() {
        let asked = Instant::now();
        assert_problem(&get(&client, &path).await, 503, "overloaded");
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    }
    client.accept(pipeline.devices[0], 1.0).await;
    faults.release();
    for stuck in [first, second] {
        assert_eq!(stuck.await.expect("no panic").status, 200);
    }
    assert_eq!(get(&client, "/v1/devices").await.status, 200);
    pipeline.stop().await;
}

async fn answers_503_meanwhile(break_it: impl Fn(&TcpProxy)) {
    let mut pipeline = Harness::new(Engines::Servers).start().await;
    let proxy = pipeline.home.database_through_proxy().await;
    pipeline.home.variables.insert("PULSESTREAM__READ__TIMEOUT".to_owned(), "500ms".to_owned());
    let gateway = start_gateway(&pipeline.home).await;
    let client = Client::new(&gateway.url, &pipeline.key);
    assert_eq!(get(&client, "/v1/events").await.status, 200);

    break_it(&proxy);
    // The proxy's tasks hear of it a moment later, and until then let a question through.
    wait_for("the database to be away", PATIENCE, async || {
        get(&client, "/v1/events").await.status == 503
    })
    .await;
    for (_, path) in routes() {
        let asked = Instant::now();
        assert_problem(&get(&client, &path).await, 503, "unavailable");
        assert!(asked.elapsed() < Duration::from_secs(4), "{path}: {:?}", asked.elapsed());
    }
    let posted = client.post(Uuid::new_v4(), &event(pipeline.devices[0], 1.0)).await;
    assert_eq!(posted.expect("an answer").status, 202);

    proxy.restore();
    wait_for("the database to be read again", PATIENCE, async || {
        get(&client, "/v1/events").await.status == 200
    })
    .await;
    gateway.stop().await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_reading_is_answered_503_and_comes_back() {
    answers_503_meanwhile(TcpProxy::kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_database_that_hangs_reading_is_answered_503_and_comes_back() {
    answers_503_meanwhile(|proxy| proxy.set(Traffic::Pause)).await;
}
