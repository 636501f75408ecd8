//! A Redis that lost idempotency keys is not taken for one that never had them: what it accepts again is
//! marked, and the store finds that the id is taken.

use pulsestream_e2e::client::{Client, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline, start_gateway};
use pulsestream_shared::codec::{self, Unsure};
use pulsestream_shared::event::EventId;
use pulsestream_shared::log::Topic;
use pulsestream_shared::testing::wait_for;
use uuid::Uuid;

use crate::own_redis::OwnRedis;
use crate::support::Log;

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_an_emptied_redis_are_not_given_away_unseen() {
    keys_are_lost(async |redis| drop(redis.run("FLUSHALL").await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_redis_restarted_with_nothing_are_not_given_away_unseen() {
    keys_are_lost(OwnRedis::kill_and_restart).await;
}

/// Its data name a process that knew every key; the one that read them does not.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_a_redis_restarted_with_an_old_snapshot_are_not_given_away_unseen() {
    let redis = OwnRedis::start().await;
    let pipeline = on(&redis).await;
    accept_surely(&pipeline.client(), pipeline.devices[0]).await;
    assert_eq!(redis.run("SAVE").await, "OK\n");
    the_first_body_keeps_its_key(pipeline, redis, OwnRedis::kill_and_restart).await;
}

async fn keys_are_lost(lose: impl AsyncFn(&mut OwnRedis)) {
    let redis = OwnRedis::start().await;
    let pipeline = on(&redis).await;
    the_first_body_keeps_its_key(pipeline, redis, lose).await;
}

async fn on(redis: &OwnRedis) -> Pipeline {
    Harness::new(Engines::Servers).set("REDIS_URL", redis.url()).start().await
}

async fn the_first_body_keeps_its_key(
    pipeline: Pipeline,
    mut redis: OwnRedis,
    lose: impl AsyncFn(&mut OwnRedis),
) {
    let second = start_gateway(&pipeline.home).await;
    let (one, device) = (pipeline.client(), pipeline.devices[0]);
    let other = one.at(&second.url);
    // Every connection of both gateways knows the process that is about to go.
    for _ in 0..4 {
        accept_surely(&one, device).await;
        accept_surely(&other, device).await;
    }
    let taken = [Uuid::new_v4(), Uuid::new_v4()];
    for id in taken {
        assert_eq!(one.post(id, &event(device, 1.0)).await.expect("an answer").status, 202);
    }
    let tables = pipeline.home.tables().await;
    wait_for("the first bodies to be stored", PATIENCE, async || {
        let stored = tables.stored_events().await.expect("events");
        taken.iter().all(|id| stored.iter().any(|event| event.id == EventId(*id)))
    })
    .await;
    lose(&mut redis).await;
    for client in [&one, &other] {
        accept_surely(client, device).await;
    }
    // Each gateway is asked for one of the keys, with another body of another device.
    for (client, id) in [&one, &other].into_iter().zip(taken) {
        let answer = client.post(id, &event(Uuid::new_v4(), 2.0)).await.expect("an answer");
        assert_eq!((answer.status, answer.header("idempotency-status")), (202, ""));
    }
    wait_for("the second bodies to be put aside", PATIENCE, async || {
        tables.buried_records().await.expect("dead letters").len() == taken.len()
    })
    .await;
    for event in tables.stored_events().await.expect("events") {
        assert!(event.value != 2.0, "{event:?}");
    }
    one_time_is_told(&pipeline, taken).await;
    second.stop().await;
    pipeline.stop().await;
}

/// First bodies have no mark; all second ones name the same loss.
async fn one_time_is_told(pipeline: &Pipeline, taken: [Uuid; 2]) {
    let log = Log::attach(&pipeline.home).await;
    let mut times = Vec::new();
    for record in log.records(Topic::Raw).await {
        let accepted = codec::decode(&record).expect("an event");
        if taken.map(EventId).contains(&accepted.event.id) {
            match (accepted.event.value == 2.0, accepted.unsure) {
                (false, None) => {}
                (true, Some(Unsure::Forgotten { at_ms })) => times.push(at_ms),
                wrong => panic!("{wrong:?}"),
            }
        }
    }
    log.close().await;
    assert_eq!(times.len(), 2);
    assert_eq!(times[0], times[1]);
}

/// Posts events of their own until one was locked in Redis.
async fn accept_surely(client: &Client, device: Uuid) {
    wait_for("Redis to be used", PATIENCE, async || {
        let answer = client.post(Uuid::new_v4(), &event(device, 0.0)).await.expect("an answer");
        answer.status == 202 && answer.header("idempotency-status").is_empty()
    })
    .await;
}
