//! The log is cut before the eyes of the dashboards: no consumer runs here, so it is the broadcaster that
//! must notice.

use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Home, Running, start_gateway_and_broadcaster};
use pulsestream_e2e::on_both;
use pulsestream_shared::engine::kafka_config;
use pulsestream_shared::log::{self, EventLog, LIVE_GROUP, LogEvent};
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Log, Site, devices};

on_both!(
    a_log_cut_under_a_running_broadcaster_gets_a_new_epoch,
    a_live_place_beyond_the_log_gets_a_new_epoch,
    a_cursor_below_what_the_log_keeps_is_told_so,
);

async fn epoch(home: &Home) -> Uuid {
    let log = Log::attach(home).await;
    let epoch = log.identity().await.epoch;
    log.close().await;
    epoch
}

/// What is posted now is shown to a dashboard that connects now.
async fn shows_what_comes(site: &Site, running: &Running) {
    let mut dashboard = Dashboard::connect(&running.url, &site.key, "").await.expect("connected");
    let client = Client::new(&running.url, &site.key);
    let (id, body) = (Uuid::new_v4(), event(Uuid::new_v4(), 1.0));
    // A topic that was just made again takes a moment to be found by the producer.
    wait_for("the event to be accepted", PATIENCE, async || {
        let answer = client.post(id, &body).await.expect("an answer");
        assert!([202, 409, 503].contains(&answer.status), "{answer:?}");
        answer.status == 202
    })
    .await;
    while dashboard.next().await["id"] != json!(id) {}
}

async fn a_log_cut_under_a_running_broadcaster_gets_a_new_epoch(engines: Engines) {
    let site = Site::new(engines).await;
    let running = start_gateway_and_broadcaster(&site.home).await;
    let mut dashboard = Dashboard::connect(&running.url, &site.key, "").await.expect("connected");
    let query = "mode=live&cursor=earliest";
    let mut framed = Dashboard::connect(&running.url, &site.key, query).await.expect("connected");
    let posted = site.post(&running, &devices(6), 3).await;
    dashboard.take(posted.len()).await;
    let (mut shown, mut cursor) = (0, json!(null));
    while shown < posted.len() {
        let frame = framed.next().await;
        shown += frame["events"].as_array().map_or(0, Vec::len);
        cursor = frame["cursor"].clone();
    }
    let before = epoch(&site.home).await;

    let config = site.home.config();
    match engines {
        Engines::Embedded => {
            log::embedded::damage::empty_raw(&config.embedded.data_dir).await.expect("emptied");
        }
        Engines::Servers => {
            log::kafka::damage::recreate_raw(&kafka_config(&config)).await.expect("recreated");
        }
    }
    assert_eq!(dashboard.close_code().await, 4008, "it must connect again: offsets start over");
    assert_ne!(epoch(&site.home).await, before);
    // A framed one stays, is told, and goes on in the new log.
    let gap = framed.next().await;
    assert_eq!((&gap["type"], &gap["reason"]), (&json!("gap"), &json!("other_epoch")));
    shows_what_comes(&site, &running).await;
    assert_eq!(framed.next().await["events"][0]["value"], 1);
    let answer = resumed(&site, &running, &cursor).await;
    assert_eq!((&answer["recovered"], &answer["reason"]), (&json!(false), &json!("other_epoch")));
    running.stop().await;
    site.remove().await;
}

/// What a poll with that cursor is answered.
async fn resumed(site: &Site, running: &Running, cursor: &Value) -> Value {
    let cursor = cursor.as_str().expect("a cursor");
    let client = Client::new(&running.url, &site.key);
    let path = format!("v1/stream/poll?wait=10&cursor={cursor}");
    let answer = client.send(|http, url| http.get(format!("{url}/{path}"))).await;
    answer.expect("an answer").body
}

async fn a_cursor_below_what_the_log_keeps_is_told_so(engines: Engines) {
    let site = Site::new(engines).await;
    let running = start_gateway_and_broadcaster(&site.home).await;
    let device = devices(1);
    site.post(&running, &device, 1).await;
    let first = resumed(&site, &running, &json!("earliest")).await;
    assert_eq!(first["events"].as_array().map(Vec::len), Some(1), "{first}");
    site.post(&running, &device, 5).await;
    running.stop().await;
    let log = Log::open(&site.home).await;
    for (partition, end) in (0..).zip(log.ends().await).filter(|(_, end)| *end > 0) {
        log.remove_below(partition, end - 2).await;
    }
    log.close().await;

    let running = start_gateway_and_broadcaster(&site.home).await;
    let answer = resumed(&site, &running, &first["cursor"]).await;
    assert_eq!(
        (&answer["recovered"], &answer["reason"]),
        (&json!(false), &json!("beyond_retention"))
    );
    let kept = resumed(&site, &running, &json!("earliest")).await;
    assert_eq!(
        (&kept["recovered"], kept["events"].as_array().map(Vec::len)),
        (&json!(true), Some(2))
    );
    // The place it was given instead is one to go on from.
    site.post(&running, &device, 1).await;
    let after = resumed(&site, &running, &answer["cursor"]).await;
    assert_eq!(
        (&after["recovered"], after["events"].as_array().map(Vec::len)),
        (&json!(true), Some(1))
    );
    running.stop().await;
    site.remove().await;
}

async fn a_live_place_beyond_the_log_gets_a_new_epoch(engines: Engines) {
    let site = Site::new(engines).await;
    let expected = site.accept(&devices(6), 3).await;
    site.store_all(expected.len()).await;
    let log = Log::open(&site.home).await;
    let before = log.identity().await.epoch;
    commit_beyond(log.port()).await;
    log.close().await;

    let running = start_gateway_and_broadcaster(&site.home).await;
    wait_for("a new epoch", PATIENCE, async || epoch(&site.home).await != before).await;
    shows_what_comes(&site, &running).await;
    running.stop().await;
    site.remove().await;
}

/// Leaves the live group at a place that no partition reaches.
async fn commit_beyond(log: &dyn EventLog) {
    let mut member = log.consume(LIVE_GROUP).await.expect("a member");
    let partitions = loop {
        if let LogEvent::Assigned(partitions) = member.next().await.expect("the member lives") {
            break partitions;
        }
    };
    partitions.iter().for_each(|partition| member.commit(*partition, 1_000));
    let beyond = vec![Some(1_000); partitions.len()];
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while member.committed(&partitions).await.expect("places") != beyond {
        assert!(tokio::time::Instant::now() < deadline, "not committed in time");
        tokio::task::yield_now().await;
    }
}
