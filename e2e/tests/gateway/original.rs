//! What clients of the original system do and read, line by line of its contract: what they send is
//! accepted, what they look at in an answer is there.
//!
//! What is different on purpose (statuses of faulty batches, keys of their own for each tenant, problems
//! instead of `{"status":"error"}`) is tested where it is promised.

use futures_util::future::join;
use pulsestream_e2e::client::{Answer, Client, Dashboard, event, refusal};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::log::{ReadLimit, Topic};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::contract::assert_problem;

on_both!(
    a_new_event_is_accepted_right_after_a_conflict,
    a_record_of_the_log_is_the_event_under_its_device,
);

async fn post(client: &Client, body: &Value) -> Answer {
    client.post(Uuid::new_v4(), body).await.expect("an answer")
}

/// The simulator sends one event twice at once, and goes on at once whatever it was told.
async fn a_new_event_is_accepted_right_after_a_conflict(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let (client, device) = (pipeline.client(), pipeline.devices[0]);
    for value in 0..20 {
        let (id, body) = (Uuid::new_v4(), event(device, value.into()));
        let (one, other) = join(client.post(id, &body), client.post(id, &body)).await;
        let statuses = [one, other].map(|answer| answer.expect("an answer").status);
        assert!(statuses.contains(&202), "{statuses:?}");
        assert!(statuses.iter().all(|status| matches!(status, 202 | 409)), "{statuses:?}");
        client.accept(device, f64::from(value) + 0.5).await;
        let retried = client.post(id, &body).await.expect("an answer");
        assert_eq!((retried.status, &retried.body["data"]["id"]), (202, &json!(id)));
    }
    pipeline.stop().await;
}

/// Consumers of the topic of their own (Spark) read the key and the JSON.
async fn a_record_of_the_log_is_the_event_under_its_device(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let id = Uuid::new_v4();
    let mut body = event(pipeline.devices[0], 21.5);
    body["metadata"] = json!({"site": "a", "floor": 3, "lit": true});
    body["more"] = json!([1]);
    assert_eq!(pipeline.client().post(id, &body).await.expect("an answer").status, 202);
    body.as_object_mut().expect("an object").remove("more");
    body["id"] = json!(id);
    let records = records(&pipeline).await;
    let [(key, value)] = &records[..] else { panic!("{records:?}") };
    assert_eq!((key, value), (&pipeline.devices[0].to_string(), &body));
    pipeline.stop().await;
}

async fn records(pipeline: &Pipeline) -> Vec<(String, Value)> {
    let log = &pipeline.engine().log;
    let limit = ReadLimit { records: 100, bytes: 1 << 20 };
    let mut found = Vec::new();
    for (partition, bounds) in (0..).zip(log.bounds(Topic::Raw).await.expect("bounds")) {
        for record in log.read(Topic::Raw, partition, bounds.first, limit).await.expect("records") {
            let key = record.key.expect("a key").to_vec();
            let value = serde_json::from_slice(&record.value).expect("JSON");
            found.push((String::from_utf8(key).expect("text"), value));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_original_took_for_an_event_is_one() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let client = pipeline.client();
    let with = |field: &str, value: Value| {
        let mut body = event(pipeline.devices[0], 1.0);
        body[field] = value;
        body
    };
    for (field, value) in [
        // A UUID of any version, the two special ones too, in either case.
        ("deviceId", json!("a8098c1a-f86e-11da-bd1a-00112444be1e")),
        ("deviceId", json!("018F9A3C-5B7E-7C4D-8E2F-1A2B3C4D5E6F")),
        ("deviceId", json!(Uuid::nil())),
        ("deviceId", json!(Uuid::max())),
        ("eventType", json!("ab")),
        ("eventType", json!("é".repeat(50))),
        ("value", json!(-0.5)),
        ("value", json!(0)),
        ("value", json!(1e300)),
        ("metadata", json!({})),
        ("metadata", json!({"text": "", "number": -1.5e-3, "yes": false, "": "empty name"})),
        ("unknown", json!({"deep": [null]})),
    ] {
        let answer = post(&client, &with(field, value.clone())).await;
        assert_eq!(answer.status, 202, "{field}: {value}: {answer:?}");
    }
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_is_told_under_its_field_in_the_words_of_the_original() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let client = pipeline.client();
    let drift = "Timestamp must be within 5 minutes of server time (clock drift check)";
    for (field, value, message) in [
        ("deviceId", json!("sensor-1"), "deviceId must be a valid UUID v4"),
        ("deviceId", json!(7), "Invalid input: expected string, received number"),
        ("eventType", json!("x"), "Too small: expected string to have >=2 characters"),
        ("eventType", json!("x".repeat(51)), "Too big: expected string to have <=50 characters"),
        ("value", json!("21"), "Invalid input: expected number, received string"),
        ("timestamp", json!(1.5), "Invalid input: expected int, received number"),
        ("timestamp", json!(-1), "Too small: expected number to be >0"),
        ("timestamp", json!(1), drift),
        ("timestamp", json!(9_007_199_254_740_991_i64), drift),
    ] {
        let mut body = event(pipeline.devices[0], 1.0);
        body[field] = value.clone();
        let answer = post(&client, &body).await;
        assert_problem(&answer, 400, "validation_failed");
        assert_eq!(answer.body["title"], "Validation failed");
        let expected = json!([{"field": field, "message": message}]);
        assert_eq!(answer.body["errors"], expected, "{field}: {value}");
    }
    let list = post(&client, &json!([])).await;
    assert_eq!(list.body["errors"][0]["field"], "", "{list:?}");
    for (value, kind) in [(json!(null), "null"), (json!([]), "array"), (json!({}), "object")] {
        let mut body = event(pipeline.devices[0], 1.0);
        body["metadata"] = json!({"a": value});
        assert_eq!(post(&client, &body).await.body["errors"][0]["field"], "metadata.a", "{kind}");
    }
    pipeline.stop().await;
}

/// A probe knows no key: it is told 401 whatever else is wrong, and health without one.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_key_learns_that_and_nothing_else() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let nobody = Client::new(pipeline.gateway_url(), "");
    for body in ["", "{", "{}"] {
        let post = |http: &reqwest::Client, url: &str| http.post(format!("{url}/v1/events"));
        let sent = nobody.send(|http, url| post(http, url).body(body)).await;
        assert_problem(&sent.expect("an answer"), 401, "missing_api_key");
        let wrong = nobody.with_key("ps_live_test_key_abc123xyz");
        let sent = wrong.send(|http, url| post(http, url).body(body)).await;
        assert_problem(&sent.expect("an answer"), 401, "invalid_api_key");
    }
    let health = nobody.get("/health").await.expect("an answer");
    assert_eq!((health.status, &health.body["status"]), (200, &json!("UP")));
    assert_eq!(nobody.get("/metrics").await.expect("an answer").status, 200);
    pipeline.stop().await;
}

/// It has no messages of its own: what a client sends on the socket is read and changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_socket_needs_no_message_and_is_on_its_path_alone() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let url = pipeline.stream_url();
    let mut dashboard = Dashboard::connect(url, &pipeline.key, "").await.expect("connected");
    for text in ["{\"type\":\"subscribe\"}", "hello", ""] {
        dashboard.say(text).await;
    }
    let id = pipeline.client().accept(pipeline.devices[0], 1.0).await;
    assert_eq!(dashboard.next().await["id"], json!(id));
    let elsewhere = Dashboard::connect(&format!("{url}/v1/elsewhere"), &pipeline.key, "").await;
    assert_eq!(refusal(elsewhere), 404);
    pipeline.stop().await;
}
