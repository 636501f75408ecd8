//! Redis refuses, resets, half-closes, hangs, delays or trickles: events are accepted all the same, marked,
//! shown at once and settled by the store.

use std::time::Duration;

use futures_util::future::join_all;
use pulsestream_e2e::client::{Answer, Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline, start_gateway};
use pulsestream_shared::codec;
use pulsestream_shared::event::EventId;
use pulsestream_shared::log::{ReadLimit, Topic};
use pulsestream_shared::testing::proxy::{TcpProxy, Traffic};
use pulsestream_shared::testing::{services, wait_for};
use tokio::time::Instant;
use uuid::Uuid;

use crate::contract::assert_problem;
use crate::idempotency::stored_until;

const QUICK: Duration = Duration::from_secs(1);

/// A pipeline whose Redis stands behind a proxy.
async fn behind_a_proxy() -> (Pipeline, TcpProxy) {
    let url = services::redis_url();
    let proxy = TcpProxy::start(url.trim_start_matches("redis://")).await.expect("a proxy");
    let url = format!("redis://{}", proxy.addr());
    (Harness::new(Engines::Servers).set("REDIS_URL", url).start().await, proxy)
}

/// Posts, and fails when the answer takes a second or is a 5xx other than 503.
async fn post_quickly(client: &Client, id: Uuid, body: &serde_json::Value) -> Answer {
    let sent = Instant::now();
    let answer = client.post(id, body).await.expect("an answer");
    assert!(sent.elapsed() < QUICK, "{:?}: {answer:?}", sent.elapsed());
    assert!(answer.status < 500 || answer.status == 503, "{answer:?}");
    answer
}

/// The header `unsure` of an event's record on the log.
async fn unsure_header(pipeline: &Pipeline, id: Uuid) -> Option<String> {
    let log = &pipeline.engine().log;
    let limit = ReadLimit { records: 10_000, bytes: 1 << 24 };
    for (partition, bounds) in log.bounds(Topic::Raw).await.expect("bounds").iter().enumerate() {
        let partition = i32::try_from(partition).expect("few partitions");
        for record in log.read(Topic::Raw, partition, bounds.first, limit).await.expect("records") {
            if codec::decode(&record).is_ok_and(|accepted| accepted.event.id == EventId(id)) {
                let header = record.headers.get("unsure")?;
                return Some(String::from_utf8_lossy(header).into_owned());
            }
        }
    }
    panic!("{id} is not on the log");
}

