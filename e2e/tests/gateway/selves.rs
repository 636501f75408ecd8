//! What a service says about itself: `/livez`, `/readyz`, `/health`, `/metrics`, and while it starts.

use std::collections::BTreeMap;

use pulsestream_e2e::client::{Client, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness};
use pulsestream_e2e::on_both;
use pulsestream_e2e::process::{Process, free_port};
use pulsestream_shared::testing::wait_for;
use uuid::Uuid;

use crate::contract::assert_problem;

on_both!(every_service_tells_how_it_is);

async fn every_service_tells_how_it_is(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    for service in &pipeline.services {
        let client = Client::new(&service.url, "");
        assert_eq!(client.get_text("/livez").await.expect("an answer"), "ok\n");
        let ready = client.get("/readyz").await.expect("an answer");
        assert_eq!((ready.status, &ready.body["status"]), (200, &"UP".into()), "{ready:?}");
        assert_eq!(ready.body["checks"]["log"]["status"], "up", "{ready:?}");
        let health = client.get("/health").await.expect("an answer");
        assert_eq!((health.status, &health.body["status"]), (200, &"UP".into()));
        for member in ["service", "version", "timestamp"] {
            assert!(health.body[member].is_string(), "{health:?}");
        }
        let metrics = client.get_text("/metrics").await.expect("metrics");
        assert!(metrics.contains("pulsestream_build_info{version="), "{}", service.url);
    }
    let gateway = Client::new(pipeline.gateway_url(), "");
    for path in ["/v1/invented", "/v1/invented-too"] {
        gateway.get(path).await.expect("an answer");
    }
    let metrics = gateway.get_text("/metrics").await.expect("metrics");
    for line in [
        "pulsestream_ingest_events_total{result=\"accepted\"} 1",
        "pulsestream_ingest_events_total{result=\"shed\"} 0",
        "pulsestream_http_requests_in_flight 0",
        "pulsestream_http_requests_total{method=\"POST\",route=\"/v1/events\",status=\"202\"} 1",
        "pulsestream_http_requests_total{method=\"GET\",route=\"unmatched\",status=\"404\"} 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains("invented"), "what clients invent is no label");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_still_starts_lives_and_says_so() {
    let nowhere = format!("127.0.0.1:{}", free_port());
    let folder = tempfile::tempdir().expect("a folder");
    let variables = BTreeMap::from([
        ("KAFKA_BROKERS".to_owned(), nowhere.clone()),
        ("DATABASE_URL".to_owned(), format!("postgres://nobody@{nowhere}/none")),
        ("REDIS_URL".to_owned(), format!("redis://{nowhere}")),
        ("DATA_DIR".to_owned(), folder.path().display().to_string()),
    ]);
    let mut process = Process::start("gateway", &variables).await;
    let client = Client::new(&process.url, "ps_test_any");
    wait_for("the process to listen", PATIENCE, async || client.get("/livez").await.is_ok()).await;
    let ready = client.get("/readyz").await.expect("an answer");
    assert_eq!((ready.status, &ready.body["status"]), (503, &"STARTING".into()), "{ready:?}");
    let early = client.post(Uuid::new_v4(), &event(Uuid::new_v4(), 1.0)).await.expect("an answer");
    assert_problem(&early, 503, "starting");
    assert_eq!(client.get("/health").await.expect("an answer").status, 200);
    assert_eq!(process.terminate().await, Some(0));
}
