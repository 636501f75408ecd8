//! What `docs/asyncapi.json` says of live streams is so: every frame a running pipeline sends is one it
//! describes, every example of a command is obeyed, and every example of a frame comes about.
//!
//! [`document`] reads it and holds frames to it. That it knows every type of frame there is, is tried beside
//! the code (`broadcaster/src/described.rs`).

use std::collections::BTreeMap;

use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness, Home, Pipeline, start_gateway_and_broadcaster};
use pulsestream_e2e::on_both;
use pulsestream_e2e::sse::{Sse, SseMessage};
use pulsestream_shared::auth;
use pulsestream_shared::testing::faults::Faults;
use pulsestream_shared::testing::wait_for;
use pulsestream_shared::{clock, log};
use serde_json::{Value, json};
use uuid::Uuid;

mod commands;
mod document;

use document::Held;

use crate::tokens::token_of;

on_both!(every_frame_is_as_described_and_every_example_comes_about);

async fn every_frame_is_as_described_and_every_example_comes_about(engines: Engines) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines).devices(2).faults(&faults).start().await;
    let mut held = Held::read();
    begun(&mut held, &pipeline).await;
    shown(&mut held, &pipeline).await;
    commands::obeyed(&mut held, &pipeline).await;
    commands::refused(&mut held, &pipeline, &faults).await;
    revoked(&mut held, &pipeline).await;
    drained(&mut held, pipeline).await;
    by_itself(&mut held).await;
    held.every_example_came_about();
}

/// The next frame.
pub(crate) async fn frame(held: &mut Held, socket: &mut Dashboard) -> Value {
    let frame = socket.next().await;
    held.hold("framed", frame["type"].as_str().expect("a type"), &frame);
    frame
}

/// The answer to a command; what else comes before it is held too.
pub(crate) async fn say(held: &mut Held, socket: &mut Dashboard, command: &Value) -> Value {
    socket.say(&command.to_string()).await;
    loop {
        let frame = frame(held, socket).await;
        if ["ok", "error", "pong"].contains(&frame["type"].as_str().expect("a type")) {
            return frame;
        }
    }
}

/// A framed socket, and what it was told first.
pub(crate) async fn framed(
    held: &mut Held,
    pipeline: &Pipeline,
    query: &str,
) -> (Dashboard, Value) {
    let connected = Dashboard::connect(pipeline.stream_url(), &pipeline.key, query).await;
    let mut socket = connected.expect("connected");
    let hello = frame(held, &mut socket).await;
    (socket, hello)
}

/// The next message with data.
async fn message(held: &mut Held, sse: &mut Sse) -> SseMessage {
    loop {
        let message = sse.next().await.expect("a message");
        if message.data != Value::Null {
            let name = if message.event.is_empty() { "message" } else { &message.event };
            held.hold("sse", name, &message.data);
            return message;
        }
    }
}

async fn poll(held: &mut Held, pipeline: &Pipeline, query: &str) -> Value {
    let client = pipeline.client().at(pipeline.stream_url());
    let path = format!("v1/stream/poll?{query}");
    let answer = client.send(|http, url| http.get(format!("{url}/{path}"))).await;
    let page = answer.expect("an answer").body;
    held.hold("poll", "page", &page);
    page
}

async fn begun(held: &mut Held, pipeline: &Pipeline) {
    for query in ["mode=live", "mode=latest", "cursor=earliest", "cursor=nonsense"] {
        framed(held, pipeline, query).await;
    }
    for query in ["", "mode=latest", "cursor=nonsense"] {
        poll(held, pipeline, query).await;
        let mut sse = Sse::connect(pipeline.stream_url(), &pipeline.key, query, "").await;
        message(held, &mut sse).await;
    }
}

