//! The read API: what was posted is read back by every route, by its owner alone, and what is asked
//! wrongly is named. When the database is away or busy: `read_trouble`.

use pulsestream_e2e::client::{Answer, Client, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_shared::clock;
use pulsestream_shared::codec::{Accepted, encode};
use pulsestream_shared::event::{DeviceId, Event, EventId};
use pulsestream_shared::log::{NewRecord, Topic};
use pulsestream_shared::store::Scope;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::contract::assert_problem;

on_both!(
    what_was_posted_is_read_back_by_every_route,
    one_tenant_reads_nothing_of_another,
    an_accepted_event_is_pending_until_it_is_stored,
    a_dead_letter_is_told_with_its_reason,
);

/// `GET` of a path with the client's key.
pub(crate) async fn get(client: &Client, path: impl AsRef<str>) -> Answer {
    let path = path.as_ref();
    client.send(|http, url| http.get(format!("{url}{path}"))).await.expect("an answer")
}

/// The body of a `GET` that succeeds.
pub(crate) async fn read(client: &Client, path: impl AsRef<str>) -> Value {
    let answer = get(client, path).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json", "{answer:?}");
    assert_eq!(answer.header("cache-control"), "no-store", "{answer:?}");
    answer.body
}

pub(crate) async fn status_is(client: &Client, id: Uuid, status: &str) {
    wait_for(status, PATIENCE, async || {
        get(client, format!("/v1/events/{id}")).await.body["data"]["status"] == status
    })
    .await;
}

/// Ids of an answer's events.
fn ids(body: &Value) -> Vec<String> {
    let rows = body["data"].as_array().expect("a list");
    rows.iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect()
}

/// Every page of a list of events, three at a time.
async fn walk(client: &Client, path: &str) -> Vec<String> {
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = read(client, format!("{path}{cursor}")).await;
        seen.extend(ids(&page));
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return seen,
        }
    }
}

async fn what_was_posted_is_read_back_by_every_route(engines: Engines) {
    let pipeline = Harness::new(engines).devices(2).start().await;
    let client = pipeline.client();
    let (a, b) = (
        pipeline.devices[0].min(pipeline.devices[1]),
        pipeline.devices[0].max(pipeline.devices[1]),
    );
    let base_ms = clock::unix_ms() - 60_000;
    let mut sent = Vec::new();
    for n in 0..8_i64 {
        let (id, device) = (Uuid::new_v4(), if n % 2 == 0 { a } else { b });
        // The last two of a device at one time: the later one is newer.
        let body = json!({
            "deviceId": device,
            "eventType": if n < 2 { "humidity" } else { "temperature" },
            "value": 0.1 + 0.2 * n as f64,
            "timestamp": base_ms + n.min(5) * 1_000,
            "metadata": {"n": n, "unit": "C"},
        });
        assert_eq!(client.post(id, &body).await.expect("an answer").status, 202);
        sent.push((id.to_string(), body));
    }
    for (id, _) in &sent {
        status_is(&client, id.parse().expect("a UUID"), "stored").await;
    }

    let (last, body) = &sent[7];
    let one = read(&client, format!("/v1/events/{last}")).await["data"].clone();
    for field in ["deviceId", "eventType", "value", "timestamp", "metadata"] {
        assert_eq!(one[field], body[field], "{one}");
    }
    let received_ms = one["receivedAt"].as_i64().expect("unix milliseconds");
    assert!((base_ms..=clock::unix_ms()).contains(&received_ms), "{one}");

    let of = |device: Uuid| {
        let of = sent.iter().filter(move |(_, body)| body["deviceId"] == json!(device));
        of.map(|(id, _)| id.clone()).collect::<Vec<_>>()
    };
    let mut newest_first = of(a);
    newest_first.reverse();
    assert_eq!(walk(&client, &format!("/v1/events?limit=3&deviceId={a}")).await, newest_first);
    assert_eq!(walk(&client, &format!("/v1/events?limit=3&order=asc&deviceId={b}")).await, of(b));
    let mut all = walk(&client, "/v1/events?limit=3").await;
    all.sort_unstable();
    let mut expected: Vec<_> = sent.iter().map(|(id, _)| id.clone()).collect();
    expected.sort_unstable();
    assert_eq!(all, expected);
    let humid = walk(&client, "/v1/events?limit=3&eventType=humidity&order=asc").await;
    assert_eq!(humid, [sent[0].0.clone(), sent[1].0.clone()]);
    let (from, to) = (base_ms + 1_000, base_ms + 3_000);
    let part = walk(&client, &format!("/v1/events?limit=3&order=asc&from={from}&to={to}")).await;
    assert_eq!(part, [sent[1].0.clone(), sent[2].0.clone()]);

    let newest =
        |n: usize| json!({"value": sent[n].1["value"], "timestamp": sent[n].1["timestamp"]});
    let state = json!({
        "deviceId": b,
        "lastSeen": base_ms + 5_000,
        "latest": {"humidity": newest(1), "temperature": newest(7)},
    });
    assert_eq!(read(&client, format!("/v1/devices/{b}")).await, json!({"data": state}));
    let devices = read(&client, "/v1/devices?limit=1").await;
    assert_eq!(devices["data"][0]["deviceId"], json!(a));
    let cursor = devices["nextCursor"].as_str().expect("more").to_owned();
    let rest = read(&client, format!("/v1/devices?limit=1&cursor={cursor}")).await;
    assert_eq!(rest, json!({"data": [state], "nextCursor": null}));

    let span = format!("from={base_ms}&to={}&step=86400000", base_ms + 60_000);
    let series = read(&client, format!("/v1/series?eventType=humidity&{span}")).await;
    let counts: i64 = series["data"]
        .as_array()
        .expect("buckets")
        .iter()
        .filter_map(|b| b["count"].as_i64())
        .sum();
    assert_eq!((counts, &series["step"]), (2, &json!(86_400_000)), "{series}");
    assert_eq!(series["data"][0]["start"].as_i64().expect("a time") % 86_400_000, 0);
    other_methods_are_told_what_is_allowed(&client, a).await;
    pipeline.stop().await;
}

