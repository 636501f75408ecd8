//! The event: one measurement of one device, and its one JSON form.
//!
//! The form written here is what lies on the log, what a plain WebSocket frame holds and what the store
//! is filled from, so it is written and read in this file alone. Its field order is fixed:
//!
//! ```text
//! {"id":"…","deviceId":"…","eventType":"…","value":21.5,"timestamp":1795194569018,"metadata":{…}}
//! ```
//!
//! What a device may send is looser and is judged by the gateway; which headers travel beside the
//! value is the codec's matter.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::metadata::Metadata;
use crate::openapi::uuid;
use crate::plain_json::{PlainJson, is_plain};

/// Smallest and largest number of characters of an event type.
pub const EVENT_TYPE_CHARS: std::ops::RangeInclusive<usize> = 2..=50;

/// The pattern of text that may be stored: databases take no U+0000.
pub const NO_NUL: &str = r"^[^\u0000]*$";

/// Length of a UUID in its hyphenated form.
pub(crate) const UUID_CHARS: usize = 36;

/// Where the device's UUID stands inside [`Event::to_json`]; the record's key is a slice of the value.
pub(crate) const DEVICE_ID_RANGE: std::ops::Range<usize> = 57..57 + UUID_CHARS;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Reads the hyphenated form and no other: `{…}`, `urn:uuid:…` and 32 bare digits are refused.
            pub fn parse(text: &str) -> Option<Self> {
                (text.len() == UUID_CHARS).then(|| Uuid::try_parse(text).ok()).flatten().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                uuid()
            }
        }
    };
}

uuid_newtype! {
    /// The id of an event: the UUID of the `Idempotency-Key` it was sent with.
    EventId
}
uuid_newtype! {
    /// The id of a device; the record's key, hence its partition.
    DeviceId
}

/// The number of a client (tenant). Random, never serial and never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub i32);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One measurement.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Given by the client; unique within the client.
    pub id: EventId,
    /// The device it came from.
    pub device_id: DeviceId,
    /// 2 to 50 characters, no NUL.
    pub event_type: String,
    /// Finite.
    pub value: f64,
    /// The device's time, unix milliseconds, positive.
    pub timestamp_ms: i64,
    /// What else the device told.
    pub metadata: Option<Metadata>,
}

impl Event {
    /// The one JSON form, on a single line.
    pub fn to_json(&self) -> Vec<u8> {
        let metadata_bytes = self.metadata.as_ref().map_or(0, |metadata| metadata.as_json().len());
        let mut json = String::with_capacity(192 + self.event_type.len() + metadata_bytes);
        self.push_json(&mut json);
        json.into_bytes()
    }

    /// Appends [`Event::to_json`].
    pub(crate) fn push_json(&self, json: &mut String) {
        json.push_str("{\"id\":\"");
        push_uuid(json, self.id.0);
        json.push_str("\",\"deviceId\":\"");
        push_uuid(json, self.device_id.0);
        json.push_str("\",\"eventType\":");
        push_json_string(json, &self.event_type);
        json.push_str(",\"value\":");
        push_number(json, self.value);
        json.push_str(",\"timestamp\":");
        json.push_str(itoa::Buffer::new().format(self.timestamp_ms));
        if let Some(metadata) = &self.metadata {
            json.push_str(",\"metadata\":");
            json.push_str(metadata.as_json());
        }
        json.push('}');
    }

    /// Reads what [`Event::to_json`] wrote. `None` for any other JSON, be it an event or not, and for the few
    /// texts that have to be escaped.
    pub(crate) fn from_own_json(json: &str) -> Option<Self> {
        let mut json = PlainJson::new(json);
        json.literal("{\"id\":")?;
        let id = EventId::parse(json.string()?)?;
        json.literal(",\"deviceId\":")?;
        let device_id = DeviceId::parse(json.string()?)?;
        json.literal(",\"eventType\":")?;
        let event_type = json.string()?;
        json.literal(",\"value\":")?;
        let value = json.number()?.parse().ok()?;
        json.literal(",\"timestamp\":")?;
        let timestamp_ms = json.number()?.parse().ok().filter(|ms| *ms > 0)?;
        let metadata = match json.literal(",\"metadata\":") {
            Some(()) => Some(Metadata::take(&mut json)?),
            None => None,
        };
        let is_event = EVENT_TYPE_CHARS.contains(&event_type.chars().count()) && json.rest() == "}";
        let event_type = event_type.to_owned();
        is_event.then_some(Self { id, device_id, event_type, value, timestamp_ms, metadata })
    }
}

