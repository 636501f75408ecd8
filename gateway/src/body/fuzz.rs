//! Hostile bodies, held against a reading of the whole tree of values.
//!
//! The tree says nothing of some bodies that are read all the same: what stands in ignored fields may be
//! nested deeper, or be a larger number, than a tree holds.

use proptest::prelude::*;
use pulsestream_shared::codec::{Accepted, decode, encode};
use pulsestream_shared::event::ClientId;
use pulsestream_shared::log::Record;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::*;
use crate::hostile::{CONFIG, cases, hostile};

const NOW_MS: i64 = 1_795_194_569_018;
const FIVE_MINUTES_MS: i64 = 300_000;
const KEY: EventId = EventId(Uuid::from_u128(1));
const KNOWN: [&str; 6] = ["id", "deviceId", "eventType", "value", "timestamp", "metadata"];

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_body_is_read_as_its_tree_is(body in hostile("body"), own_id: bool) {
        let id = if own_id { Id::Field(None) } else { Id::Given(KEY) };
        let read = read(&body, id, NOW_MS, &CONFIG.ingest);
        if let Err(problem) = &read {
            let told = problem.code() == Code::ValidationFailed && !problem.fields().is_empty();
            prop_assert!(told || problem.code() == Code::InvalidJson, "{problem:?}");
        }
        let slow = text(&body).and_then(|body| read_fields(body, id, NOW_MS, &CONFIG.ingest));
        prop_assert_eq!(slow.as_ref().ok(), read.as_ref().ok());
        let Some(tree) = Tree::read(&body) else { return Ok(()) };
        let expected = tree.draft(id);
        prop_assert_eq!(read.is_ok(), expected.is_some(), "{:?}", read);
        let (Ok(mut draft), Some(expected)) = (read, expected) else { return Ok(()) };
        let metadata = draft.event.metadata.take();
        prop_assert_eq!(&draft, &expected);
        let metadata = metadata.map(|map| serde_json::from_str::<Value>(map.as_json()).unwrap());
        prop_assert_eq!(flat(metadata.as_ref()), flat(tree.0.get("metadata")));
    }

    #[test]
    fn what_is_read_comes_back_from_its_record_and_from_its_own_json(body in hostile("body")) {
        let Ok(Draft { mut event, .. }) = read(&body, Id::Given(KEY), NOW_MS, &CONFIG.ingest) else {
            return Ok(());
        };
        // -0 is written as 0.
        event.value += 0.0;
        let again = read(&event.to_json(), Id::Field(None), NOW_MS, &CONFIG.ingest);
        prop_assert_eq!(&again.unwrap().event, &event);
        let accepted =
            Accepted { event, client: ClientId(7), received_at_us: 5, unsure: None, replay: false };
        let new = encode(&accepted, 12);
        let (partition, key, value, headers) = (new.partition, new.key, new.value, new.headers);
        let record = Record { partition, offset: 0, logged_at_ms: 0, key, value, headers };
        prop_assert_eq!(decode(&record), Ok(accepted));
    }
}

/// A body as a tree, and the names in it as often as they stand there.
struct Tree(Map<String, Value>, Vec<String>);

impl Tree {
    fn read(body: &[u8]) -> Option<Self> {
        match serde_json::from_slice(body).ok()? {
            Value::Object(map) => Some(Self(map, serde_json::from_slice::<Names>(body).ok()?.0)),
            _ => Some(Self(Map::new(), Vec::new())),
        }
    }

    /// The event without its metadata; `None` when anything is wrong.
    fn draft(&self, id: Id) -> Option<Draft> {
        let Self(fields, names) = self;
        let twice = |known: &&str| names.iter().filter(|name| name == known).count() > 1;
        if KNOWN.iter().any(twice) || !metadata_is_flat(fields.get("metadata")) {
            return None;
        }
        let id = match (id, fields.get("id")) {
            (Id::Given(id), _) => id,
            (Id::Field(_), found) => EventId(hyphenated(found?)?),
        };
        let event_type = fields.get("eventType")?.as_str().filter(|text| is_text(text))?;
        let timestamp_ms = fields.get("timestamp")?.as_i64().filter(|time| *time > 0)?;
        let event = Event {
            id,
            device_id: DeviceId(hyphenated(fields.get("deviceId")?)?),
            event_type: Some(event_type)
                .filter(|text| (2..=50).contains(&text.chars().count()))?
                .to_owned(),
            value: fields.get("value")?.as_f64()?,
            timestamp_ms,
            metadata: None,
        };
        let ahead_ms = timestamp_ms.saturating_sub(NOW_MS);
        let too_old = ahead_ms < -FIVE_MINUTES_MS;
        (ahead_ms <= FIVE_MINUTES_MS).then_some(Draft { event, too_old })
    }
}

fn metadata_is_flat(metadata: Option<&Value>) -> bool {
    match metadata {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => {
            map.len() <= 64
                && map.iter().all(|(key, value)| {
                    let scalar = match value {
                        Value::Null | Value::Array(_) | Value::Object(_) => false,
                        Value::String(text) => is_text(text),
                        Value::Bool(_) | Value::Number(_) => true,
                    };
                    is_text(key) && scalar
                })
        }
        Some(_) => false,
    }
}

fn is_text(text: &str) -> bool {
    !text.contains('\0')
}

fn hyphenated(value: &Value) -> Option<Uuid> {
    let text = value.as_str()?;
    let groups: Vec<_> = text.split('-').map(str::len).collect();
    let hex = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    let digits = || u128::from_str_radix(&text.replace('-', ""), 16).ok();
    (groups == [8, 4, 4, 4, 12] && hex).then(digits).flatten().map(Uuid::from_u128)
}

/// Scalars by name; numbers by their value, however they are written.
fn flat(metadata: Option<&Value>) -> Vec<(String, String)> {
    let show = |value: &Value| match value.as_f64() {
        Some(number) => format!("{:?}", number + 0.0),
        None => value.to_string(),
    };
    let map = metadata.and_then(Value::as_object);
    let mut all: Vec<_> =
        map.into_iter().flatten().map(|(key, value)| (key.clone(), show(value))).collect();
    all.sort();
    all
}

struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Names;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Names, M::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = map.next_entry()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_map(All)
    }
}
