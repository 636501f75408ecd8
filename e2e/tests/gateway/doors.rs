//! Who may come near a broadcaster, and how many: origins, limits, and what it tells of itself.

use futures_util::future::join_all;
use pulsestream_e2e::client::{Answer, Client, Dashboard, PATIENCE, refusal};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline};
use pulsestream_e2e::on_both;
use pulsestream_e2e::sse::Sse;
use pulsestream_shared::store::Scope;
use pulsestream_shared::testing::wait_for;
use serde_json::json;

use crate::contract::assert_problem;

on_both!(
    a_broadcaster_tells_its_figures_to_an_admin_as_its_metrics_have_them,
    streams_that_end_in_whatever_way_are_counted_no_more,
);

const PAGE: &str = "https://dash.example";

async fn poll(pipeline: &Pipeline, key: &str, headers: &[(&str, &str)]) -> Answer {
    let client = Client::new(pipeline.stream_url(), key);
    let sent = client.send(|http, url| {
        let request = http.get(format!("{url}/v1/stream/poll"));
        let given = headers.iter().filter(|(_, value)| !value.is_empty());
        given.fold(request, |request, (name, value)| request.header(*name, *value))
    });
    sent.await.expect("an answer")
}

async fn stats(pipeline: &Pipeline, key: &str) -> Answer {
    let client = Client::new(pipeline.stream_url(), key);
    client.send(|http, url| http.get(format!("{url}/v1/stream/stats"))).await.expect("an answer")
}

async fn admin(pipeline: &Pipeline) -> String {
    pipeline.home.make_key_with("operator", &[Scope::Admin], None).await
}

async fn framed(pipeline: &Pipeline, key: &str) -> Dashboard {
    let connected = Dashboard::connect(pipeline.stream_url(), key, "mode=live").await;
    let mut dashboard = connected.expect("connected");
    assert_eq!(dashboard.next().await["type"], "hello");
    dashboard
}

#[tokio::test(flavor = "multi_thread")]
async fn only_pages_of_the_servers_own_and_of_listed_origins_open_streams() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__SERVER__CORS_ORIGINS", PAGE)
        .start()
        .await;
    let url = pipeline.stream_url();
    let connect = async |origin: &str| {
        let headers = [("x-api-key", pipeline.key.as_str()), ("origin", origin)];
        Dashboard::open(url, "", &headers).await
    };
    for origin in ["", PAGE, url] {
        assert!(connect(origin).await.is_ok(), "{origin}");
        assert_eq!(poll(&pipeline, &pipeline.key, &[("origin", origin)]).await.status, 200);
    }
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1"] {
        assert_eq!(refusal(connect(origin).await), 403, "{origin}");
        let polled = poll(&pipeline, &pipeline.key, &[("origin", origin)]).await;
        assert_problem(&polled, 403, "origin_refused");
        // Before anything is said of the key.
        let polled = poll(&pipeline, "ps_test_nobody", &[("origin", origin)]).await;
        assert_problem(&polled, 403, "origin_refused");
    }
    let granted = poll(&pipeline, &pipeline.key, &[("origin", PAGE)]).await;
    assert_eq!(granted.header("access-control-allow-origin"), PAGE);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dev_server_shows_nothing_to_pages_of_other_sites() {
    let pipeline =
        Harness::new(Engines::Embedded).set("PULSESTREAM__SERVER__DEV", "true").start().await;
    let url = pipeline.stream_url();
    let connect = async |origin: &str, host: &str| {
        Dashboard::open(url, "", &[("origin", origin), ("host", host)]).await
    };
    assert!(connect(url, "").await.is_ok());
    assert_eq!(refusal(connect("https://evil.example", "").await), 403);
    // Its name leads here too: for a browser it is the page's own origin.
    let rebound = connect("http://evil.example:3000", "evil.example:3000").await;
    assert_eq!(refusal(rebound), 403);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_with_too_many_streams_is_turned_away_whatever_its_keys() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__LIVE__STREAMS_PER_ADDRESS", "2")
        .start()
        .await;
    let other_key = pipeline.home.make_key("other").await;
    let (url, one) = (pipeline.stream_url(), framed(&pipeline, &pipeline.key).await);
    // One of nobody known is one too.
    let unknown = Dashboard::open(url, "mode=live", &[]).await.expect("connected");
    assert_problem(&poll(&pipeline, &other_key, &[]).await, 429, "too_many_streams");
    assert_eq!(refusal(Dashboard::open(url, "mode=live", &[]).await), 429);
    assert_eq!(refusal(Dashboard::connect(url, &other_key, "").await), 429);
    drop(unknown);
    wait_for("room", PATIENCE, async || poll(&pipeline, &other_key, &[]).await.status == 200).await;
    drop(one);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_told_by_close_codes_that_it_has_too_many_streams() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__LIVE__STREAMS_PER_CLIENT", "1")
        .start()
        .await;
    let (url, _one) = (pipeline.stream_url(), framed(&pipeline, &pipeline.key).await);
    let client = pipeline.client().at(url);
    let issued = client.post_json("/v1/stream/tokens", &json!({})).await.expect("an answer");
    let token = issued.body["token"].as_str().expect("a token");
    let mut by_token = Dashboard::open(url, &format!("token={token}"), &[]).await.expect("open");
    assert_eq!(by_token.close_code().await, 4009);
    let mut by_message = Dashboard::open(url, "mode=live", &[]).await.expect("open");
    by_message.say(&json!({"type": "auth", "token": token}).to_string()).await;
    assert_eq!(by_message.close_code().await, 4009);
    assert_eq!(refusal(Dashboard::connect(url, &pipeline.key, "").await), 429);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_the_rate_are_asked_to_come_a_little_later() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__LIVE__OPENS_PER_SECOND", "3")
        .start()
        .await;
    // Those without a key use up nothing.
    for _ in 0..20 {
        assert_eq!(poll(&pipeline, "", &[]).await.status, 401);
    }
    let polls = join_all((0..20).map(|_| poll(&pipeline, &pipeline.key, &[]))).await;
    let (let_in, refused): (Vec<_>, Vec<_>) = polls.iter().partition(|answer| answer.status == 200);
    assert!(let_in.len() >= 3 && !refused.is_empty(), "{} let in", let_in.len());
    refused.iter().for_each(|answer| assert_problem(answer, 503, "overloaded"));
    let again = async || poll(&pipeline, &pipeline.key, &[]).await.status == 200;
    wait_for("its turn", PATIENCE, again).await;
    pipeline.stop().await;
}

