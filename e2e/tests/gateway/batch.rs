//! `POST /v1/events/batch`: what each event of a batch comes to, and what a batch that ended half way
//! goes on with.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;

use async_trait::async_trait;
use pulsestream_e2e::client::{Answer, Client, PATIENCE, event};
use pulsestream_e2e::harness::{self, Engines, Harness, Home, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::clock;
use pulsestream_shared::log::{
    AppendError, AppendResult, Bounds, EventLog, LogConsumer, LogError, NewRecord, Offset,
    Partition, ReadLimit, Record, Topic,
};
use pulsestream_shared::service::Context;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::contract::{assert_problem, assert_problem_body};

on_both!(
    a_batch_is_stored_whole_and_its_retry_is_a_replay,
    each_event_of_a_batch_has_its_own_fate,
    events_with_ids_of_their_own_are_duplicates_on_every_route,
    a_batch_the_log_did_not_confirm_goes_on_under_the_same_ids,
    a_batch_the_log_refused_is_forgotten,
    a_retry_of_a_batch_is_never_too_old,
);

async fn post(client: &Client, key: Option<Uuid>, body: &Value) -> Answer {
    post_as(client, key, "application/json", None, body.to_string().into_bytes()).await
}

async fn post_as(
    client: &Client,
    key: Option<Uuid>,
    media_type: &str,
    encoding: Option<&str>,
    body: Vec<u8>,
) -> Answer {
    let sent = client.send(|http, url| {
        let mut request = http
            .post(format!("{url}/v1/events/batch"))
            .header("content-type", media_type)
            .body(body);
        if let Some(key) = key {
            request = request.header("idempotency-key", key.to_string());
        }
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        request
    });
    sent.await.expect("an answer")
}

fn events(pipeline: &Pipeline, count: usize) -> Vec<Value> {
    let device = |index: usize| pipeline.devices[index % pipeline.devices.len()];
    (0..count).map(|index| event(device(index), index as f64)).collect()
}

fn counts(answer: &Answer) -> (u16, u64, u64, u64) {
    let count = |name: &str| answer.body[name].as_u64().expect("a count");
    (answer.status, count("accepted"), count("duplicates"), count("rejected"))
}

async fn await_stored(pipeline: &Pipeline, expected: usize) {
    let tables = pipeline.home.tables().await;
    wait_for("the events to be stored", PATIENCE, async || {
        tables.stored_events().await.expect("events").len() >= expected
    })
    .await;
    assert_eq!(tables.stored_events().await.expect("events").len(), expected);
}

async fn a_batch_is_stored_whole_and_its_retry_is_a_replay(engines: Engines) {
    let pipeline = Harness::new(engines).devices(7).start().await;
    let (client, key) = (pipeline.client(), Uuid::new_v4());
    let body = json!(events(&pipeline, 100));
    let first = post(&client, Some(key), &body).await;
    assert_eq!(counts(&first), (202, 100, 0, 0), "{first:?}");
    assert_eq!(first.body["results"], json!([]));
    let again = post(&client, Some(key), &body).await;
    assert_eq!(counts(&again), (202, 100, 0, 0), "{again:?}");
    assert_eq!(again.header("idempotency-replayed"), "true");
    let other = post(&client, Some(key), &json!(events(&pipeline, 3))).await;
    assert_problem(&other, 422, "idempotency_mismatch");
    await_stored(&pipeline, 100).await;
    pipeline.stop().await;
}

async fn each_event_of_a_batch_has_its_own_fate(engines: Engines) {
    let pipeline = Harness::new(engines).devices(2).start().await;
    let mut all = events(&pipeline, 6);
    all[1]["value"] = json!("21");
    all[1]["eventType"] = json!("x");
    all[3]["id"] = json!(Uuid::new_v4());
    all[4]["id"] = all[3]["id"].clone();
    let same = all[3].clone();
    all.push(same);
    all[5] = json!(7);
    let answer = post(&pipeline.client(), Some(Uuid::new_v4()), &json!({ "events": all })).await;
    assert_eq!(counts(&answer), (207, 3, 1, 3), "{answer:?}");
    let rows = answer.body["results"].as_array().expect("rows");
    let told: Vec<_> =
        rows.iter().map(|row| (&row["index"], &row["status"], &row["code"])).collect();
    let expected = [
        (1, "rejected", "validation_failed"),
        (4, "rejected", "idempotency_mismatch"),
        (5, "rejected", "validation_failed"),
        (6, "duplicate", "duplicate"),
    ]
    .map(|(index, status, code)| (json!(index), json!(status), json!(code)));
    assert_eq!(told, expected.iter().map(|(i, s, c)| (i, s, c)).collect::<Vec<_>>());
    let fields: Vec<_> = rows[0]["errors"].as_array().expect("errors").iter().collect();
    assert_eq!(fields.len(), 2, "{fields:?}");

    let none = post(&pipeline.client(), Some(Uuid::new_v4()), &json!([{}, 7])).await;
    assert_eq!(none.status, 422);
    assert_problem_body(&none.body, 422, "batch_invalid");
    assert_eq!(counts(&none), (422, 0, 0, 2));
    await_stored(&pipeline, 3).await;
    pipeline.stop().await;
}

async fn events_with_ids_of_their_own_are_duplicates_on_every_route(engines: Engines) {
    let pipeline = Harness::new(engines).devices(3).start().await;
    let client = pipeline.client();
    let mut all = events(&pipeline, 3);
    let ids: Vec<_> = all.iter().map(|_| Uuid::new_v4()).collect();
    assert_eq!(client.post(ids[0], &all[0]).await.expect("an answer").status, 202);
    for (event, id) in all.iter_mut().zip(&ids) {
        event["id"] = json!(id);
    }
    let first = post(&client, None, &json!(all)).await;
    assert_eq!(counts(&first), (202, 2, 1, 0), "{first:?}");
    let again = post(&client, None, &json!(all)).await;
    assert_eq!(counts(&again), (202, 0, 3, 0), "{again:?}");
    let single = client.post(ids[2], &all[2]).await.expect("an answer");
    assert_eq!((single.status, single.header("idempotency-replayed")), (202, "true"));
    all[1]["value"] = json!(-1);
    let changed = post(&client, None, &json!(all)).await;
    assert_eq!(counts(&changed), (207, 0, 2, 1), "{changed:?}");
    await_stored(&pipeline, 3).await;
    pipeline.stop().await;
}

async fn a_batch_the_log_did_not_confirm_goes_on_under_the_same_ids(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines)
        .devices(5)
        .set("PULSESTREAM__INGEST__LEASE", "10m")
        .set("PULSESTREAM__CACHE__TIMEOUT", "10s")
        .faults(&faults)
        .start()
        .await;
    let (client, key) = (pipeline.client(), Uuid::new_v4());
    let body = json!(events(&pipeline, 20));
    faults.next(Method::Append, 1, Fault::After);
    let first = post(&client, Some(key), &body).await;
    assert_problem(&first, 503, "outcome_unknown");
    let other = post(&client, Some(key), &json!(events(&pipeline, 20))).await;
    assert_problem(&other, 422, "idempotency_mismatch");
    wait_for("the log to be tried again", PATIENCE, async || {
        let again = post(&client, Some(key), &body).await;
        assert!(matches!(again.status, 202 | 409 | 503), "{again:?}");
        again.status == 202
    })
    .await;
    let last = post(&client, Some(key), &body).await;
    assert_eq!(counts(&last), (202, 20, 0, 0), "{last:?}");
    await_stored(&pipeline, 20).await;
    pipeline.stop().await;
}

