//! One key, one event: while the first attempt is under way, after it, and beside other tenants.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{self, Engines, Harness, Home, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::cache::embedded::{EmbeddedCache, EmbeddedCacheBounds};
use pulsestream_shared::clock;
use pulsestream_shared::log::embedded::{EmbeddedConfig, EmbeddedLog};
use pulsestream_shared::log::partition_of;
use pulsestream_shared::service::Context;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::wait_for;
use serde_json::json;
use uuid::Uuid;

use crate::contract::assert_problem;

on_both!(
    a_second_attempt_waits_while_the_first_is_under_way,
    two_tenants_may_use_one_key_and_never_meet,
    of_fifty_equal_posts_at_once_one_is_stored,
    a_retry_of_what_was_accepted_is_never_too_old,
    a_first_attempt_that_is_too_old_does_not_use_the_key_up,
    a_log_that_takes_nothing_is_told_and_frees_the_key,
    a_partition_that_hangs_costs_its_own_devices_alone,
);

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_without_room_sheds_new_keys_and_stays_in_use() {
    let home = Home::new(Engines::Embedded, BTreeMap::new()).await;
    let key = home.make_key("tenant").await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = EmbeddedConfig {
        dir: folder.path().to_owned(),
        partitions: 1,
        retention: Duration::from_secs(3_600),
        max_bytes: 1 << 20,
        append_timeout: PATIENCE,
    };
    let log = EmbeddedLog::open(config).await.expect("a log");
    // Its outcomes come with the appends of another log than the gateway's: they keep their places.
    let bounds = EmbeddedCacheBounds { locks: 1, keys: 10 };
    let cache = Arc::new(EmbeddedCache::new(&log, bounds));
    let gateway = harness::start(&home, pulsestream_gateway::ROLE, async |mut context: Context| {
        context.engine.cache = cache;
        let keyring = Keyring::open(&context).await?;
        pulsestream_gateway::build(context, keyring).await
    })
    .await;
    let client = Client::new(&gateway.url, &key);
    let (id, body) = (Uuid::new_v4(), event(Uuid::new_v4(), 1.0));
    assert_eq!(client.post(id, &body).await.expect("an answer").status, 202);
    for _ in 0..3 {
        let other = client.post(Uuid::new_v4(), &body).await.expect("an answer");
        assert_problem(&other, 503, "overloaded");
        let again = client.post(id, &body).await.expect("an answer");
        assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"));
    }
    let ready = client.get("/readyz").await.expect("an answer");
    assert_eq!(ready.body["checks"]["cache"]["status"], "up", "{ready:?}");
    gateway.stop().await;
    log.close().await;
    home.remove().await;
}

/// Waits until something is stored after `id`, and returns how often each id is stored.
pub(crate) async fn stored_until(pipeline: &Pipeline, id: Uuid) -> BTreeMap<Uuid, usize> {
    let tables = pipeline.home.tables().await;
    let counts = async || {
        let mut counts = BTreeMap::new();
        for event in tables.stored_events().await.expect("events") {
            *counts.entry(event.id.0).or_default() += 1;
        }
        counts
    };
    wait_for("the event to be stored", PATIENCE, async || counts().await.contains_key(&id)).await;
    counts().await
}

async fn a_second_attempt_waits_while_the_first_is_under_way(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines).faults(&faults).start().await;
    let (client, id) = (pipeline.client(), Uuid::new_v4());
    let body = event(pipeline.devices[0], 1.0);
    faults.next(Method::Append, 1, Fault::HangBefore);
    let first = tokio::spawn({
        let (client, body) = (client.clone(), body.clone());
        async move { client.post(id, &body).await.expect("an answer") }
    });
    wait_for("the log to hang", PATIENCE, async || faults.hanging() == 1 || first.is_finished())
        .await;
    assert!(!first.is_finished(), "{:?}", first.await);

    let second = client.post(id, &body).await.expect("an answer");
    assert_problem(&second, 409, "in_progress");
    assert_eq!(second.header("retry-after"), "1");
    let other = client.post(id, &event(pipeline.devices[0], 2.0)).await.expect("an answer");
    assert_problem(&other, 422, "idempotency_mismatch");

    faults.release();
    let first = first.await.expect("no panic");
    assert_eq!((first.status, first.header("idempotency-replayed")), (202, ""));
    let third = client.post(id, &body).await.expect("an answer");
    assert_eq!((third.status, third.body), (202, first.body));
    pipeline.stop().await;
}

