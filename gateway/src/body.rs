//! One event as a device sends it: JSON in, an event or every fault of every field out.
//!
//! A faultless event is read in one pass. Anything else is read again field by field, so that one wrong
//! field hides no other: only senders at fault pay for that.

use std::borrow::Cow;
use std::time::Duration;

use pulsestream_shared::config;
use pulsestream_shared::event::{DeviceId, EVENT_TYPE_CHARS, Event, EventId, NO_NUL};
use pulsestream_shared::metadata::Metadata;
use pulsestream_shared::problem::{Code, FieldError, Problem};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A body that is right in everything but perhaps its age.
#[derive(Debug, PartialEq)]
pub(crate) struct Draft {
    pub(crate) event: Event,
    /// The timestamp is older than a first attempt may be. Whether that matters depends on when the
    /// first attempt was: see `commit`.
    pub(crate) too_old: bool,
}

/// One measurement. Fields that are not named here are ignored.
// The fields of a faultless event, and so the schema of every one.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Event")]
pub(crate) struct Plain<'a> {
    #[serde(borrow, default)]
    #[schemars(skip)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    #[schemars(with = "DeviceId")]
    device_id: Cow<'a, str>,
    #[serde(borrow)]
    #[schemars(length(min = *EVENT_TYPE_CHARS.start(), max = *EVENT_TYPE_CHARS.end()))]
    #[schemars(extend("pattern" = NO_NUL))]
    event_type: Cow<'a, str>,
    value: f64,
    /// The device's time, unix ms, near the server's.
    #[schemars(range(min = 1))]
    timestamp: i64,
    #[serde(borrow, default)]
    #[schemars(with = "Option<Metadata>")]
    metadata: Option<&'a RawValue>,
}

/// The fields, each as the text it came in, so that one wrong field hides no other.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    device_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    event_type: Option<&'a RawValue>,
    #[serde(borrow, default)]
    value: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
}

/// Where an event's id comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Id {
    /// From the request; a field `id` is ignored like any unknown one.
    Given(EventId),
    /// From the field `id`; where that is absent, this one, else it is a fault.
    Field(Option<EventId>),
}

impl Id {
    fn of(self, field: Option<&RawValue>) -> Result<EventId, String> {
        match (self, field) {
            (Self::Given(id), _) | (Self::Field(Some(id)), None) => Ok(id),
            (Self::Field(None), None) => {
                Err("must be a UUID when the request has no Idempotency-Key".to_owned())
            }
            (Self::Field(_), Some(_)) => EventId::parse(&string(field)?)
                .ok_or_else(|| "must be a UUID in hyphenated form".to_owned()),
        }
    }
}

/// Reads and checks an event.
///
/// # Errors
/// 400 with the place of the fault when it is not JSON, 400 with every faulty field otherwise.
pub(crate) fn read(
    body: &[u8],
    id: Id,
    now_ms: i64,
    config: &config::Ingest,
) -> Result<Draft, Problem> {
    let body = text(body)?;
    match read_plain(body, id, now_ms, config) {
        Some(draft) => Ok(draft),
        None => read_fields(body, id, now_ms, config),
    }
}

/// The body as text. The JSON library would not look at what it skips.
///
/// # Errors
/// 400 with the place of the first byte that is not UTF-8.
pub(crate) fn text(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|error| {
        let detail = format!("not UTF-8 from byte {} on", error.valid_up_to());
        Problem::from(Code::InvalidJson).detail(detail)
    })
}

/// `None` for anything that is not right in every field.
fn read_plain(body: &str, id: Id, now_ms: i64, config: &config::Ingest) -> Option<Draft> {
    // An array of the right values would be read as the struct.
    if !body.trim_ascii_start().starts_with('{') {
        return None;
    }
    let plain: Plain<'_> = serde_json::from_str(body).ok()?;
    let event = Event {
        id: id.of(plain.id).ok()?,
        device_id: DeviceId::parse(&plain.device_id)?,
        event_type: checked_event_type(plain.event_type.into_owned()).ok()?,
        value: Some(plain.value).filter(|value| value.is_finite())?,
        timestamp_ms: Some(plain.timestamp).filter(|timestamp| *timestamp > 0)?,
        metadata: plain.metadata.map(Metadata::from_json).transpose().ok()?,
    };
    match age(event.timestamp_ms, now_ms, config) {
        Age::Ahead => None,
        age => Some(Draft { event, too_old: age == Age::TooOld }),
    }
}

fn read_fields(body: &str, id: Id, now_ms: i64, config: &config::Ingest) -> Result<Draft, Problem> {
    let raw: &RawValue = serde_json::from_str(body).map_err(|error| not_json(&error))?;
    if !raw.get().starts_with('{') {
        let message = format!("Invalid input: expected object, received {}", kind_of(Some(raw)));
        return Err(invalid(vec![FieldError { field: String::new(), message }]));
    }
    let fields: Fields<'_> = serde_json::from_str(raw.get()).map_err(|error| not_json(&error))?;
    let mut faults = Faults::default();
    let id = faults.keep("id", id.of(fields.id));
    let device_id = faults.keep("deviceId", device_id(fields.device_id));
    let event_type = faults.keep("eventType", event_type(fields.event_type));
    let value = faults.keep("value", number(fields.value));
    let timestamp_ms = faults.keep("timestamp", timestamp(fields.timestamp));
    let metadata = faults.metadata(fields.metadata);
    let age = timestamp_ms.map_or(Age::Fine, |timestamp_ms| age(timestamp_ms, now_ms, config));
    if age == Age::Ahead || (age == Age::TooOld && !faults.0.is_empty()) {
        faults.add("timestamp", drift_message(config));
    }
    match (id, device_id, event_type, value, timestamp_ms, metadata) {
        (
            Some(id),
            Some(device_id),
            Some(event_type),
            Some(value),
            Some(timestamp_ms),
            Some(metadata),
        ) if faults.0.is_empty() => {
            let event = Event { id, device_id, event_type, value, timestamp_ms, metadata };
            Ok(Draft { event, too_old: age == Age::TooOld })
        }
        _ => Err(invalid(faults.0)),
    }
}

