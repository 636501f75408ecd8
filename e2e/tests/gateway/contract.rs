//! What `POST /v1/events` answers to whom: the contract of the original system, and its errors.

use pulsestream_e2e::client::{Answer, Client, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use serde_json::{Value, json};
use uuid::Uuid;

on_both!(an_accepted_event_is_answered_as_by_the_original_and_again_on_a_retry);

/// Every problem, whatever it is, has this shape.
#[track_caller]
pub(crate) fn assert_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{answer:?}");
    assert_problem_body(&answer.body, status, code);
    assert_eq!(answer.header("x-request-id"), answer.body["requestId"], "{answer:?}");
    let retry_after = answer.header("retry-after").parse::<u32>();
    assert_eq!(retry_after.is_ok(), matches!(status, 409 | 429 | 503), "{answer:?}");
}

/// The members of RFC 9457 and ours.
#[track_caller]
pub(crate) fn assert_problem_body(body: &Value, status: u16, code: &str) {
    assert_eq!(body["status"], status, "{body}");
    assert_eq!(body["code"], code, "{body}");
    assert_eq!(body["type"], format!("urn:pulsestream:problem:{code}"), "{body}");
    for member in ["title", "detail", "requestId"] {
        assert!(body[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {body}");
    }
}

async fn embedded() -> Pipeline {
    Harness::new(Engines::Embedded).start().await
}

/// Posts a body as it is, with that `Idempotency-Key`.
async fn post_text(client: &Client, key: &str, body: impl Into<reqwest::Body>) -> Answer {
    let key = key.to_owned();
    let sent = client.send(|http, url| {
        http.post(format!("{url}/v1/events"))
            .header("idempotency-key", key)
            .header("content-type", "application/json")
            .body(body)
    });
    sent.await.expect("an answer")
}

async fn an_accepted_event_is_answered_as_by_the_original_and_again_on_a_retry(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let (client, id) = (pipeline.client(), Uuid::new_v4());
    let body = event(pipeline.devices[0], 21.5);
    let expected = json!({
        "status": "success",
        "message": "Event accepted for processing",
        "data": {"id": id, "deviceId": body["deviceId"], "timestamp": body["timestamp"]},
    });

    let first = client.post(id, &body).await.expect("an answer");
    assert_eq!((first.status, &first.body), (202, &expected));
    assert_eq!(first.header("content-type"), "application/json");
    assert_eq!(first.header("idempotency-replayed"), "");
    assert_eq!(first.header("idempotency-status"), "");

    let again = client.post(id, &body).await.expect("an answer");
    assert_eq!((again.status, &again.body), (202, &expected));
    assert_eq!(again.header("idempotency-replayed"), "true");

    let other = client.post(id, &event(pipeline.devices[0], 22.5)).await.expect("an answer");
    assert_problem(&other, 422, "idempotency_mismatch");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_body_is_told_at_once() {
    let pipeline = embedded().await;
    let body = json!({
        "deviceId": "x", "eventType": "y", "value": "21", "timestamp": -1,
        "metadata": {"a": null, "b": []},
    });
    let answer = pipeline.client().post(Uuid::new_v4(), &body).await.expect("an answer");
    assert_problem(&answer, 400, "validation_failed");
    let errors = answer.body["errors"].as_array().expect("a list");
    let fields: Vec<_> = errors.iter().map(|error| &error["field"]).collect();
    assert_eq!(fields, ["deviceId", "eventType", "value", "timestamp", "metadata.a", "metadata.b"]);
    assert!(errors.iter().all(|error| error["message"].as_str().is_some_and(|m| !m.is_empty())));
    assert_eq!(errors[0]["message"], "deviceId must be a valid UUID v4");
    assert_eq!(errors[2]["message"], "Invalid input: expected number, received string");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_body_does_not_use_the_key_up() {
    let pipeline = embedded().await;
    let (client, id) = (pipeline.client(), Uuid::new_v4());
    let bad = client.post(id, &json!({"deviceId": pipeline.devices[0]})).await.expect("an answer");
    assert_problem(&bad, 400, "validation_failed");
    let good = client.post(id, &event(pipeline.devices[0], 1.0)).await.expect("an answer");
    assert_eq!((good.status, good.header("idempotency-replayed")), (202, ""));
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_idempotency_key_is_one_hyphenated_uuid_bare_or_quoted() {
    let pipeline = embedded().await;
    let client = pipeline.client();
    let body = event(pipeline.devices[0], 1.0).to_string();
    let id = Uuid::new_v4();
    for bad in [
        id.simple().to_string(),
        format!("{{{id}}}"),
        format!("urn:uuid:{id}"),
        format!("\"{id}"),
        format!("{id}, {}", Uuid::new_v4()),
        String::new(),
        "nonsense".to_owned(),
    ] {
        let answer = post_text(&client, &bad, body.clone()).await;
        assert_problem(&answer, 400, "invalid_idempotency_key");
    }
    let quoted = post_text(&client, &format!("\"{id}\""), body.clone()).await;
    assert_eq!((quoted.status, &quoted.body["data"]["id"]), (202, &json!(id)));
    let bare = post_text(&client, &id.to_string(), body.clone()).await;
    assert_eq!(bare.header("idempotency-replayed"), "true");

    let missing = client.send(|http, url| http.post(format!("{url}/v1/events")).body("{}"));
    assert_problem(&missing.await.expect("an answer"), 400, "missing_idempotency_key");
    let twice = client.send(|http, url| {
        let post = http.post(format!("{url}/v1/events")).body("{}");
        post.header("idempotency-key", id.to_string()).header("idempotency-key", id.to_string())
    });
    assert_problem(&twice.await.expect("an answer"), 400, "invalid_idempotency_key");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upper_case_key_is_the_same_key() {
    let pipeline = embedded().await;
    let (client, id) = (pipeline.client(), Uuid::new_v4());
    let body = event(pipeline.devices[0], 1.0).to_string();
    let lower = post_text(&client, &id.to_string(), body.clone()).await;
    let upper = post_text(&client, &id.to_string().to_uppercase(), body).await;
    assert_eq!((lower.status, upper.status), (202, 202));
    assert_eq!(upper.header("idempotency-replayed"), "true");
    assert_eq!(upper.body, lower.body);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_an_event_in_json_is_refused_and_never_breaks_anything() {
    let pipeline = embedded().await;
    let client = pipeline.client();
    let good = event(pipeline.devices[0], 21.5).to_string();
    let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let cases: [(Vec<u8>, &str); 9] = [
        (b"".to_vec(), "invalid_json"),
        (b"{".to_vec(), "invalid_json"),
        (good.replace("21.5", "NaN").into_bytes(), "invalid_json"),
        (good.replace("21.5", "1e999").into_bytes(), "validation_failed"),
        (good.replace("temperature", "\u{1}").into_bytes(), "invalid_json"),
        (good.replacen('}', ",\"metadata\":", 1).into_bytes(), "invalid_json"),
        ([b"{\"eventType\":\"", &[0xff, 0xfe][..], b"\"}"].concat(), "invalid_json"),
        (b"[]".to_vec(), "validation_failed"),
        (nested(5_000).into_bytes(), "validation_failed"),
    ];
    for (body, code) in cases {
        let answer = post_text(&client, &Uuid::new_v4().to_string(), body.clone()).await;
        let shown = String::from_utf8_lossy(&body).chars().take(80).collect::<String>();
        assert_eq!((answer.status, &answer.body["code"]), (400, &json!(code)), "{shown}");
    }
    let deep_field = good.replace("21.5", &nested(4_900));
    let answer = post_text(&client, &Uuid::new_v4().to_string(), deep_field).await;
    assert_problem(&answer, 400, "validation_failed");
    let deep_map = format!("{{\"metadata\":{}1{}}}", "{\"a\":".repeat(1_500), "}".repeat(1_500));
    let answer = post_text(&client, &Uuid::new_v4().to_string(), deep_map).await;
    assert_problem(&answer, 400, "validation_failed");
    client.accept(pipeline.devices[0], 1.0).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_methods_and_content_types_that_are_not_there_are_named() {
    let pipeline = embedded().await;
    let client = pipeline.client();
    let unknown = client.get("/v1/nothing").await.expect("an answer");
    assert_problem(&unknown, 404, "not_found");
    let put = client.send(|http, url| http.put(format!("{url}/v1/events")));
    let put = put.await.expect("an answer");
    assert_problem(&put, 405, "method_not_allowed");
    assert!(put.header("allow").contains("POST"), "{put:?}");

    let text = client.send(|http, url| {
        let post = http.post(format!("{url}/v1/events")).header("content-type", "text/plain");
        post.header("idempotency-key", Uuid::new_v4().to_string()).body("{}")
    });
    assert_problem(&text.await.expect("an answer"), 415, "unsupported_media_type");

    let body = event(pipeline.devices[0], 1.0).to_string();
    let charset = client.send(|http, url| {
        http.post(format!("{url}/v1/events"))
            .header("content-type", "Application/JSON; charset=utf-8")
            .header("idempotency-key", Uuid::new_v4().to_string())
            .body(body)
    });
    assert_eq!(charset.await.expect("an answer").status, 202);
    pipeline.stop().await;
}