/// Interleaving 13.
async fn a_partition_that_hangs_costs_its_own_devices_alone(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines).devices(40).faults(&faults).start().await;
    let partitions = pipeline.engine().partitions;
    let partition = |device: &Uuid| partition_of(device.to_string().as_bytes(), partitions);
    let client = pipeline.client();
    let hung = pipeline.devices[0];
    faults.next(Method::Append, 1, Fault::HangBefore);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.post(Uuid::new_v4(), &event(hung, 1.0)).await.expect("an answer") }
    });
    wait_for("the log to hang", PATIENCE, async || faults.hanging() == 1).await;
    let others = pipeline.devices.iter().filter(|device| partition(device) != partition(&hung));
    let answers = join_all(others.map(|device| async {
        let body = event(*device, 2.0);
        let answer = client.post(Uuid::new_v4(), &body);
        tokio::time::timeout(Duration::from_secs(2), answer).await.expect("in time")
    }));
    let answers = answers.await;
    assert!(answers.len() > 10, "{} devices elsewhere", answers.len());
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status == 202)));
    assert!(!waiting.is_finished());
    faults.release();
    assert_eq!(waiting.await.expect("no panic").status, 202);
    pipeline.stop().await;
}

async fn two_tenants_may_use_one_key_and_never_meet(engines: Engines) {
    let pipeline = Harness::new(engines).devices(2).start().await;
    let other_key = pipeline.home.make_key("other").await;
    let (ours, theirs) = (pipeline.client(), pipeline.client().with_key(&other_key));
    let url = pipeline.stream_url();
    let mut our_board = Dashboard::connect(url, &pipeline.key, "").await.expect("connected");
    let mut their_board = Dashboard::connect(url, &other_key, "").await.expect("connected");
    let id = Uuid::new_v4();
    let (our_event, their_event) =
        (event(pipeline.devices[0], 1.0), event(pipeline.devices[1], 2.0));

    let first = ours.post(id, &our_event).await.expect("an answer");
    let second = theirs.post(id, &their_event).await.expect("an answer");
    for (answer, device) in [(first, pipeline.devices[0]), (second, pipeline.devices[1])] {
        assert_eq!((answer.status, answer.header("idempotency-replayed")), (202, ""));
        assert_eq!(answer.body["data"]["deviceId"], json!(device));
    }
    // The other's body under the own key is refused by the own first body, not answered by theirs.
    let crossed = ours.post(id, &their_event).await.expect("an answer");
    assert_problem(&crossed, 422, "idempotency_mismatch");

    let (our_last, their_last) = (
        ours.accept(pipeline.devices[0], 3.0).await,
        theirs.accept(pipeline.devices[1], 4.0).await,
    );
    assert_eq!(our_board.take(2).await.iter().map(|e| &e["value"]).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(their_board.take(2).await.iter().map(|e| &e["value"]).collect::<Vec<_>>(), [2, 4]);
    stored_until(&pipeline, our_last).await;
    assert_eq!(stored_until(&pipeline, their_last).await[&id], 2);
    pipeline.stop().await;
}

async fn of_fifty_equal_posts_at_once_one_is_stored(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let (client, id) = (pipeline.client(), Uuid::new_v4());
    let body = event(pipeline.devices[0], 1.0);
    let url = pipeline.stream_url();
    let mut dashboard = Dashboard::connect(url, &pipeline.key, "").await.expect("connected");
    let answers = join_all((0..50).map(|_| client.post(id, &body))).await;
    let mut first_answers = 0;
    for answer in answers {
        let answer = answer.expect("an answer");
        match answer.status {
            202 => first_answers += usize::from(answer.header("idempotency-replayed").is_empty()),
            _ => assert_problem(&answer, 409, "in_progress"),
        }
    }
    assert_eq!(first_answers, 1);
    let last = client.accept(pipeline.devices[0], 2.0).await;
    let shown = dashboard.take(2).await;
    assert_eq!(shown[1]["id"], json!(last), "shown once: {shown:?}");
    assert_eq!(stored_until(&pipeline, last).await, BTreeMap::from([(id, 1), (last, 1)]));
    pipeline.stop().await;
}

/// Interleaving 12.
async fn a_retry_of_what_was_accepted_is_never_too_old(engines: Engines) {
    let pipeline = Harness::new(engines).set("MAX_EVENT_AGE", "1s").start().await;
    let (client, id) = (pipeline.client(), Uuid::new_v4());
    let body = event(pipeline.devices[0], 1.0);
    let first = client.post(id, &body).await.expect("an answer");
    assert_eq!(first.status, 202, "{first:?}");
    let old_at_ms = body["timestamp"].as_i64().expect("a number") + 1_001;
    wait_for("the event to be too old", PATIENCE, async || clock::unix_ms() > old_at_ms).await;

    let again = client.post(id, &body).await.expect("an answer");
    assert_eq!((again.status, &again.body), (202, &first.body));
    assert_eq!(again.header("idempotency-replayed"), "true");
    // Another old body under the key is refused for the key, and under a new key for its age.
    let mut other = body.clone();
    other["value"] = 2.into();
    let mismatch = client.post(id, &other).await.expect("an answer");
    assert_problem(&mismatch, 422, "idempotency_mismatch");
    let too_old = client.post(Uuid::new_v4(), &body).await.expect("an answer");
    assert_problem(&too_old, 400, "validation_failed");
    pipeline.stop().await;
}

async fn a_first_attempt_that_is_too_old_does_not_use_the_key_up(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let (client, id) = (pipeline.client(), Uuid::new_v4());
    for (offset_ms, expected) in [(-300_900_i64, 400), (301_500, 400), (-299_000, 202)] {
        let mut body = event(pipeline.devices[0], 1.0);
        body["timestamp"] = (clock::unix_ms() + offset_ms).into();
        let answer = client.post(id, &body).await.expect("an answer");
        assert_eq!(answer.status, expected, "{offset_ms}: {answer:?}");
        if expected == 400 {
            assert_problem(&answer, 400, "validation_failed");
            assert_eq!(answer.body["errors"][0]["field"], "timestamp");
            let message = "Timestamp must be within 5 minutes of server time (clock drift check)";
            assert_eq!(answer.body["errors"][0]["message"], message);
        }
    }
    pipeline.stop().await;
}

async fn a_log_that_takes_nothing_is_told_and_frees_the_key(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines).faults(&faults).start().await;
    let (client, id) = (pipeline.client(), Uuid::new_v4());
    faults.next(Method::Append, 1, Fault::Before);
    let down = client.post(id, &event(pipeline.devices[0], 1.0)).await.expect("an answer");
    assert_problem(&down, 503, "log_unavailable");
    // Certainly not in the log: the key may be used with another body, as soon as its release has
    // reached the cache (nobody waits for that) and the log is tried again.
    let other = event(pipeline.devices[0], 2.0);
    wait_for("the log to be tried again", Duration::from_secs(5), async || {
        let answer = client.post(id, &other).await.expect("an answer");
        assert!(matches!(answer.status, 202 | 422 | 503), "{answer:?}");
        answer.status == 202
    })
    .await;
    assert_eq!(stored_until(&pipeline, id).await[&id], 1);
    pipeline.stop().await;
}