async fn other_methods_are_told_what_is_allowed(client: &Client, device: Uuid) {
    let head = client.send(|http, url| http.head(format!("{url}/v1/devices/{device}"))).await;
    assert_eq!(head.expect("an answer").status, 200);
    for path in ["/v1/events/x", "/v1/devices", "/v1/devices/x", "/v1/series"] {
        let put = client.send(|http, url| http.put(format!("{url}{path}"))).await;
        let put = put.expect("an answer");
        assert_problem(&put, 405, "method_not_allowed");
        assert_eq!(put.header("allow"), "GET, HEAD");
    }
    let put = client.send(|http, url| http.put(format!("{url}/v1/events"))).await;
    assert_eq!(put.expect("an answer").header("allow"), "GET, HEAD, POST");
    for path in ["/v1/events", "/v1/devices"] {
        let unknown = get(client, format!("{path}/{}", Uuid::new_v4())).await;
        assert_problem(&unknown, 404, "not_found");
    }
}

async fn one_tenant_reads_nothing_of_another(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let (mine, device) = (pipeline.client(), pipeline.devices[0]);
    let theirs = mine.with_key(&pipeline.home.make_key("another").await);
    let ids = [mine.accept(device, 1.0).await, mine.accept(device, 2.0).await];
    for id in ids {
        status_is(&mine, id, "stored").await;
    }
    let now_ms = clock::unix_ms();
    let series = format!(
        "/v1/series?eventType=temperature&from={}&to={}&step=60000",
        now_ms - 600_000,
        now_ms + 60_000
    );
    let lists = ["/v1/events", &format!("/v1/events?deviceId={device}"), "/v1/devices", &series];
    for path in lists {
        assert_ne!(read(&mine, path).await["data"], json!([]), "{path}");
        assert_eq!(read(&theirs, path).await["data"], json!([]), "{path}");
    }
    pipeline.stop().await;
}

async fn an_accepted_event_is_pending_until_it_is_stored(engines: Engines) {
    let faults = Faults::default();
    faults.next(Method::ConsumerNext, usize::MAX, Fault::HangBefore);
    let pipeline = Harness::new(engines).faults(&faults).start().await;
    let client = pipeline.client();
    let id = client.accept(pipeline.devices[0], 1.0).await;
    let pending = read(&client, format!("/v1/events/{id}")).await;
    assert_eq!(pending, json!({"data": {"id": id, "status": "pending"}}));
    let theirs = client.with_key(&pipeline.home.make_key("another").await);
    assert_problem(&get(&theirs, format!("/v1/events/{id}")).await, 404, "not_found");
    faults.clear();
    faults.release();
    status_is(&client, id, "stored").await;

    // Nobody can say whether an unknown id was accepted while the keys cannot be looked up.
    faults.next(Method::Lock, 1, Fault::Before);
    let unsure = get(&client, format!("/v1/events/{}", Uuid::new_v4())).await;
    assert_problem(&unsure, 503, "unavailable");
    pipeline.stop().await;
}

async fn a_dead_letter_is_told_with_its_reason(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let client = pipeline.client();
    let id = bury(&pipeline).await;
    status_is(&client, id, "dead-lettered").await;
    let told = read(&client, format!("/v1/events/{id}")).await["data"].clone();
    assert_eq!((&told["id"], &told["reason"]), (&json!(id), &json!("out_of_range")));
    assert!(told["detail"].as_str().is_some_and(|text| text.contains("timestamp")), "{told}");
    pipeline.stop().await;
}

/// Puts an event on the log that the store will not take.
pub(crate) async fn bury(pipeline: &Pipeline) -> Uuid {
    let id = Uuid::new_v4();
    append(pipeline, doomed(pipeline, &pipeline.key, id).await).await;
    id
}

