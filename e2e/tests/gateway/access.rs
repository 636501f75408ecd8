//! Who may post and who may watch: API keys and their scopes.

use pulsestream_e2e::client::{Answer, Client, Dashboard, event, refusal};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::clock;
use pulsestream_shared::engine;
use pulsestream_shared::store::Scope;
use uuid::Uuid;

use crate::contract::assert_problem;

on_both!(
    a_key_that_is_missing_unknown_revoked_or_expired_is_told_so,
    a_key_does_what_its_scopes_name_and_nothing_else,
);

async fn post(pipeline: &Pipeline, key: &str) -> Answer {
    let client = Client::new(pipeline.gateway_url(), key);
    client.post(Uuid::new_v4(), &event(pipeline.devices[0], 1.0)).await.expect("an answer")
}

async fn watch(pipeline: &Pipeline, key: &str) -> u16 {
    refusal(Dashboard::connect(pipeline.stream_url(), key, "").await)
}

async fn a_key_that_is_missing_unknown_revoked_or_expired_is_told_so(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let home = &pipeline.home;
    let write = [Scope::EventsWrite, Scope::EventsRead];
    let expired = home.make_key_with("late", &write, Some(clock::unix_ms() - 1)).await;
    let revoked = home.make_key("gone").await;
    let stores = engine::open_store(&home.config()).await.expect("store");
    let prefix: String = revoked.chars().take(20).collect();
    stores.keys.revoke(&prefix, clock::unix_ms()).await.expect("revoked");

    assert_problem(&post(&pipeline, "").await, 401, "missing_api_key");
    assert_eq!(watch(&pipeline, "").await, 401);
    for key in ["ps_test_nobody", &expired, &revoked, &"x".repeat(4_000)] {
        assert_problem(&post(&pipeline, key).await, 401, "invalid_api_key");
        assert_eq!(watch(&pipeline, key).await, 401);
    }
    assert_eq!(post(&pipeline, &pipeline.key).await.status, 202);
    pipeline.stop().await;
}

async fn a_key_does_what_its_scopes_name_and_nothing_else(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let home = &pipeline.home;
    let reader = home.make_key_with("tenant", &[Scope::EventsRead], None).await;
    let writer = home.make_key_with("tenant", &[Scope::EventsWrite], None).await;
    let admin = home.make_key_with("tenant", &[Scope::Admin], None).await;

    let refused = post(&pipeline, &reader).await;
    assert_problem(&refused, 403, "forbidden");
    assert!(refused.body["detail"].to_string().contains("events:write"), "{refused:?}");
    assert_eq!(watch(&pipeline, &writer).await, 403);

    let url = pipeline.stream_url();
    let mut dashboard = Dashboard::connect(url, &reader, "").await.expect("connected");
    assert_eq!(post(&pipeline, &writer).await.status, 202);
    assert_eq!(dashboard.next().await["value"], 1);
    assert_eq!(post(&pipeline, &admin).await.status, 202);
    assert_eq!(dashboard.next().await["value"], 1);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_may_come_as_bearer_token() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let body = event(pipeline.devices[0], 1.0).to_string();
    for (scheme, status) in [("Bearer", 202), ("bearer", 202), ("Basic", 401)] {
        let nobody = reqwest::Client::new();
        let answer = nobody
            .post(format!("{}/v1/events", pipeline.gateway_url()))
            .header("authorization", format!("{scheme} {}", pipeline.key))
            .header("idempotency-key", Uuid::new_v4().to_string())
            .header("content-type", "application/json")
            .body(body.clone());
        assert_eq!(answer.send().await.expect("an answer").status(), status, "{scheme}");
    }
    pipeline.stop().await;
}
