//! The embedded log never drops what the store has not taken: it is kept, whatever its age, and when
//! there is no room left, nothing more is accepted.

use pulsestream_e2e::client::{Client, event};
use pulsestream_e2e::harness::{Engines, start_gateway};
use pulsestream_shared::clock;
use pulsestream_shared::event::EventId;
use pulsestream_shared::log::{Offset, STORE_GROUP};
use serde_json::json;
use uuid::Uuid;

use crate::support::{Log, Site, counter, devices};

#[tokio::test(flavor = "multi_thread")]
async fn retention_stops_at_what_the_store_has_not_taken() {
    const YEAR_MS: i64 = 365 * 86_400_000;
    let site = Site::new(Engines::Embedded).await;
    let devices = devices(3);
    let mut expected = site.accept(&devices, 2).await;
    site.store_all(expected.len()).await;
    let stored = expected.len() as u64;
    expected.extend(site.accept(&devices, 2).await);

    let log = Log::open(&site.home).await;
    let mut floor: Vec<Offset> = vec![0; log.bounds().await.len()];
    for place in site.tables.progress(STORE_GROUP).await.expect("progress") {
        floor[usize::try_from(place.partition).expect("a partition")] = place.next;
    }
    let Log::Embedded(embedded) = &log else { unreachable!("an embedded home") };
    let removed = embedded.retain(clock::unix_ms() + YEAR_MS, &floor).await.expect("retained");
    assert_eq!(removed, stored);
    log.close().await;

    let consumer = site.consumer().await;
    site.stored(expected.len()).await;
    assert_eq!(counter(&consumer.registry, "log_lost_records_total", None), 0);
    consumer.stop().await;
    let log = Log::open(&site.home).await;
    site.stored_exactly(&expected, &log).await;
    log.close().await;
    site.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_log_answers_503_and_loses_nothing() {
    let settings = [
        ("PULSESTREAM__EMBEDDED__LOG_MAX_BYTES", "16777216"),
        ("PULSESTREAM__INGEST__MAX_BODY_BYTES", "1048576"),
    ];
    let site = Site::with(Engines::Embedded, &settings).await;
    let gateway = start_gateway(&site.home).await;
    let client = Client::new(&gateway.url, &site.key);
    let mut body = event(Uuid::new_v4(), 1.0);
    body["metadata"] = json!({"padding": "x".repeat(1_000_000)});
    let mut accepted = Vec::new();
    let refused = loop {
        let id = Uuid::new_v4();
        let answer = client.post(id, &body).await.expect("an answer");
        if answer.status != 202 {
            break answer;
        }
        accepted.push(EventId(id));
        assert!(accepted.len() < 17, "more than fits was accepted");
    };
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    assert!(accepted.len() > 10, "full after {}", accepted.len());
    gateway.stop().await;

    site.store_all(accepted.len()).await;
    let log = Log::open(&site.home).await;
    site.stored_exactly(&accepted, &log).await;
    log.close().await;
    site.remove().await;
}
