//! Stream tokens: what a page has instead of a key. How they are shown, what they allow, and when they end.

use std::time::Duration;

use pulsestream_e2e::client::{Answer, Client, Dashboard, PATIENCE, refusal};
use pulsestream_e2e::harness::{Engines, Harness, Pipeline, start_broadcaster};
use pulsestream_e2e::on_both;
use pulsestream_e2e::sse::Sse;
use pulsestream_shared::clock;
use pulsestream_shared::engine;
use pulsestream_shared::store::Scope;
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::contract::assert_problem;

on_both!(
    a_token_opens_every_transport_in_every_way_it_can_be_shown,
    a_token_shows_what_it_names_and_nothing_else,
    a_stream_ends_with_its_token_unless_that_is_renewed,
    a_token_is_worth_what_its_key_is_worth,
    a_token_shows_its_own_tenant_alone,
);

/// Asks for a token with that key.
async fn ask(pipeline: &Pipeline, key: &str, body: &Value) -> Answer {
    let client = Client::new(pipeline.stream_url(), key);
    client.post_json("/v1/stream/tokens", body).await.expect("an answer")
}

pub(crate) async fn token_of(pipeline: &Pipeline, key: &str, body: &Value) -> String {
    let answer = ask(pipeline, key, body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["token"].as_str().expect("a token").to_owned()
}

async fn token(pipeline: &Pipeline, body: &Value) -> String {
    token_of(pipeline, &pipeline.key, body).await
}

async fn open(pipeline: &Pipeline, query: &str, protocols: &str) -> Dashboard {
    let headers = [("sec-websocket-protocol", protocols)];
    Dashboard::open(pipeline.stream_url(), query, &headers).await.expect("connected")
}

/// A framed socket that has said `hello`.
async fn framed(pipeline: &Pipeline, query: &str, token: &str) -> Dashboard {
    let mut socket = open(pipeline, query, &format!("pulsestream.v1, bearer.{token}")).await;
    assert_eq!(socket.next().await["type"], "hello");
    socket
}

/// `GET` below `/v1/stream`, with nothing but what is in the path.
async fn get(pipeline: &Pipeline, path: &str) -> Answer {
    let client = Client::new(pipeline.stream_url(), "");
    client.get(&format!("/v1/stream/{path}")).await.expect("an answer")
}

async fn say(socket: &mut Dashboard, command: &Value) -> Value {
    socket.say(&command.to_string()).await;
    socket.next().await
}

/// The value of the next event, whatever the socket's form.
async fn value(socket: &mut Dashboard) -> Value {
    loop {
        let frame = socket.next().await;
        match frame["events"].get(0) {
            Some(event) => return event["value"].clone(),
            None if frame["value"].is_number() => return frame["value"].clone(),
            None => {}
        }
    }
}

async fn a_token_opens_every_transport_in_every_way_it_can_be_shown(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let before_ms = clock::unix_ms();
    let answer = ask(&pipeline, &pipeline.key, &json!({"ttlMs": 60_000})).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, "no-store"));
    let expires_at = answer.body["expiresAt"].as_i64().expect("a time");
    assert!((before_ms + 60_000..=clock::unix_ms() + 60_000).contains(&expires_at));
    let token = answer.body["token"].as_str().expect("a token");
    let url = pipeline.stream_url();

    let mut in_query = open(&pipeline, &format!("token={token}"), "").await;
    let mut alone = open(&pipeline, "", &format!("bearer.{token}")).await;
    assert_eq!(
        alone.protocol,
        format!("bearer.{token}"),
        "a browser wants one of its offers taken"
    );
    let mut offered = open(&pipeline, "", &format!("bearer.{token}, pulsestream.v1")).await;
    assert_eq!(offered.protocol, "pulsestream.v1");
    assert_eq!(offered.next().await["type"], "hello");
    let mut first = open(&pipeline, "mode=live", "").await;
    let auth = json!({"type": "auth", "id": 7, "token": token});
    assert_eq!(say(&mut first, &auth).await["type"], "hello");
    assert_eq!(first.next().await, json!({"type": "ok", "id": 7, "expiresAt": expires_at}));
    let mut sse = Sse::connect(url, "", &format!("token={token}"), "").await;
    assert_eq!(sse.next().await.expect("hello").event, "hello");
    let polled = get(&pipeline, &format!("poll?token={token}")).await;
    assert_eq!(polled.status, 200, "{polled:?}");
    let nobody = Client::new(url, "");
    let by_header = nobody.send(|http, url| {
        let request = http.get(format!("{url}/v1/stream/poll"));
        request.header("authorization", format!("Bearer {token}"))
    });
    assert_eq!(by_header.await.expect("an answer").status, 200);

    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    for socket in [&mut in_query, &mut alone, &mut offered, &mut first] {
        assert_eq!(value(socket).await, 1);
    }
    assert_eq!(sse.next().await.expect("an event").data["value"], 1);
    let cursor = polled.body["cursor"].as_str().expect("a cursor");
    let next = get(&pipeline, &format!("poll?wait=20&cursor={cursor}&token={token}")).await;
    assert_eq!(next.body["events"][0]["value"], 1);
    // It is for reading live events and nothing else.
    let sent = pipeline.client().with_key(token).post_json("/v1/events", &json!({})).await;
    assert_problem(&sent.expect("an answer"), 401, "invalid_api_key");
    assert_problem(&ask(&pipeline, token, &json!({})).await, 401, "invalid_api_key");
    pipeline.stop().await;
}