pub(crate) async fn append(pipeline: &Pipeline, record: NewRecord) {
    let appended = pipeline.engine().log.append(Topic::Raw, vec![record]).await;
    appended.into_iter().next().expect("a result").expect("appended");
}

/// An event of the key's client that is too old.
pub(crate) async fn doomed(pipeline: &Pipeline, key: &str, id: Uuid) -> NewRecord {
    let engine = pipeline.engine();
    let keys = engine.keys.list().await.expect("keys");
    let key = keys.iter().find(|known| key.starts_with(&known.prefix)).expect("its key");
    let accepted = Accepted {
        event: Event {
            id: EventId(id),
            device_id: DeviceId(pipeline.devices[0]),
            event_type: "temperature".to_owned(),
            value: 1.0,
            timestamp_ms: 5,
            metadata: None,
        },
        client: key.client,
        received_at_us: clock::unix_us(),
        unsure: None,
        replay: false,
    };
    encode(&accepted, engine.partitions)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_parameter_is_named_and_limits_hold() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let client = pipeline.client();
    for n in 0..3 {
        let id = client.accept(pipeline.devices[0], f64::from(n)).await;
        status_is(&client, id, "stored").await;
    }
    let page = read(&client, "/v1/events?limit=2").await;
    let cursor = page["nextCursor"].as_str().expect("more").to_owned();
    let device = pipeline.devices[0];
    let day_ms = 86_400_000_i64;
    let series = "/v1/series?eventType=cpu";
    for (path, fields) in [
        (
            "/v1/events?deviceId=7&eventType=x&from=a&to=-1&order=up&limit=0".to_owned(),
            vec!["deviceId", "eventType", "from", "to", "order", "limit"],
        ),
        ("/v1/events?limit=1001".to_owned(), vec!["limit"]),
        ("/v1/events?devceId=7".to_owned(), vec!["devceId"]),
        ("/v1/events?limit=1&limit=2".to_owned(), vec!["limit"]),
        ("/v1/events?from=5&to=5".to_owned(), vec!["to"]),
        (format!("/v1/events?from=0&to={}", 32 * day_ms), vec!["to"]),
        ("/v1/events?from=0".to_owned(), vec!["to"]),
        (format!("/v1/events?eventType=%00%00&deviceId={device}"), vec!["eventType"]),
        ("/v1/events?cursor=x".to_owned(), vec!["cursor"]),
        (format!("/v1/events?order=asc&cursor={cursor}"), vec!["cursor"]),
        (format!("/v1/events?deviceId={device}&cursor={cursor}"), vec!["cursor"]),
        (format!("/v1/devices?cursor={cursor}"), vec!["cursor"]),
        ("/v1/devices?limit=101&order=asc".to_owned(), vec!["order", "limit"]),
        (format!("/v1/devices/{device}?limit=1"), vec!["limit"]),
        ("/v1/devices/7".to_owned(), vec!["id"]),
        ("/v1/events/%ff".to_owned(), vec!["id"]),
        ("/v1/series".to_owned(), vec!["eventType", "from", "to", "step"]),
        (format!("{series}&from=0&to=1001&step=1"), vec!["step"]),
        (format!("{series}&from=0&to={}&step={day_ms}", 32 * day_ms), vec!["to"]),
        (format!("{series}&from=1&to=2&step=0"), vec!["step"]),
    ] {
        let answer = get(&client, &path).await;
        assert_problem(&answer, 400, "bad_request");
        let errors = answer.body["errors"].as_array().expect("errors");
        let named: Vec<_> = errors.iter().filter_map(|error| error["field"].as_str()).collect();
        assert_eq!(named, fields, "{path}: {answer:?}");
    }
    // The cursor goes on where it belongs, with another limit too; 1,000 steps are not too many.
    assert_eq!(ids(&read(&client, format!("/v1/events?cursor={cursor}&limit=9")).await).len(), 1);
    read(&client, format!("{series}&from=0&to=1000&step=1")).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_needs_a_key_with_its_scope() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let client = pipeline.client();
    let writer = pipeline.home.make_key_with("tenant", &[Scope::EventsWrite], None).await;
    let id = client.accept(pipeline.devices[0], 1.0).await;
    for path in [
        "/v1/events?limit=0".to_owned(),
        format!("/v1/events/{id}"),
        "/v1/devices".to_owned(),
        format!("/v1/devices/{}", pipeline.devices[0]),
        "/v1/series".to_owned(),
    ] {
        assert_problem(&get(&client.with_key(""), &path).await, 401, "missing_api_key");
        assert_problem(&get(&client.with_key("nobody"), &path).await, 401, "invalid_api_key");
        let refused = get(&client.with_key(&writer), &path).await;
        assert_problem(&refused, 403, "forbidden");
        assert!(refused.body["detail"].to_string().contains("events:read"), "{refused:?}");
    }
    let posted = client.post(Uuid::new_v4(), &event(pipeline.devices[0], 1.0)).await;
    assert_eq!(posted.expect("an answer").status, 202);
    pipeline.stop().await;
}
