//! What the pipeline tells of itself: traces to a collector, metrics a Prometheus takes, gauges that fall
//! again, and logs that keep keys and payloads to themselves.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Home};
use pulsestream_e2e::on_both;
use pulsestream_e2e::process::Process;
use pulsestream_shared::log::{ReadLimit, Record, Topic};
use pulsestream_shared::testing::wait_for;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

on_both!(
    a_traced_request_is_followed_to_the_record_the_store_and_the_relay,
    keys_tokens_and_payloads_are_in_no_log_line,
    every_role_tells_metrics_that_promtool_finds_clean,
);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A collector: takes OTLP as any other would and keeps the spans.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    async fn start(&self) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let app = Router::new().route("/v1/traces", post(take)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        url
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().expect("no panic").clone()
    }

    fn named(&self, name: &str) -> Option<Span> {
        self.spans().into_iter().find(|span| span.name == name)
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) {
    let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
    let scopes = request.resource_spans.into_iter().flat_map(|spans| spans.scope_spans);
    let spans = scopes.flat_map(|scope| scope.spans);
    collector.0.lock().expect("no panic").extend(spans);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn records(pipeline: &pulsestream_e2e::harness::Pipeline) -> Vec<Record> {
    let log = &pipeline.engine().log;
    let mut all = Vec::new();
    for (partition, bounds) in (0..).zip(log.bounds(Topic::Raw).await.expect("bounds")) {
        let limit = ReadLimit { records: 100, bytes: 1 << 20 };
        all.extend(log.read(Topic::Raw, partition, bounds.first, limit).await.expect("records"));
    }
    all
}

async fn a_traced_request_is_followed_to_the_record_the_store_and_the_relay(engines: Engines) {
    let collector = Collector::default();
    let pipeline = Harness::new(engines)
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", collector.start().await)
        .set("PULSESTREAM__TELEMETRY__TRACE_ONE_IN", "0")
        .start()
        .await;
    // What was logged before a relay stood in its partition is not relayed.
    let live = Client::new(pipeline.stream_url(), "");
    let partitions = usize::try_from(pipeline.engine().partitions).expect("a few");
    wait_for("the relay in every partition", PATIENCE, async || {
        let metrics = live.get_text("/metrics").await.expect("metrics");
        metrics.matches("pulsestream_relay_lag_records{").count() == partitions
    })
    .await;
    let client = pipeline.client();
    client.accept(pipeline.devices[0], 1.0).await; // not traced
    let body = event(pipeline.devices[0], 2.0).to_string();
    let sent = client.send(|http, url| {
        http.post(format!("{url}/v1/events"))
            .header("idempotency-key", Uuid::new_v4().to_string())
            .header("content-type", "application/json")
            .header("x-request-id", "mine")
            .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"))
            .body(body)
    });
    assert_eq!(sent.await.expect("an answer").status, 202);
    for name in ["POST /v1/events", "authorize", "read body", "lock", "send metrics.raw", "settle"]
        .into_iter()
        .chain(["store metrics.raw", "relay metrics.raw"])
    {
        wait_for(name, PATIENCE, async || collector.named(name).is_some()).await;
    }
    let server = collector.named("POST /v1/events").expect("the request's span");
    assert_eq!(hex(&server.trace_id), TRACE);
    assert_eq!(hex(&server.parent_span_id), "00f067aa0ba902b7");
    assert!(server.attributes.iter().any(|attribute| attribute.key == "pulsestream.request_id"));
    let send = collector.named("send metrics.raw").expect("the producer's span");
    assert_eq!((&send.trace_id, &send.parent_span_id), (&server.trace_id, &server.span_id));
    let parents: Vec<_> = records(&pipeline)
        .await
        .iter()
        .filter_map(|record| record.headers.get("traceparent").map(<[u8]>::to_vec))
        .collect();
    let expected = format!("00-{TRACE}-{}-01", hex(&send.span_id));
    assert_eq!(parents, [expected.into_bytes()], "the one record of the traced request");
    for name in ["store metrics.raw", "relay metrics.raw"] {
        let span = collector.named(name).expect("a span");
        let links: Vec<_> = span.links.iter().map(|link| (&link.trace_id, &link.span_id)).collect();
        assert_eq!(links, [(&send.trace_id, &send.span_id)], "{name}");
    }
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_gone_disturbs_nothing_and_its_spans_are_counted() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .set("PULSESTREAM__TELEMETRY__TRACE_ONE_IN", "1")
        .start()
        .await;
    let client = pipeline.client();
    for value in 0..20 {
        client.accept(pipeline.devices[0], f64::from(value)).await;
    }
    let failed = "pulsestream_trace_spans_total{result=\"failed\"}";
    wait_for("failed spans", PATIENCE, async || series(&client, failed).await > 0.0).await;
    pipeline.stop().await;
}

async fn series(client: &Client, name: &str) -> f64 {
    let text = client.get_text("/metrics").await.expect("metrics");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_cut_leave_the_gauges_at_nothing() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let client = pipeline.client();
    let address = pipeline.gateway_url().trim_start_matches("http://").to_owned();
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(&address).await.expect("connected");
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\nidempotency-key: {}\r\n\
             content-type: application/json\r\ncontent-length: 100\r\n\r\n{{",
            pipeline.key,
            Uuid::new_v4()
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        stalled.push(stream);
    }
    let (requests, bytes) =
        ("pulsestream_http_requests_in_flight", "pulsestream_http_body_bytes_in_flight");
    wait_for("all at work", PATIENCE, async || series(&client, requests).await == 10.0).await;
    drop(stalled);
    wait_for("none at work", PATIENCE, async || {
        series(&client, requests).await == 0.0 && series(&client, bytes).await == 0.0
    })
    .await;
    pipeline.stop().await;
}

/// The roles of a pipeline as processes, ready; what they print is kept in the folder.
async fn processes(home: &Home, folder: &std::path::Path) -> Vec<Process> {
    let roles: &[&str] = match home.engines {
        Engines::Embedded => &["up"],
        Engines::Servers => &["gateway", "consumer", "broadcaster"],
    };
    let mut processes = Vec::new();
    for role in roles {
        let process = Process::start_logged(role, &home.variables, folder).await;
        process.ready().await;
        processes.push(process);
    }
    processes
}

async fn keys_tokens_and_payloads_are_in_no_log_line(engines: Engines) {
    const PAYLOAD: &str = "recognisable-payload";
    let level = ("PULSESTREAM__TELEMETRY__LOG_LEVEL".to_owned(), "trace".to_owned());
    let home = Home::new(engines, BTreeMap::from([level])).await;
    let key = home.make_key("tenant").await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut processes = processes(&home, folder.path()).await;
    let client = Client::new(&processes[0].url, &key);
    let mut socket = Dashboard::connect(&processes.last().expect("one").url, &key, "").await;
    let socket = socket.as_mut().expect("connected");
    let mut body = event(Uuid::new_v4(), 1.0);
    body["metadata"] = serde_json::json!({"secret": PAYLOAD});
    let posted = client.post(Uuid::new_v4(), &body).await.expect("an answer");
    assert_eq!(posted.status, 202);
    assert_eq!(socket.next().await["metadata"]["secret"], PAYLOAD);
    body["value"] = PAYLOAD.into();
    let refused = client.post(Uuid::new_v4(), &body).await.expect("an answer");
    assert_eq!(refused.status, 400);
    let stranger = client.with_key(&key.replace("ps_test", "ps_tess"));
    assert_eq!(stranger.post(Uuid::new_v4(), &body).await.expect("an answer").status, 401);
    wait_for("the event in the store", PATIENCE, async || {
        let read = client.send(|http, url| http.get(format!("{url}/v1/events"))).await;
        read.is_ok_and(|answer| answer.body["data"].as_array().is_some_and(|d| d.len() == 1))
    })
    .await;
    let live = Client::new(&processes.last().expect("one").url, &key);
    let issued = live.post_json("/v1/stream/tokens", &serde_json::json!({})).await;
    let token = issued.expect("an answer").body["token"].as_str().expect("a token").to_owned();
    let protocols = format!("pulsestream.v1, bearer.{token}");
    for (query, protocols) in [
        (format!("token={token}"), ""),
        (format!("token={token}x"), ""),
        (String::new(), &*protocols),
    ] {
        let headers = [("sec-websocket-protocol", protocols)];
        Dashboard::open(&processes.last().expect("one").url, &query, &headers).await.expect("open");
        live.get(&format!("/v1/stream/poll?{query}")).await.expect("an answer");
        client.get(&format!("/v1/nowhere?{query}")).await.expect("an answer");
    }
    let mut known = Dashboard::open(&processes.last().expect("one").url, "mode=live", &[]).await;
    let known = known.as_mut().expect("open");
    known.say(&serde_json::json!({"type": "auth", "id": 1, "token": token}).to_string()).await;
    assert_eq!(known.next().await["type"], "hello");
    let secret = key.trim_start_matches("ps_test_").to_owned();
    let token = token.trim_start_matches("ps_token_").to_owned();
    for process in &mut processes {
        process.terminate().await;
        let log = process.stderr();
        assert!(log.contains("listening"), "{} logs nothing", process.role());
        for forbidden in [secret.as_str(), token.as_str(), PAYLOAD] {
            let line = log.lines().find(|line| line.contains(forbidden));
            assert_eq!(line, None, "{}", process.role());
        }
    }
    home.remove().await;
}

async fn every_role_tells_metrics_that_promtool_finds_clean(engines: Engines) {
    let home = Home::new(engines, BTreeMap::new()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut processes = processes(&home, folder.path()).await;
    for process in &mut processes {
        let metrics = Client::new(&process.url, "").get_text("/metrics").await.expect("metrics");
        let mut promtool = tokio::process::Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("promtool runs; scripts/test installs it");
        let mut input = promtool.stdin.take().expect("piped");
        input.write_all(metrics.as_bytes()).await.expect("read by promtool");
        drop(input);
        let ended = tokio::time::timeout(PATIENCE, promtool.wait_with_output()).await;
        let ended = ended.expect("in time").expect("its output");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success() && said.is_empty(), "{}: {said}", process.role());
        process.terminate().await;
    }
    home.remove().await;
}
