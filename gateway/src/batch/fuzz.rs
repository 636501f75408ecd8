//! Hostile batches: split as their tree is, each event judged as it is alone.

use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::items::Place;
use super::split::split;
use super::*;
use crate::hostile::{CONFIG, Hostile, cases, hostile};

const NOW_MS: i64 = 1_795_194_569_018;
const KEY: EventId = EventId(Uuid::from_u128(5));

fn key() -> impl Strategy<Value = Option<EventId>> {
    prop_oneof![Just(None), Just(Some(KEY))]
}

/// A batch in either format.
fn batch() -> impl Strategy<Value = (Hostile, Format)> {
    prop_oneof![(hostile("batch"), Just(Format::Json)), (hostile("ndjson"), Just(Format::Ndjson)),]
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_batch_is_split_as_its_tree_is(body in hostile("batch")) {
        let split = split(&body, Format::Json);
        if let Err(problem) = &split {
            prop_assert_eq!(problem.code(), Code::InvalidJson);
        }
        // A tree says nothing of what nests deeper or holds a larger number than it can.
        let Ok(tree) = serde_json::from_slice::<Value>(&body) else { return Ok(()) };
        let events = match &tree {
            Value::Array(events) => Some(events),
            Value::Object(object) => object.get("events").and_then(Value::as_array),
            _ => None,
        };
        let twice = || body.windows(8).filter(|word| word == b"\"events\"").count() > 1;
        match (split, events) {
            (Ok(texts), Some(events)) => {
                let texts: Vec<Value> =
                    texts.iter().map(|text| serde_json::from_slice(text).unwrap()).collect();
                prop_assert_eq!(&texts, events);
            }
            (Err(_), None) => {}
            // Two lists of events are none, and a tree shows the last alone.
            (Err(_), Some(_)) if twice() => {}
            (split, events) => prop_assert!(false, "{split:?} {events:?}"),
        }
    }

    #[test]
    fn each_event_of_a_batch_is_judged_as_it_is_alone((body, format) in batch(), key in key()) {
        let items = match Items::read(&body, format, key, NOW_MS, &CONFIG.ingest) {
            Ok(items) => items,
            Err(problem) => {
                let codes = [Code::InvalidJson, Code::BatchInvalid, Code::PayloadTooLarge];
                prop_assert!(codes.contains(&problem.code()), "{problem:?}");
                return Ok(());
            }
        };
        let texts = split(&body, format).unwrap();
        prop_assert_eq!(texts.len(), items.places.len());
        let mut seen = Vec::new();
        for (index, (text, place)) in texts.into_iter().zip(&items.places).enumerate() {
            let name = index.to_string();
            let derived = key.map(|key| EventId(Uuid::new_v5(&key.0, name.as_bytes())));
            let alone = body::read(text, body::Id::Field(derived), NOW_MS, &CONFIG.ingest);
            match (place, alone) {
                (Place::Event(at), Ok(draft)) => {
                    prop_assert_eq!(*at, seen.len());
                    prop_assert!(!seen.contains(&draft.event.id), "an id twice");
                    prop_assert_eq!(&items.events[*at].event, &draft.event);
                    prop_assert_eq!(items.events[*at].too_old, draft.too_old);
                    seen.push(draft.event.id);
                }
                (Place::Repeat(id), Ok(draft)) => {
                    prop_assert_eq!(*id, draft.event.id);
                    prop_assert!(seen.contains(id));
                }
                (Place::Invalid(id, problem), Ok(draft)) => {
                    prop_assert_eq!(problem.code(), Code::IdempotencyMismatch);
                    prop_assert_eq!(*id, Some(draft.event.id));
                    prop_assert!(seen.contains(&draft.event.id));
                }
                (Place::Invalid(_, problem), Err(alone)) => {
                    prop_assert_eq!(problem.code(), alone.code());
                }
                (_, alone) => prop_assert!(false, "{index}: {alone:?}"),
            }
        }
        prop_assert_eq!(seen.len(), items.events.len());
        let per_device: u32 = items.per_device().iter().map(|(_, count)| count).sum();
        prop_assert_eq!(per_device as usize, seen.len());
    }

    #[test]
    fn lines_and_an_array_of_them_are_one_batch(body in hostile("ndjson"), key in key()) {
        let is_json = |line: &&[u8]| serde_json::from_slice::<&RawValue>(line).is_ok();
        let lines: Vec<_> = body.split(|byte| *byte == b'\n').filter(is_json).collect();
        if lines.is_empty() {
            return Ok(());
        }
        let array = [b"[", &lines.join(&b","[..])[..], b"]"].concat();
        let of_lines = Items::read(&lines.join(&b"\n"[..]), Format::Ndjson, key, NOW_MS, &CONFIG.ingest).unwrap();
        let of_array = Items::read(&array, Format::Json, key, NOW_MS, &CONFIG.ingest).unwrap();
        let events = |items: &Items| items.events.iter().map(|e| e.event.clone()).collect::<Vec<_>>();
        prop_assert_eq!(events(&of_lines), events(&of_array));
        let shape = |items: &Items| {
            let letters = items.places.iter().map(|place| match place {
                Place::Event(_) => 'e',
                Place::Repeat(_) => 'r',
                Place::Invalid(..) => 'i',
            });
            letters.collect::<String>()
        };
        prop_assert_eq!(shape(&of_lines), shape(&of_array));
    }
}
