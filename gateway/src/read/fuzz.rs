//! Hostile query strings and cursors.

use std::collections::BTreeMap;

use proptest::prelude::*;
use pulsestream_shared::event::{DeviceId, EventId};
use pulsestream_shared::store::query::SortKey;
use url::form_urlencoded;
use uuid::Uuid;

use super::cursor::Binding;
use super::events::KNOWN;
use super::params::{self, Params};
use super::*;
use crate::hostile::{CONFIG, Hostile, cases, changed, hostile};

const NOW_MS: i64 = 1_795_194_569_018;

fn binding() -> Binding {
    Binding::new(ClientId(7), "events", &())
}

/// Cursors of a list, and near relatives of them that are none.
fn cursor() -> impl Strategy<Value = Hostile> {
    let key = |n: i64| SortKey { timestamp_ms: n, pos: -n, id: EventId(Uuid::from_u128(9)) };
    let sealed = [binding().seal(&key(NOW_MS)), binding().seal(&key(0)), "=".to_owned()];
    changed(sealed.map(String::into_bytes).to_vec())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_query_is_right_in_everything_or_every_fault_is_named(query in hostile("query")) {
        let Ok(query) = std::str::from_utf8(&query) else { return Ok(()) };
        let mut params = Params::parse(Some(query), &KNOWN);
        let device = params.read("deviceId", params::device_id);
        let event_type = params.read("eventType", params::event_type);
        let from_ms = params.read("from", params::time_ms);
        let to_ms = params.read("to", params::time_ms);
        let order = params.read("order", params::order);
        let limit = params.read("limit", params::limit(1_000));
        let span = Bounds::new(&CONFIG).span(&mut params, (from_ms, to_ms), NOW_MS);

        let mut given = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            given.entry(name.into_owned()).or_insert_with(Vec::new).push(value.into_owned());
        }
        let strange = |(name, values): (&String, &Vec<String>)| {
            !KNOWN.iter().any(|param| param.name == name) || values.len() > 1
        };
        match params.check() {
            Err(problem) => {
                prop_assert_eq!(problem.code(), Code::BadRequest);
                prop_assert!((1..=20).contains(&problem.fields().len()));
            }
            Ok(()) => {
                prop_assert!(!given.iter().any(strange), "{given:?}");
                prop_assert!(span.from_ms <= span.to_ms);
                let longest_ms = CONFIG.read.max_span.as_millis() as i64;
                prop_assert!(span.to_ms - span.from_ms <= longest_ms, "{span:?}");
                // What was read is what was given, and nothing given was left out.
                let first = |name: &str| given.get(name).map(|values| values[0].clone());
                let number = |name: &str| first(name).and_then(|text| text.parse::<i64>().ok());
                prop_assert_eq!(event_type, first("eventType"));
                prop_assert_eq!(device.map(|d| d.to_string()), first("deviceId").map(|d| d.to_lowercase()));
                prop_assert_eq!((from_ms, to_ms), (number("from"), number("to")));
                prop_assert_eq!(limit.map(|limit| limit as i64), number("limit"));
                prop_assert_eq!(order.is_some(), given.contains_key("order"));
            }
        }
    }

    #[test]
    fn a_cursor_that_opens_is_one_that_was_sealed(text in cursor()) {
        let Ok(text) = std::str::from_utf8(&text) else { return Ok(()) };
        if let Ok(key) = binding().open::<SortKey>(text) {
            prop_assert_eq!(binding().seal(&key), text);
        }
        prop_assert!(binding().open::<DeviceId>(text).is_err());
    }
}