async fn a_batch_the_log_refused_is_forgotten(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines).devices(2).faults(&faults).start().await;
    let (client, key) = (pipeline.client(), Uuid::new_v4());
    faults.next(Method::Append, 1, Fault::Before);
    let refused = post(&client, Some(key), &json!(events(&pipeline, 5))).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let other = json!(events(&pipeline, 4));
    wait_for("the key to be free", PATIENCE, async || {
        post(&client, Some(key), &other).await.status == 202
    })
    .await;
    await_stored(&pipeline, 4).await;
    pipeline.stop().await;
}

async fn a_retry_of_a_batch_is_never_too_old(engines: Engines) {
    let age = "MAX_EVENT_AGE";
    let pipeline = Harness::new(engines).devices(2).set(age, "1s").start().await;
    let (client, key) = (pipeline.client(), Uuid::new_v4());
    let all = events(&pipeline, 3);
    let first = post(&client, Some(key), &json!(all)).await;
    assert_eq!(counts(&first), (202, 3, 0, 0));
    let sent_ms = all[0]["timestamp"].as_i64().expect("a timestamp");
    wait_for("the events to be too old", PATIENCE, async || clock::unix_ms() > sent_ms + 1_000)
        .await;
    let again = post(&client, Some(key), &json!(all)).await;
    assert_eq!(counts(&again), (202, 3, 0, 0), "{again:?}");
    let fresh = post(&client, Some(Uuid::new_v4()), &json!(all)).await;
    assert_eq!(counts(&fresh), (422, 0, 0, 3), "{fresh:?}");
    pipeline.stop().await;
}

