//! The second copy of an event in the log (interleaving 9): stored once, shown once, also by a
//! broadcaster that started between the two.

use pulsestream_e2e::client::{Dashboard, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::clock;
use pulsestream_shared::codec::{Accepted, encode};
use pulsestream_shared::event::{DeviceId, Event, EventId};
use pulsestream_shared::log::Topic;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::idempotency::stored_until;

on_both!(a_second_copy_in_the_log_is_shown_once_and_stored_once);

fn values(events: &[Value]) -> Vec<f64> {
    events.iter().filter_map(|event| event["value"].as_f64()).collect()
}

async fn a_second_copy_in_the_log_is_shown_once_and_stored_once(engines: Engines) {
    let mut pipeline = Harness::new(engines).start().await;
    let (device, first) = (pipeline.devices[0], Uuid::new_v4());
    let body = event(device, 1.0);
    let before = pipeline.stream_url().to_owned();
    let mut early = Dashboard::connect(&before, &pipeline.key, "").await.expect("connected");
    let answer = pipeline.client().post(first, &body).await.expect("an answer");
    assert_eq!(answer.status, 202);
    let second = pipeline.client().accept(device, 2.0).await;
    assert_eq!(values(&early.take(2).await), [1.0, 2.0]);

    let repeat = async |pipeline: &Pipeline| {
        let engine = pipeline.engine();
        let client = engine.keys.list().await.expect("keys")[0].client;
        let event = Event {
            id: EventId(first),
            device_id: DeviceId(device),
            event_type: "temperature".to_owned(),
            value: 1.0,
            timestamp_ms: body["timestamp"].as_i64().expect("a number"),
            metadata: None,
        };
        let received_at_us = clock::unix_us();
        let accepted = Accepted { event, client, received_at_us, unsure: None, replay: false };
        let record = encode(&accepted, engine.partitions);
        let appended = engine.log.append(Topic::Raw, vec![record]).await;
        assert!(appended.iter().all(Result::is_ok), "{appended:?}");
    };
    let mut late = Dashboard::connect(&before, &pipeline.key, "").await.expect("connected");
    repeat(&pipeline).await;
    pipeline.client().accept(device, 3.0).await;
    assert_eq!(early.next().await["value"], 3);
    assert_eq!(late.next().await["value"], 3);

    // A process that starts now knows of the first copy from the log alone.
    pipeline.stop_services().await;
    pipeline.start_services().await;
    let url = pipeline.stream_url();
    let mut restarted = Dashboard::connect(url, &pipeline.key, "").await.expect("connected");
    repeat(&pipeline).await;
    let last = pipeline.client().accept(device, 4.0).await;
    assert_eq!(restarted.next().await["id"], json!(last));
    let stored = stored_until(&pipeline, last).await;
    assert_eq!((stored[&first], stored[&second]), (1, 1));
    assert!(stored.len() == 4 && stored.values().all(|copies| *copies == 1), "{stored:?}");
    pipeline.stop().await;
}