async fn accepts_without_redis(break_it: impl Fn(&TcpProxy)) {
    let (pipeline, proxy) = behind_a_proxy().await;
    let (client, device) = (pipeline.client(), pipeline.devices[0]);
    let url = pipeline.stream_url();
    let mut dashboard = Dashboard::connect(url, &pipeline.key, "").await.expect("connected");
    let sure = client.accept(device, 0.0).await;
    let cold = client.with_key(&pipeline.home.make_key("cold").await);
    break_it(&proxy);

    let (id, body) = (Uuid::new_v4(), event(device, 1.0));
    for client in [&client, &cold] {
        let answer = post_quickly(client, id, &body).await;
        assert_eq!((answer.status, answer.header("idempotency-status")), (202, "local"));
    }
    for value in 2..20 {
        let answer = post_quickly(&client, Uuid::new_v4(), &event(device, value.into())).await;
        assert_eq!((answer.status, answer.header("idempotency-status")), (202, "local"));
    }
    let again = post_quickly(&client, id, &body).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"));
    let other = post_quickly(&client, id, &event(device, 2.0)).await;
    assert_problem(&other, 422, "idempotency_mismatch");
    // Live delivery finds another way than the bus.
    let shown = dashboard.take(20).await;
    assert!(
        shown.iter().map(|event| &event["value"]).eq(&(0..20).collect::<Vec<_>>()),
        "{shown:?}"
    );

    proxy.restore();
    wait_for("Redis to be used again", PATIENCE, async || {
        let answer = post_quickly(&client, Uuid::new_v4(), &event(device, 3.0)).await;
        answer.status == 202 && answer.header("idempotency-status").is_empty()
    })
    .await;
    let last = client.accept(device, 4.0).await;
    assert_eq!(unsure_header(&pipeline, sure).await, None);
    assert_eq!(unsure_header(&pipeline, id).await.as_deref(), Some("1"));
    assert_eq!(unsure_header(&pipeline, last).await, None);
    // Two tenants used the id; each is stored once.
    assert_eq!(stored_until(&pipeline, last).await[&id], 2);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_redis_refuses() {
    accepts_without_redis(TcpProxy::kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_redis_hangs() {
    accepts_without_redis(|proxy| proxy.set(Traffic::Pause)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_every_answer_of_redis_is_late() {
    accepts_without_redis(|proxy| proxy.set(Traffic::Delay(Duration::from_millis(500)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_redis_trickles() {
    accepts_without_redis(|proxy| proxy.set(Traffic::Trickle(20))).await;
}

/// Strikes the connections to Redis again and again: each answer is a quick 202, by a shared lock or by a
/// local one, and each event is stored once.
async fn accepts_between(strike: impl Fn(&TcpProxy)) {
    let (pipeline, proxy) = behind_a_proxy().await;
    let (client, device) = (pipeline.client(), pipeline.devices[0]);
    let mut sent = Vec::new();
    let mut local = 0;
    for value in 0..30 {
        strike(&proxy);
        let (id, body) = (Uuid::new_v4(), event(device, value.into()));
        let answer = post_quickly(&client, id, &body).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        local += u32::from(answer.header("idempotency-status") == "local");
        let again = post_quickly(&client, id, &body).await;
        // Its outcome may have been lost with the connection, not its fingerprint.
        assert!(matches!(again.status, 202 | 409), "{again:?}");
        sent.push(id);
    }
    eprintln!("{local} of 30 under a local lock");
    wait_for("Redis to be used again", PATIENCE, async || {
        let answer = post_quickly(&client, Uuid::new_v4(), &event(device, 0.0)).await;
        answer.status == 202 && answer.header("idempotency-status").is_empty()
    })
    .await;
    let last = client.accept(device, 0.0).await;
    let stored = stored_until(&pipeline, last).await;
    assert!(sent.iter().all(|id| stored.get(id) == Some(&1)), "{stored:?}");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_connections_to_redis_are_reset() {
    accepts_between(TcpProxy::cut).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_redis_closes_its_half_of_each_connection() {
    accepts_between(TcpProxy::half_close).await;
}

/// At the edge of its timeout Redis is waited for by groups of requests, not by one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_only_just_in_time_slows_no_request_by_more_than_that() {
    let (pipeline, proxy) = behind_a_proxy().await;
    let (client, device) = (pipeline.client(), pipeline.devices[0]);
    client.accept(device, 0.0).await;
    for traffic in [Traffic::Delay(Duration::from_millis(40)), Traffic::Trickle(20_000)] {
        proxy.set(traffic);
        let begun = Instant::now();
        let answers = join_all((0..200).map(|value| {
            let (client, body) = (client.clone(), event(Uuid::new_v4(), value.into()));
            async move { client.post(Uuid::new_v4(), &body).await.expect("an answer") }
        }));
        let answers = answers.await;
        eprintln!("{traffic:?}: 200 posts took {:?}", begun.elapsed());
        assert!(answers.iter().all(|answer| answer.status == 202), "{answers:?}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        proxy.restore();
    }
    pipeline.stop().await;
}

/// Interleaving 8.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_bodies_under_one_key_around_an_outage_one_is_stored_and_one_is_a_dead_letter() {
    let (pipeline, proxy) = behind_a_proxy().await;
    let second = start_gateway(&pipeline.home).await;
    let (first, device) = (pipeline.client(), pipeline.devices[0]);
    let other = first.at(&second.url);
    // Known to Redis, then used again while it is away.
    let before = Uuid::new_v4();
    assert_eq!(first.post(before, &event(device, 1.0)).await.expect("an answer").status, 202);
    other.accept(device, 0.0).await;
    // Stored before its rival comes: within one batch the store would see both whatever their marks.
    stored_until(&pipeline, before).await;
    proxy.kill();
    let answer = post_quickly(&first, before, &event(device, 2.0)).await;
    assert_eq!((answer.status, answer.header("idempotency-status")), (202, "local"));
    // Used at two gateways while it is away.
    let during = Uuid::new_v4();
    assert_eq!(post_quickly(&first, during, &event(device, 3.0)).await.status, 202);
    stored_until(&pipeline, during).await;
    assert_eq!(post_quickly(&other, during, &event(device, 4.0)).await.status, 202);
    proxy.restore();
    wait_for("Redis to be used again", PATIENCE, async || {
        let answer = post_quickly(&other, Uuid::new_v4(), &event(device, 0.0)).await;
        answer.status == 202 && answer.header("idempotency-status").is_empty()
    })
    .await;
    let last = other.accept(device, 7.0).await;
    let stored = stored_until(&pipeline, last).await;
    assert_eq!((stored[&before], stored[&during]), (1, 1), "{stored:?}");
    let tables = pipeline.home.tables().await;
    let letters = tables.buried_records().await.expect("dead letters");
    assert!(letters.iter().all(|letter| letter.reason == "id_conflict"), "{letters:?}");
    assert_eq!(letters.len(), 2, "{letters:?}");
    second.stop().await;
    pipeline.stop().await;
}

/// Interleaving 8: only one gateway lost Redis, so the other's record has no mark. The device of the second
/// body is another one, so its partition, and whoever stores that, may be too.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_accepted_by_one_gateway_alone_keeps_its_key_from_the_others() {
    let (mut pipeline, proxy) = behind_a_proxy().await;
    pipeline.home.variables.insert("REDIS_URL".to_owned(), services::redis_url());
    let second = start_gateway(&pipeline.home).await;
    let (cut_off, device) = (pipeline.client(), pipeline.devices[0]);
    let whole = cut_off.at(&second.url);
    proxy.kill();
    for _ in 0..4 {
        let id = Uuid::new_v4();
        let answer = post_quickly(&cut_off, id, &event(device, 1.0)).await;
        assert_eq!((answer.status, answer.header("idempotency-status")), (202, "local"));
        stored_until(&pipeline, id).await;
        let rival = event(Uuid::new_v4(), 2.0);
        let answer = post_quickly(&whole, id, &rival).await;
        assert_eq!((answer.status, answer.header("idempotency-status")), (202, ""));
    }
    let tables = pipeline.home.tables().await;
    wait_for("the second bodies to be put aside", PATIENCE, async || {
        tables.buried_records().await.expect("dead letters").len() == 4
    })
    .await;
    let letters = tables.buried_records().await.expect("dead letters");
    assert!(letters.iter().all(|letter| letter.reason == "id_conflict"), "{letters:?}");
    let stored = tables.stored_events().await.expect("events");
    assert!(stored.iter().all(|event| event.value == 1.0), "the first wins: {stored:?}");
    assert_eq!(stored.len(), 4);
    second.stop().await;
    pipeline.stop().await;
}