/// The answer to an event that was too old at its first attempt.
pub(crate) fn too_old(config: &config::Ingest) -> Problem {
    invalid(vec![FieldError { field: "timestamp".to_owned(), message: drift_message(config) }])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    Fine,
    Ahead,
    TooOld,
}

/// Whether an event may not be sent for the first time at `first_at_ms` any more.
pub(crate) fn is_too_old(timestamp_ms: i64, first_at_ms: i64, max_event_age: Duration) -> bool {
    first_at_ms.saturating_sub(timestamp_ms) > milliseconds(max_event_age)
}

fn age(timestamp_ms: i64, now_ms: i64, config: &config::Ingest) -> Age {
    if timestamp_ms.saturating_sub(now_ms) > milliseconds(config.clock_drift) {
        Age::Ahead
    } else if is_too_old(timestamp_ms, now_ms, config.max_event_age) {
        Age::TooOld
    } else {
        Age::Fine
    }
}

pub(crate) fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn drift_message(config: &config::Ingest) -> String {
    let five_minutes = Duration::from_secs(300);
    if config.clock_drift == five_minutes && config.max_event_age == five_minutes {
        return "Timestamp must be within 5 minutes of server time (clock drift check)".to_owned();
    }
    format!(
        "Timestamp must be at most {:?} ahead of and {:?} behind server time (clock drift check)",
        config.clock_drift, config.max_event_age
    )
}

fn not_json(error: &serde_json::Error) -> Problem {
    Problem::from(Code::InvalidJson).detail(error.to_string())
}

fn invalid(errors: Vec<FieldError>) -> Problem {
    Problem::from(Code::ValidationFailed).errors(errors)
}

#[derive(Default)]
struct Faults(Vec<FieldError>);

impl Faults {
    fn add(&mut self, field: &str, message: String) {
        self.0.push(FieldError { field: field.to_owned(), message });
    }

    fn keep<T>(&mut self, field: &str, read: Result<T, String>) -> Option<T> {
        read.map_err(|message| self.add(field, message)).ok()
    }

    /// `Some(None)` when absent.
    fn metadata(&mut self, raw: Option<&RawValue>) -> Option<Option<Metadata>> {
        let Some(raw) = raw else { return Some(None) };
        match Metadata::from_json(raw) {
            Ok(metadata) => Some(Some(metadata)),
            Err(found) => {
                for fault in found {
                    let dot = if fault.key.is_empty() { "" } else { "." };
                    self.add(&format!("metadata{dot}{}", fault.key), fault.message.to_owned());
                }
                None
            }
        }
    }
}

fn device_id(raw: Option<&RawValue>) -> Result<DeviceId, String> {
    DeviceId::parse(&string(raw)?).ok_or_else(|| "deviceId must be a valid UUID v4".to_owned())
}

fn event_type(raw: Option<&RawValue>) -> Result<String, String> {
    checked_event_type(string(raw)?)
}

fn checked_event_type(text: String) -> Result<String, String> {
    let chars = text.chars().count();
    if chars < *EVENT_TYPE_CHARS.start() {
        return Err("Too small: expected string to have >=2 characters".to_owned());
    }
    if chars > *EVENT_TYPE_CHARS.end() {
        return Err("Too big: expected string to have <=50 characters".to_owned());
    }
    if text.contains('\0') {
        return Err("must not contain U+0000".to_owned());
    }
    Ok(text)
}

fn number(raw: Option<&RawValue>) -> Result<f64, String> {
    let value: f64 = read_as(raw, "number")?;
    if value.is_finite() { Ok(value) } else { Err("expected a finite number".to_owned()) }
}

fn timestamp(raw: Option<&RawValue>) -> Result<i64, String> {
    read_as::<f64>(raw, "number")?;
    match read_as::<i64>(raw, "int") {
        Ok(timestamp) if timestamp > 0 => Ok(timestamp),
        Ok(_) => Err("Too small: expected number to be >0".to_owned()),
        Err(message) => Err(message),
    }
}

fn string(raw: Option<&RawValue>) -> Result<String, String> {
    read_as(raw, "string")
}

fn read_as<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>, expected: &str) -> Result<T, String> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
        .ok_or_else(|| format!("Invalid input: expected {expected}, received {}", kind_of(raw)))
}

fn kind_of(raw: Option<&RawValue>) -> &'static str {
    match raw.and_then(|raw| raw.get().bytes().next()) {
        None => "undefined",
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "boolean",
        Some(b'n') => "null",
        Some(_) => "number",
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