#[tokio::test]
async fn a_batch_may_be_lines_and_compressed_and_is_bounded_in_every_way() {
    let pipeline = Harness::new(Engines::Embedded).devices(3).start().await;
    let client = pipeline.client();
    let lines: Vec<_> = events(&pipeline, 50).iter().map(Value::to_string).collect();
    let text = lines.join("\n").into_bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&text).expect("compressed");
    let gzip = gzip.finish().expect("compressed");
    let ndjson = "application/x-ndjson";
    for (encoding, body) in [(None, text), (Some("gzip"), gzip.clone())] {
        let answer = post_as(&client, Some(Uuid::new_v4()), ndjson, encoding, body).await;
        assert_eq!(counts(&answer), (202, 50, 0, 0), "{answer:?}");
    }
    let half = gzip[..gzip.len() / 2].to_vec();
    let cut = post_as(&client, Some(Uuid::new_v4()), ndjson, Some("gzip"), half).await;
    assert_problem(&cut, 400, "bad_request");
    let unknown = post_as(&client, Some(Uuid::new_v4()), ndjson, Some("deflate"), gzip).await;
    assert_problem(&unknown, 415, "unsupported_media_type");
    let xml = post_as(&client, Some(Uuid::new_v4()), "text/xml", None, b"<a/>".to_vec()).await;
    assert_problem(&xml, 415, "unsupported_media_type");
    let many = post(&client, Some(Uuid::new_v4()), &json!(vec![7; 1_001])).await;
    assert_problem(&many, 413, "payload_too_large");
    let large = vec![b' '; 5_242_881];
    let large = post_as(&client, Some(Uuid::new_v4()), ndjson, None, large).await;
    assert_problem(&large, 413, "payload_too_large");
    let empty = post(&client, Some(Uuid::new_v4()), &json!([])).await;
    assert_problem(&empty, 422, "batch_invalid");
    let no_key = post(&client, None, &json!(events(&pipeline, 2))).await;
    assert_eq!(counts(&no_key), (422, 0, 0, 2), "an event without id or key is at fault");
    pipeline.stop().await;
}

/// A log of which one partition takes nothing.
struct OneRefuses(Arc<dyn EventLog>, Partition);

#[async_trait]
impl EventLog for OneRefuses {
    async fn append(&self, topic: Topic, records: Vec<NewRecord>) -> Vec<AppendResult> {
        let refused: Vec<_> = records.iter().map(|record| record.partition == self.1).collect();
        let taken = records.into_iter().filter(|record| record.partition != self.1).collect();
        let mut results = self.0.append(topic, taken).await.into_iter();
        let refusal = || Err(AppendError::Refused("this partition takes nothing".to_owned()));
        let result = |refused| if refused { Some(refusal()) } else { results.next() };
        refused.into_iter().filter_map(result).collect()
    }

    fn partitions_fail_alone(&self) -> bool {
        self.0.partitions_fail_alone()
    }

    async fn consume(&self, group: &str) -> Result<Box<dyn LogConsumer>, LogError> {
        self.0.consume(group).await
    }

    async fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Record>, LogError> {
        self.0.read(topic, partition, from, limit).await
    }

    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, LogError> {
        self.0.bounds(topic).await
    }

    async fn locate(&self, logged_at_ms: i64) -> Result<Vec<Offset>, LogError> {
        self.0.locate(logged_at_ms).await
    }
}

/// Interleaving 14.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_half_failed_stays_open_and_is_completed_by_the_same_body() {
    let home = Home::new(Engines::Servers, BTreeMap::new()).await;
    let api_key = home.make_key("tenant").await;
    let half = harness::start(&home, pulsestream_gateway::ROLE, async |mut context: Context| {
        context.engine.log = Arc::new(OneRefuses(context.engine.log.clone(), 0));
        let keyring = Keyring::open(&context).await?;
        pulsestream_gateway::build(context, keyring).await
    })
    .await;
    let whole = harness::start_gateway(&home).await;
    let (client, key) = (Client::new(&half.url, &api_key), Uuid::new_v4());
    let body = json!((0..40).map(|n| event(Uuid::new_v4(), n.into())).collect::<Vec<_>>());
    let first = post(&client, Some(key), &body).await;
    let (status, accepted, duplicates, rejected) = counts(&first);
    assert_eq!((status, duplicates, accepted + rejected), (207, 0, 40), "{first:?}");
    assert!(rejected > 0 && !first.header("retry-after").is_empty(), "{first:?}");
    let rows = first.body["results"].as_array().expect("rows");
    assert!(rows.iter().all(|row| row["status"] == "retry"), "{first:?}");

    let other = json!([event(Uuid::new_v4(), 0.0)]);
    let completed = post(&client.at(&whole.url), Some(key), &body).await;
    assert_eq!(counts(&completed), (202, rejected, accepted, 0), "{completed:?}");
    let mismatch = post(&client.at(&whole.url), Some(key), &other).await;
    assert_problem(&mismatch, 422, "idempotency_mismatch");
    wait_for("the batch to be done", PATIENCE, async || {
        let again = post(&client, Some(key), &body).await;
        assert_eq!(again.status, 202, "{again:?}");
        again.header("idempotency-replayed") == "true"
    })
    .await;
    let bounds = whole.engine.log.bounds(Topic::Raw).await.expect("bounds");
    assert_eq!(bounds.iter().map(|bounds| bounds.next - bounds.first).sum::<i64>(), 40);
    half.stop().await;
    whole.stop().await;
    home.remove().await;
}