fn push_uuid(out: &mut String, uuid: Uuid) {
    out.push_str(uuid.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()));
}

fn push(out: &mut String, value: impl fmt::Display) {
    write!(out, "{value}").expect("writing to a String cannot fail");
}

/// Appends `text` as a JSON string.
pub(crate) fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    // Nearly every text.
    if text.bytes().all(is_plain) {
        out.push_str(text);
    } else {
        text.chars().for_each(|c| push_escaped(out, c));
    }
    out.push('"');
}

fn push_escaped(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if (c as u32) < 0x20 => push(out, format_args!("\\u{:04x}", c as u32)),
        c => out.push(c),
    }
}

/// Appends a finite number the way JavaScript prints it: `21`, not `21.0`, so that a reader of the
/// original system sees the same text.
pub(crate) fn push_number(out: &mut String, value: f64) {
    match whole(value) {
        Some(whole) => out.push_str(itoa::Buffer::new().format(whole)),
        None => out.push_str(ryu::Buffer::new().format_finite(value)),
    }
}

/// The number as an integer, when it is one and every double near it is exact.
pub fn whole(value: f64) -> Option<i64> {
    const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0; // 2^53
    #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
    (value.fract() == 0.0 && value.abs() < EXACT_INTEGERS).then_some(value as i64)
}

/// A finite number in other JSON than an event's, written as it is there: `21`, not `21.0`.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema)]
#[schemars(inline, extend("description" = "A finite number."))]
pub struct Number(pub f64);

impl Serialize for Number {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match whole(self.0) {
            Some(whole) => serializer.serialize_i64(whole),
            None => serializer.serialize_f64(self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            id: EventId(Uuid::from_u128(1)),
            device_id: DeviceId(Uuid::from_u128(2)),
            event_type: "temperature".into(),
            value: 21.0,
            timestamp_ms: 1_795_194_569_018,
            metadata: None,
        }
    }

    #[test]
    fn json_has_a_fixed_field_order_and_whole_numbers_without_a_fraction() {
        let json = String::from_utf8(event().to_json()).unwrap();
        assert_eq!(
            json,
            "{\"id\":\"00000000-0000-0000-0000-000000000001\",\
             \"deviceId\":\"00000000-0000-0000-0000-000000000002\",\
             \"eventType\":\"temperature\",\"value\":21,\"timestamp\":1795194569018}"
        );
    }

    #[test]
    fn a_number_reads_the_same_in_an_event_and_in_other_json() {
        for value in [21.0, -0.0, 0.1 + 0.2, 1e300, 5e-324, 9_007_199_254_740_993.0, f64::MIN] {
            let mut pushed = String::new();
            push_number(&mut pushed, value);
            let written = serde_json::to_string(&Number(value)).unwrap();
            let back = |text: &str| serde_json::from_str::<f64>(text).unwrap();
            assert_eq!((back(&pushed), back(&written)), (value, value), "{pushed} {written}");
        }
        assert_eq!(serde_json::to_string(&Number(21.0)).unwrap(), "21");
    }

    #[test]
    fn the_device_id_stands_where_the_record_key_is_sliced_from() {
        let json = event().to_json();
        assert_eq!(&json[DEVICE_ID_RANGE], event().device_id.to_string().as_bytes());
    }

    #[test]
    fn hostile_text_stays_inside_its_json_string() {
        let mut hostile = event();
        hostile.event_type = "a\"},\\\n\u{1}é".into();
        let parsed: serde_json::Value = serde_json::from_slice(&hostile.to_json()).unwrap();
        assert_eq!(parsed["eventType"], hostile.event_type);
    }

    #[test]
    fn only_the_hyphenated_form_of_a_uuid_is_read() {
        assert!(EventId::parse("73d7049a-9f6b-4a36-8d6c-0d6a8a4a4a4a").is_some());
        assert!(EventId::parse("73d7049a9f6b4a368d6c0d6a8a4a4a4a").is_none());
        assert!(EventId::parse("{73d7049a-9f6b-4a36-8d6c-0d6a8a4a4a4a}").is_none());
    }
}