async fn streams_that_end_in_whatever_way_are_counted_no_more(engines: Engines) {
    let pipeline = Harness::new(engines)
        .set("PULSESTREAM__LIVE__STREAMS_PER_CLIENT", "40")
        .set("PULSESTREAM__LIVE__STREAMS_PER_ADDRESS", "40")
        .start()
        .await;
    let (url, admin) = (pipeline.stream_url(), admin(&pipeline).await);
    // More than there may be, were one of them to stay counted.
    for _ in 0..15 {
        let socket = framed(&pipeline, &pipeline.key).await;
        let mut bad = framed(&pipeline, &pipeline.key).await;
        bad.say("no command").await;
        assert_eq!(bad.close_code().await, 4400);
        let plain = Dashboard::connect(url, &pipeline.key, "").await.expect("connected");
        let sse = Sse::connect(url, &pipeline.key, "", "").await;
        let refused = Dashboard::connect(url, &pipeline.key, "deviceId=x").await;
        assert_eq!(refusal(refused), 400);
        assert_eq!(poll(&pipeline, &pipeline.key, &[]).await.status, 200);
        drop((socket, plain, sse));
    }
    wait_for("nothing to be open", PATIENCE, async || {
        let told = stats(&pipeline, &admin).await.body;
        let none = json!({"websocket": 0, "framed": 0, "sse": 0, "poll": 0});
        (&told["connections"], &told["subscriptions"]) == (&none, &json!(0))
    })
    .await;
    let all = join_all((0..40).map(|_| framed(&pipeline, &pipeline.key))).await;
    assert_eq!(stats(&pipeline, &admin).await.body["connections"]["framed"], 40);
    drop(all);
    pipeline.stop().await;
}

async fn a_broadcaster_tells_its_figures_to_an_admin_as_its_metrics_have_them(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let admin = admin(&pipeline).await;
    assert_problem(&stats(&pipeline, &pipeline.key).await, 403, "forbidden");
    assert_problem(&stats(&pipeline, "").await, 401, "missing_api_key");
    let mut socket = framed(&pipeline, &pipeline.key).await;
    let subscribe = json!({"type": "subscribe", "id": 1, "sub": "more", "cursor": "earliest"});
    socket.say(&subscribe.to_string()).await;
    assert_eq!(socket.next().await["type"], "ok");
    let _plain = Dashboard::connect(pipeline.stream_url(), &pipeline.key, "").await.expect("open");
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    assert_eq!(
        (socket.next().await["type"].clone(), socket.next().await["type"].clone()),
        (json!("events"), json!("events"))
    );
    let answer = stats(&pipeline, &admin).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, "no-store"));
    let told = answer.body;
    assert_eq!(told["connections"], json!({"websocket": 1, "framed": 1, "sse": 0, "poll": 0}));
    assert_eq!(told["subscriptions"], 3);
    assert_eq!(told["deliveries"], 3);
    assert_eq!(told["resumes"]["framed"]["from_now"], 1);
    assert_eq!(told["resumes"]["framed"]["recovered"], 1);
    assert_eq!(told["freshness"]["events"], 1);
    assert!(told["freshness"]["p99Ms"].is_u64(), "{told}");
    let broadcaster = Client::new(pipeline.stream_url(), "");
    for (name, number) in [
        ("pulsestream_live_subscriptions", &told["subscriptions"]),
        ("pulsestream_live_deliveries_total", &told["deliveries"]),
        ("pulsestream_live_queue_bytes", &told["queueBytes"]),
        ("pulsestream_live_gaps_total{reason=\"slow\"}", &told["gaps"]["slow"]),
        ("pulsestream_live_dropped_total{reason=\"slow\"}", &told["dropped"]["slow"]),
        (
            "pulsestream_live_resumes_total{transport=\"framed\",verdict=\"recovered\"}",
            &told["resumes"]["framed"]["recovered"],
        ),
        ("pulsestream_freshness_seconds_count{stage=\"socket\"}", &told["freshness"]["events"]),
    ] {
        assert_eq!(json!(broadcaster.figure(name).await.expect("a series")), *number, "{name}");
    }
    pipeline.stop().await;
}