async fn a_token_shows_what_it_names_and_nothing_else(engines: Engines) {
    let pipeline = Harness::new(engines).devices(2).start().await;
    let [mine, other] = pipeline.devices[..] else { panic!("two devices") };
    let restricted =
        token(&pipeline, &json!({"deviceId": mine, "eventType": ["temperature"]})).await;
    let mut all = framed(&pipeline, "mode=live", &restricted).await;
    let mut plain = open(&pipeline, &format!("token={restricted}"), "").await;
    let mut first = open(&pipeline, "mode=live", "").await;
    let auth = |token: &str| json!({"type": "auth", "id": 1, "token": token});
    assert_eq!(say(&mut first, &auth(&restricted)).await["type"], "hello");
    assert_eq!(first.next().await["type"], "ok");
    for value in 0..3 {
        pipeline.client().accept(other, f64::from(value)).await;
    }
    pipeline.client().accept(mine, 9.0).await;
    for socket in [&mut all, &mut plain, &mut first] {
        assert_eq!(value(socket).await, 9, "the other device's were not shown");
    }

    let beyond = format!("token={restricted}&deviceId={other}");
    for transport in ["poll", "sse"] {
        assert_problem(
            &get(&pipeline, &format!("{transport}?{beyond}")).await,
            403,
            "token_restricted",
        );
    }
    for query in [&beyond, &format!("{beyond}&mode=live")] {
        assert_eq!(open(&pipeline, query, "").await.close_code().await, 4003, "{query}");
    }
    let mut late = open(&pipeline, &format!("mode=live&deviceId={other}"), "").await;
    late.say(&auth(&restricted).to_string()).await;
    assert_eq!(late.close_code().await, 4003);
    let subscribe = |device: Uuid| json!({"type": "subscribe", "id": 2, "sub": device, "deviceId": [device], "mode": "live"});
    let refused = say(&mut all, &subscribe(other)).await;
    assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("token_restricted")));
    assert!(refused["detail"].to_string().contains(&other.to_string()), "{refused}");
    assert_eq!(say(&mut all, &subscribe(mine)).await["type"], "ok");

    // A renewal may allow more, and not less than what is shown.
    let elsewhere = token(&pipeline, &json!({"deviceId": other})).await;
    let refused = say(&mut all, &auth(&elsewhere)).await;
    assert_eq!(refused["code"], "token_restricted", "{refused}");
    let free = token(&pipeline, &json!({})).await;
    assert_eq!(say(&mut all, &auth(&free)).await["type"], "ok");
    assert_eq!(say(&mut all, &subscribe(other)).await["type"], "ok");
    pipeline.client().accept(other, 10.0).await;
    assert_eq!(value(&mut all).await, 10);
    pipeline.stop().await;
}

async fn a_stream_ends_with_its_token_unless_that_is_renewed(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let short = token(&pipeline, &json!({"ttlMs": 4_000})).await;
    let mut renewed = framed(&pipeline, "", &short).await;
    let mut ends = framed(&pipeline, "mode=window", &short).await;
    let mut plain = open(&pipeline, &format!("token={short}"), "").await;
    let mut sse = Sse::connect(pipeline.stream_url(), "", &format!("token={short}"), "").await;
    let hello = sse.next().await.expect("hello");
    let poll = format!("poll?wait=30&cursor={}&token={short}", hello.id);
    let renewal = json!({"type": "auth", "id": "r", "token": token(&pipeline, &json!({})).await});
    assert_eq!(say(&mut renewed, &renewal).await["id"], "r");
    let bad = json!({"type": "auth", "id": "b", "token": short.replace("ps_token_", "ps_token_A")});
    assert_eq!(say(&mut renewed, &bad).await["code"], "invalid_token");

    let polled = get(&pipeline, &poll).await;
    assert_eq!((polled.status, &polled.body["events"]), (200, &json!([])), "{polled:?}");
    assert_eq!((ends.close_code().await, plain.close_code().await), (4001, 4001));
    let goaway = sse.next().await.expect("goaway");
    assert_eq!((goaway.event.as_str(), &goaway.data["code"]), ("goaway", &json!(4001)));
    assert_eq!(sse.next().await, None);
    assert_problem(&get(&pipeline, &format!("poll?token={short}")).await, 401, "invalid_token");
    assert_problem(&get(&pipeline, &format!("sse?token={short}")).await, 401, "invalid_token");
    assert_eq!(open(&pipeline, "", &format!("bearer.{short}")).await.close_code().await, 4001);

    pipeline.client().accept(pipeline.devices[0], 5.0).await;
    assert_eq!(value(&mut renewed).await, 5);
    // What went on by a token ends by its place, with a new one.
    let next = token(&pipeline, &json!({})).await;
    let missed = get(&pipeline, &format!("poll?wait=20&cursor={}&token={next}", goaway.id)).await;
    assert_eq!(missed.body["events"][0]["value"], 5, "{missed:?}");
    pipeline.stop().await;
}

