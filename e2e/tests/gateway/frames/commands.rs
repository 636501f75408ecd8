//! What a client says: each example is done, and each refusal comes about.

use pulsestream_e2e::client::Dashboard;
use pulsestream_e2e::harness::Pipeline;
use pulsestream_shared::testing::faults::{Fault, Faults, Method};
use serde_json::{Value, json};

use super::document::Held;
use super::{frame, framed, say};
use crate::tokens::token_of;

/// Says each command as its example has it; with a token and a cursor of this pipeline, for none of another
/// works.
pub(crate) async fn obeyed(held: &mut Held, pipeline: &Pipeline) {
    let (mut socket, hello) = framed(held, pipeline, "mode=live").await;
    let token = token_of(pipeline, &pipeline.key, &json!({})).await;
    for mut command in held.commands() {
        for (member, value) in command.payload.as_object_mut().expect("an object") {
            match member.as_str() {
                "token" => *value = json!(token),
                "cursor" if *value != "earliest" => *value = hello["cursor"].clone(),
                _ => {}
            }
        }
        let answer = say(held, &mut socket, &command.payload).await;
        let kind = answer["type"].as_str().expect("a type").to_owned();
        assert!(command.answers.contains(&kind), "{}: {answer}", command.payload);
        assert_eq!(answer.get("id"), command.payload.get("id"));
        held.obeyed(command);
    }
    let lost = json!({"type": "subscribe", "id": 6, "sub": "lost", "cursor": "nonsense"});
    assert_eq!(say(held, &mut socket, &lost).await["recovered"], false);
}

pub(crate) async fn refused(held: &mut Held, pipeline: &Pipeline, faults: &Faults) {
    let (mut socket, _) = framed(held, pipeline, "mode=live").await;
    let mut expect = async |command: Value, code: &str| {
        let answer = say(held, &mut socket, &command).await;
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)));
    };
    expect(json!({"type": "subscribe", "id": 7}), "bad_command").await;
    expect(json!({"type": "dance", "id": 7}), "unknown_command").await;
    expect(json!({"type": "subscribe", "id": 7, "sub": "main"}), "subscribed_already").await;
    expect(json!({"type": "unsubscribe", "id": 7, "sub": "x"}), "unknown_subscription").await;
    expect(json!({"type": "auth", "id": 7, "token": "ps_token_junk"}), "invalid_token").await;
    faults.next(Method::Bounds, usize::MAX, Fault::Before);
    let earliest = json!({"type": "subscribe", "id": 7, "sub": "x", "cursor": "earliest"});
    expect(earliest, "unavailable").await;
    faults.clear();
    too_many(held, &mut socket).await;
    beyond_its_token(held, pipeline).await;
}

async fn too_many(held: &mut Held, socket: &mut Dashboard) {
    for number in 0..40 {
        let command = json!({"type": "subscribe", "id": 7, "sub": number.to_string()});
        let answer = say(held, socket, &command).await;
        if answer["type"] == "error" {
            assert_eq!(answer["code"], "too_many_subscriptions");
            return;
        }
    }
    panic!("40 subscriptions on one connection");
}

async fn beyond_its_token(held: &mut Held, pipeline: &Pipeline) {
    let [mine, other] = pipeline.devices[..] else { panic!("two devices") };
    let token = token_of(pipeline, &pipeline.key, &json!({"deviceId": mine})).await;
    let headers = [("sec-websocket-protocol", format!("pulsestream.v1, bearer.{token}"))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let opened = Dashboard::open(pipeline.stream_url(), "", &headers).await;
    let mut socket = opened.expect("connected");
    frame(held, &mut socket).await;
    let command = json!({"type": "subscribe", "id": 7, "sub": "x", "deviceId": other});
    assert_eq!(say(held, &mut socket, &command).await["code"], "token_restricted");
}