async fn shown(held: &mut Held, pipeline: &Pipeline) {
    let (url, key) = (pipeline.stream_url(), &pipeline.key);
    let mut plain = Dashboard::connect(url, key, "").await.expect("connected");
    let (mut socket, _) = framed(held, pipeline, "mode=live").await;
    let mut sse = Sse::connect(url, key, "", "").await;
    message(held, &mut sse).await;
    let begun = poll(held, pipeline, "").await;
    let mut body = event(pipeline.devices[0], 21.5);
    body["metadata"] = json!({"unit": "C"});
    let answer = pipeline.client().post(Uuid::new_v4(), &body).await.expect("an answer");
    assert_eq!(answer.status, 202, "{answer:?}");
    pipeline.client().accept(pipeline.devices[0], 22.5).await;
    for _ in 0..2 {
        held.hold("plain", "event", &plain.next().await);
        assert_eq!(message(held, &mut sse).await.event, "");
    }
    assert_eq!(frame(held, &mut socket).await["type"], "events");
    let cursor = begun["cursor"].as_str().expect("a cursor");
    let page = poll(held, pipeline, &format!("wait=20&cursor={cursor}")).await;
    assert_ne!(page["events"], json!([]));
}

/// A stream ends with its key, and a token of that key is none.
async fn revoked(held: &mut Held, pipeline: &Pipeline) {
    let url = pipeline.stream_url();
    let key = pipeline.home.make_key("tenant").await;
    let of_key = token_of(pipeline, &key, &json!({})).await;
    let mut sse = Sse::connect(url, &key, "", "").await;
    message(held, &mut sse).await;
    revoke(pipeline, &key).await;
    assert_eq!(message(held, &mut sse).await.data["code"], 4010);
    let path = format!("/v1/stream/poll?token={of_key}");
    wait_for("the token to be refused", PATIENCE, async || {
        Client::new(url, "").get(&path).await.expect("an answer").status == 401
    })
    .await;
    let (mut socket, _) = framed(held, pipeline, "mode=live").await;
    let auth = json!({"type": "auth", "id": 7, "token": of_key});
    assert_eq!(say(held, &mut socket, &auth).await["code"], "invalid_api_key");
}

/// As `pulsestream keys revoke` does: the store, the mark in the cache, the notice.
async fn revoke(pipeline: &Pipeline, key: &str) {
    let (config, engine) = (pipeline.home.config(), pipeline.engine());
    let prefix: String = key.chars().take(20).collect();
    let record = engine.keys.revoke(&prefix, clock::unix_ms()).await.expect("revoked");
    engine.cache.revoke_key(&record.hash, config.keys.cache_ttl).await.expect("marked");
    auth::announce(engine.bus.as_ref(), &record.hash).await.expect("announced");
}

async fn drained(held: &mut Held, mut pipeline: Pipeline) {
    let (mut socket, _) = framed(held, &pipeline, "mode=live").await;
    let command = json!({"type": "subscribe", "id": 1, "sub": "boiler"});
    assert_eq!(say(held, &mut socket, &command).await["type"], "ok");
    let mut sse = Sse::connect(pipeline.stream_url(), &pipeline.key, "", "").await;
    message(held, &mut sse).await;
    let reads = async {
        while frame(held, &mut socket).await["type"] != "goaway" {}
        assert_eq!(socket.close_code().await, 1012);
        while message(held, &mut sse).await.event != "goaway" {}
    };
    tokio::join!(reads, pipeline.stop_services());
    pipeline.stop().await;
}

/// What comes though nobody sent anything that is asked for: a heartbeat with a place, and a gap.
async fn by_itself(held: &mut Held) {
    // The sockets are read all the time, so that pings are answered.
    let settings = [("PING_INTERVAL", "1s"), ("PONG_TIMEOUT", "900ms")];
    let settings =
        settings.map(|(name, value)| (format!("PULSESTREAM__LIVE__{name}"), value.into()));
    let home = Home::new(Engines::Embedded, BTreeMap::from(settings)).await;
    // Without a consumer, so that it is the broadcaster that finds the log replaced.
    let running = start_gateway_and_broadcaster(&home).await;
    let key = home.make_key("tenant").await;
    let query = format!("mode=live&deviceId={}", Uuid::new_v4());
    let mut socket = Dashboard::connect(&running.url, &key, &query).await.expect("connected");
    frame(held, &mut socket).await;
    Client::new(&running.url, &key).accept(Uuid::new_v4(), 1.0).await;
    assert_eq!(frame(held, &mut socket).await["events"], json!([]));
    let mut sse = Sse::connect(&running.url, &key, "", "").await;
    message(held, &mut sse).await;
    log::embedded::damage::empty_raw(&home.config().embedded.data_dir).await.expect("emptied");
    while frame(held, &mut socket).await["type"] != "gap" {}
    while message(held, &mut sse).await.event != "gap" {}
    running.stop().await;
    home.remove().await;
}