async fn a_token_is_worth_what_its_key_is_worth(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let home = &pipeline.home;
    let writer = home.make_key_with("tenant", &[Scope::EventsWrite], None).await;
    assert_problem(&ask(&pipeline, &writer, &json!({})).await, 403, "forbidden");
    assert_problem(&ask(&pipeline, "", &json!({})).await, 401, "missing_api_key");

    let ends_at = clock::unix_ms() + 3_000;
    let key = home.make_key_with("tenant", &[Scope::EventsRead], Some(ends_at)).await;
    let of_key = token_of(&pipeline, &key, &json!({})).await;
    let mut socket = framed(&pipeline, "", &of_key).await;
    let mut plain = open(&pipeline, &format!("token={of_key}"), "").await;
    assert_eq!((socket.close_code().await, plain.close_code().await), (4010, 4010));
    assert_problem(&get(&pipeline, &format!("poll?token={of_key}")).await, 401, "invalid_api_key");
    assert_eq!(open(&pipeline, "", &format!("bearer.{of_key}")).await.close_code().await, 4010);
    pipeline.stop().await;
}

async fn a_token_shows_its_own_tenant_alone(engines: Engines) {
    let pipeline = Harness::new(engines).start().await;
    let theirs = pipeline.home.make_key("another").await;
    let (url, device) = (pipeline.stream_url(), pipeline.devices[0]);
    let their_token = token_of(&pipeline, &theirs, &json!({"deviceId": device})).await;
    let mut socket = framed(&pipeline, "cursor=earliest", &their_token).await;
    let mut own = Dashboard::connect(url, &pipeline.key, "mode=live").await.expect("connected");
    assert_eq!(own.next().await["type"], "hello");
    let auth = json!({"type": "auth", "id": 1, "token": their_token});
    let refused = say(&mut own, &auth).await;
    assert_eq!(refused["code"], "token_restricted", "{refused}");
    // Nor when nothing is shown that could tell the difference.
    let mut empty = framed(&pipeline, "", &token(&pipeline, &json!({})).await).await;
    let unsubscribe = json!({"type": "unsubscribe", "id": 2, "sub": "main"});
    assert_eq!(say(&mut empty, &unsubscribe).await["type"], "ok");
    let refused = say(&mut empty, &auth).await;
    assert_eq!(refused["code"], "token_restricted", "{refused}");
    pipeline.client().accept(device, 1.0).await;
    assert_eq!(value(&mut own).await, 1);
    pipeline.client().with_key(&theirs).accept(device, 2.0).await;
    assert_eq!(value(&mut socket).await, 2);
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revoking_a_key_ends_what_its_tokens_opened_and_no_more() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let key = pipeline.home.make_key("tenant").await;
    let of_key = token_of(&pipeline, &key, &json!({})).await;
    let of_other = token(&pipeline, &json!({})).await;
    let mut socket = framed(&pipeline, "", &of_key).await;
    let mut other = framed(&pipeline, "", &of_other).await;
    // One that goes on by another key's token ends with that key.
    let mut moved = framed(&pipeline, "", &of_key).await;
    let auth = json!({"type": "auth", "id": 1, "token": of_other});
    assert_eq!(say(&mut moved, &auth).await["type"], "ok");
    let stores = engine::open_store(&pipeline.home.config()).await.expect("store");
    let prefix: String = key.chars().take(20).collect();
    stores.keys.revoke(&prefix, clock::unix_ms()).await.expect("revoked");
    assert_eq!(socket.close_code().await, 4010);
    pipeline.client().accept(pipeline.devices[0], 3.0).await;
    assert_eq!((value(&mut other).await, value(&mut moved).await), (json!(3), json!(3)));
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_is_answered_so_that_its_browser_calls_it_clean() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let token = token(&pipeline, &json!({})).await;
    let mut framed = framed(&pipeline, "", &token).await;
    let mut plain = open(&pipeline, &format!("token={token}"), "").await;
    let mut unknown = open(&pipeline, "mode=live", "").await;
    for socket in [&mut framed, &mut plain, &mut unknown] {
        assert_eq!(socket.close().await, Some(1000));
    }
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broadcaster_takes_the_token_of_another() {
    let pipeline = Harness::new(Engines::Servers).start().await;
    let second = start_broadcaster(&pipeline.home).await;
    let token = token(&pipeline, &json!({"eventType": "temperature"})).await;
    let mut there =
        Dashboard::open(&second.url, &format!("token={token}"), &[]).await.expect("open");
    let mut here = open(&pipeline, &format!("token={token}"), "").await;
    pipeline.client().accept(pipeline.devices[0], 4.0).await;
    assert_eq!((value(&mut here).await, value(&mut there).await), (json!(4), json!(4)));
    second.stop().await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_does_not_say_who_it_is_is_closed_and_was_shown_nothing() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__LIVE__AUTH_TIMEOUT", "400ms")
        .start()
        .await;
    let url = pipeline.stream_url();
    let connect = async || open(&pipeline, "cursor=earliest", "").await;
    pipeline.client().accept(pipeline.devices[0], 1.0).await;
    let mut silent = connect().await;
    assert_eq!(silent.read_to_the_end().await, (Vec::new(), 4001));
    for first in [
        json!({"type": "auth", "token": "ps_token_AXV0b2RpZGFjdA"}),
        json!({"type": "auth", "token": pipeline.key}),
        json!({"type": "subscribe", "id": 1, "sub": "all"}),
        json!("hello"),
    ] {
        let mut socket = connect().await;
        socket.say(&first.to_string()).await;
        assert_eq!(socket.read_to_the_end().await, (Vec::new(), 4001), "{first}");
    }
    // A plain socket has no commands, so it must come with something.
    assert_eq!(refusal(Dashboard::open(url, "", &[]).await), 401);
    let bad = "token=ps_token_AXV0b2RpZGFjdA";
    assert_problem(&get(&pipeline, &format!("poll?{bad}")).await, 401, "invalid_token");
    assert_eq!(open(&pipeline, bad, "").await.close_code().await, 4001);
    // What its page may not do is told to a socket that came with a token; nothing is opened for it.
    let good = token(&pipeline, &json!({})).await;
    assert_eq!(
        open(&pipeline, &format!("token={good}&deviceId=x"), "").await.close_code().await,
        4400
    );
    let open_now = async || {
        let metrics = Client::new(url, "").get_text("/metrics").await.expect("metrics");
        metrics.contains("pulsestream_live_connections{transport=\"framed\"} 0\n")
            && metrics.contains("pulsestream_live_subscriptions 0\n")
    };
    wait_for("nothing to be open", PATIENCE, open_now).await;
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_token_that_might_allow_too_much_is_refused() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__LIVE__TOKEN_MAX_TTL", "10m")
        .start()
        .await;
    for (body, field) in [
        (json!({"deviceID": pipeline.devices[0]}), "deviceID"),
        (json!({"deviceId": []}), "deviceId"),
        (json!({"deviceId": "nope"}), "deviceId"),
        (json!({"eventType": ["x"]}), "eventType"),
        (json!({"ttlMs": 600_001}), "ttlMs"),
        (json!({"ttlMs": 999}), "ttlMs"),
        (json!([]), ""),
    ] {
        let answer = ask(&pipeline, &pipeline.key, &body).await;
        assert_problem(&answer, 400, "bad_request");
        assert_eq!(answer.body["errors"][0]["field"], field, "{answer:?}");
    }
    let types: Vec<_> = (0..100).map(|number| format!("{number:050}")).collect();
    let long = ask(&pipeline, &pipeline.key, &json!({"eventType": types})).await;
    assert_problem(&long, 400, "bad_request");
    let huge = json!({"eventType": "x".repeat(20_000)});
    assert_problem(&ask(&pipeline, &pipeline.key, &huge).await, 413, "payload_too_large");
    let client = pipeline.client().at(pipeline.stream_url());
    let raw = async |text: &'static str| {
        let sent = client.send(|http, url| http.post(format!("{url}/v1/stream/tokens")).body(text));
        sent.await.expect("an answer")
    };
    assert_problem(&raw("{").await, 400, "invalid_json");
    let usual = raw("").await;
    let left_ms = usual.body["expiresAt"].as_i64().expect("a time") - clock::unix_ms();
    let five_minutes = Duration::from_secs(300).as_millis() as i64;
    assert!((five_minutes - 20_000..=five_minutes).contains(&left_ms), "{left_ms}");
    let asked = client.send(|http, url| http.get(format!("{url}/v1/stream/tokens"))).await;
    assert_problem(&asked.expect("an answer"), 405, "method_not_allowed");
    pipeline.stop().await;
}
