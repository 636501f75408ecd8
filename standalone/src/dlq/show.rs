//! `pulsestream dlq show`: everything that is known of one letter.

use pulsestream_shared::dead_letter::{Copies, PREFIX};
use pulsestream_shared::engine::AttachedLog;
use pulsestream_shared::log::Record;
use pulsestream_shared::process::Failure;
use pulsestream_shared::store::query::Found;
use pulsestream_shared::store::{Letter, LetterState, StoredEvent};
use serde_json::{Value, json};

use super::Desk;
use super::bytes::{readable, to_json};
use super::list::describe;
use crate::output::{print, time_text};

pub(super) async fn run(
    desk: &Desk,
    log: &AttachedLog,
    (letter, state): (Letter, LetterState),
    as_json: bool,
) -> Result<(), Failure> {
    let stored = stored(desk, &letter).await?;
    let found = Copies::of(vec![letter.clone()]).next(log.log.as_ref()).await;
    let copy = found.map_err(|error| error.to_string())?.pop().map(|(_, copy)| copy);
    let copy = copy.unwrap_or(Err("there is no copy"));
    if as_json {
        let object = object(desk, &letter, state, stored.as_ref(), copy);
        return Ok(print(&format!("{object}\n"))?);
    }
    let mut text = head(desk, &letter, state, stored.as_ref());
    match copy {
        Ok(copy) => text.push_str(&body(&copy)),
        Err(reason) => text.push_str(&field("bytes", reason)),
    }
    Ok(print(&text)?)
}

/// The event that is stored under the letter's id.
async fn stored(desk: &Desk, letter: &Letter) -> Result<Option<StoredEvent>, String> {
    let (Some(client), Some(id)) = (letter.client, letter.id) else { return Ok(None) };
    match desk.stores.query.event(client, id).await.map_err(|error| error.to_string())? {
        Some(Found::Stored(event)) => Ok(Some(*event)),
        _ => Ok(None),
    }
}

fn field(name: &str, value: &str) -> String {
    format!("{name:<10} {value}\n")
}

fn head(desk: &Desk, letter: &Letter, state: LetterState, stored: Option<&StoredEvent>) -> String {
    let died = time_text(letter.died_at_us.div_euclid(1_000)).unwrap_or_default();
    let state = match state {
        LetterState::Dead => format!("dead since {died}, died {} times", letter.attempt),
        LetterState::Replayed => "replayed, waits for the store".to_owned(),
    };
    let state = state.replace("died 1 times", "died once");
    let mut text = field("letter", &letter.place.to_string());
    text.push_str(&field("state", &state));
    text.push_str(&field("reason", &letter.reason));
    text.push_str(&field("error", &letter.detail));
    if let Some(sqlstate) = &letter.sqlstate {
        text.push_str(&field("sqlstate", sqlstate));
    }
    if let Some(client) = letter.client {
        let known = desk.clients.get(&client).map(|name| format!("{client}, {name}"));
        text.push_str(&field("client", &known.unwrap_or_else(|| client.to_string())));
    }
    if let Some(id) = letter.id {
        text.push_str(&field("event", &id.to_string()));
    }
    if let Some(stored) = stored {
        text.push_str(&field("stored", &stored_json(stored).to_string()));
    }
    text
}

/// Key, headers and bytes as they lie on the log.
fn body(copy: &Record) -> String {
    let value_of = |value: Option<&[u8]>| value.map_or_else(|| "(none)".to_owned(), one_line);
    let mut text = field("key", &value_of(copy.key.as_deref()));
    text.push_str("headers\n");
    for (name, value) in copy.headers.iter() {
        text.push_str(&format!("  {:<14} {}\n", one_line(name.as_bytes()), value_of(value)));
    }
    let (bytes, escaped) = readable(&copy.value);
    let how = if escaped { ", escaped" } else { "" };
    text.push_str(&format!("bytes ({}{how})\n{bytes}\n", copy.value.len()));
    text
}

fn one_line(value: &[u8]) -> String {
    readable(value).0.replace('\n', "\\n").replace('\t', "\\t")
}

fn object(
    desk: &Desk,
    letter: &Letter,
    state: LetterState,
    stored: Option<&StoredEvent>,
    copy: Result<Record, &str>,
) -> Value {
    let mut object = describe(desk, letter, state);
    object["stored"] = json!(stored.map(stored_json));
    object["copy"] = match copy {
        Ok(copy) => json!({
            "partition": copy.partition,
            "offset": copy.offset,
            "key": copy.key.as_deref().map(to_json),
            "headers": headers(&copy, false),
            "death": headers(&copy, true),
            "bytes": to_json(&copy.value),
        }),
        Err(reason) => json!({ "missing": reason }),
    };
    object
}

/// The record's own headers, or those that tell of its death.
fn headers(copy: &Record, of_death: bool) -> Vec<Value> {
    let wanted = copy.headers.iter().filter(|(name, _)| name.starts_with(PREFIX) == of_death);
    let pair =
        |(name, value): (&str, Option<&[u8]>)| json!({ "name": name, "value": value.map(to_json) });
    wanted.map(pair).collect()
}

fn stored_json(event: &StoredEvent) -> Value {
    let metadata = event.metadata.as_deref().map(serde_json::from_str::<Value>);
    json!({
        "id": event.id,
        "deviceId": event.device,
        "eventType": event.event_type,
        "value": event.value,
        "timestamp": event.timestamp_ms,
        "metadata": metadata.and_then(Result::ok),
        "receivedAt": event.received_at_us.div_euclid(1_000),
    })
}
