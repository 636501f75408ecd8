//! Query strings: each parameter once, none unknown, and every fault told at once. What a route knows is a
//! list of [`Param`]s, from which it is read and described.
//!
//! An unknown parameter is refused and not ignored: a filter with a letter missing would show more than
//! was asked for, and look right.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use pulsestream_shared::event::{DeviceId, EVENT_TYPE_CHARS, NO_NUL};
use pulsestream_shared::openapi::{Parameter, example, uuid};
use pulsestream_shared::problem::{Code, FieldError, Problem};
use pulsestream_shared::store::DeadReason;
use pulsestream_shared::store::query::Order;
use serde_json::{Value, json};
use url::form_urlencoded;

/// Faults told in one answer; a hostile query string must not make a long one.
const MOST_FAULTS: usize = 20;

/// Last time that is read, 9999-12-30, unix milliseconds: calendars of databases end soon after.
const LAST_MS: i64 = 253_402_128_000_000;
const TIMES: RangeInclusive<i64> = 0..=LAST_MS;
const STEPS: RangeInclusive<i64> = 1..=LAST_MS;

/// A parameter of a query string.
#[derive(Debug, Clone, Copy)]
pub(super) struct Param {
    pub(super) name: &'static str,
    kind: Kind,
    required: bool,
    /// What it means, and what its absence does.
    about: &'static str,
}

/// What a parameter holds; the functions below read it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Device,
    EventType,
    /// With an example.
    Time(i64),
    Step,
    Order,
    Reason,
    Cursor,
    /// At most so many rows.
    Limit(i64),
}

/// Where a span of time begins, and where it ends; around the events of the examples.
pub(super) const FROM: Kind = Kind::Time(example::TIMESTAMP_MS - 60_000);
pub(super) const TO: Kind = Kind::Time(example::TIMESTAMP_MS + 60_000);

impl Param {
    /// One that may be absent.
    pub(super) const fn new(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, kind, required: false, about }
    }

    /// One that must be there.
    pub(super) const fn required(name: &'static str, kind: Kind, about: &'static str) -> Self {
        Self { name, kind, required: true, about }
    }

    /// For the API's description.
    pub(super) fn described(&self) -> Parameter {
        let (schema, example) = self.kind.described();
        let (name, about) = (self.name, self.about.to_owned());
        Parameter { place: "query", name, required: self.required, about, schema, example }
    }
}

impl Kind {
    /// A schema and an example.
    fn described(self) -> (Value, Option<Value>) {
        let (least, most) = (EVENT_TYPE_CHARS.start(), EVENT_TYPE_CHARS.end());
        match self {
            Self::Device => (uuid().into(), Some(json!(example::DEVICE_ID))),
            Self::EventType => (
                json!({
                    "type": "string", "minLength": least, "maxLength": most, "pattern": NO_NUL
                }),
                Some(json!(example::EVENT_TYPE)),
            ),
            Self::Time(example) => (whole_numbers(TIMES), Some(json!(example))),
            Self::Step => (whole_numbers(STEPS), Some(json!(60_000))),
            Self::Order => (json!({"enum": ["asc", "desc"]}), Some(json!("desc"))),
            Self::Reason => (
                json!({"enum": DeadReason::ALL.map(DeadReason::as_str)}),
                Some(json!("out_of_range")),
            ),
            Self::Cursor => (json!({"type": "string"}), None),
            Self::Limit(most) => (whole_numbers(1..=most), Some(json!(10))),
        }
    }
}

fn whole_numbers(range: RangeInclusive<i64>) -> Value {
    json!({
        "type": "integer", "format": "int64", "minimum": range.start(), "maximum": range.end()
    })
}

/// The parameters of one request.
pub(super) struct Params<'q> {
    values: BTreeMap<Cow<'q, str>, Cow<'q, str>>,
    faults: Vec<FieldError>,
}

impl<'q> Params<'q> {
    /// Takes a query string apart, for a route that knows these parameters.
    pub(super) fn parse(query: Option<&'q str>, known: &[Param]) -> Self {
        let mut params = Self { values: BTreeMap::new(), faults: Vec::new() };
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !known.iter().any(|param| param.name == name) {
                params.refuse(&name, unknown(&name, known));
            } else if params.values.insert(name.clone(), value).is_some() {
                params.refuse(&name, "given more than once");
            }
        }
        for param in known {
            if param.required && !params.values.contains_key(param.name) {
                params.refuse(param.name, "is required");
            }
        }
        params
    }

    /// Reads a parameter; `None` when it is absent or wrong.
    pub(super) fn read<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match read(self.values.get(name)?) {
            Ok(value) => Some(value),
            Err(message) => {
                self.refuse(name, message);
                None
            }
        }
    }

    /// Notes a fault that is seen only beside other parameters.
    pub(super) fn refuse(&mut self, name: &str, message: impl Into<String>) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(FieldError { field: name.to_owned(), message: message.into() });
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// 400 with every fault.
    pub(super) fn check(&mut self) -> Result<(), Problem> {
        if self.faults.is_empty() {
            Ok(())
        } else {
            Err(Problem::from(Code::BadRequest).errors(std::mem::take(&mut self.faults)))
        }
    }
}

fn unknown(name: &str, known: &[Param]) -> String {
    let known: Vec<_> = known.iter().map(|param| param.name).collect();
    // Comparing takes the product of both lengths.
    let name: String = name.chars().take(40).collect();
    let near = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(candidate, &name), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len() / 2);
    match near {
        Some((_, candidate)) => format!("unknown parameter, did you mean {candidate}?"),
        None if known.is_empty() => "unknown parameter: there are none here".to_owned(),
        None => format!("unknown parameter, expected one of {}", known.join(", ")),
    }
}

/// A device's UUID.
pub(super) fn device_id(text: &str) -> Result<DeviceId, String> {
    DeviceId::parse(text).ok_or_else(|| "must be a UUID in hyphenated form".to_owned())
}

/// An event type, by the rule of ingestion.
pub(super) fn event_type(text: &str) -> Result<String, String> {
    if EVENT_TYPE_CHARS.contains(&text.chars().count()) && !text.contains('\0') {
        Ok(text.to_owned())
    } else {
        Err("expected 2 to 50 characters, none of them U+0000".to_owned())
    }
}

/// A time in unix milliseconds.
pub(super) fn time_ms(text: &str) -> Result<i64, String> {
    whole(text, TIMES).ok_or_else(|| "expected unix milliseconds, a whole number".to_owned())
}

/// A step in milliseconds.
pub(super) fn step_ms(text: &str) -> Result<i64, String> {
    whole(text, STEPS).ok_or_else(|| "expected milliseconds, a whole number from 1".to_owned())
}

/// `asc` or `desc`.
pub(super) fn order(text: &str) -> Result<Order, String> {
    match text {
        "asc" => Ok(Order::Ascending),
        "desc" => Ok(Order::Descending),
        _ => Err("expected asc or desc".to_owned()),
    }
}

/// A word of [`DeadReason`].
pub(super) fn reason(text: &str) -> Result<DeadReason, String> {
    let words = DeadReason::ALL.map(DeadReason::as_str).join(", ");
    let named = DeadReason::ALL.into_iter().find(|reason| reason.as_str() == text);
    named.ok_or_else(|| format!("expected one of {words}"))
}

/// How many rows at most.
pub(super) fn limit(most: i64) -> impl FnOnce(&str) -> Result<usize, String> {
    move |text| {
        whole(text, 1..=most)
            .and_then(|limit| usize::try_from(limit).ok())
            .ok_or_else(|| format!("expected a whole number from 1 to {most}"))
    }
}

fn whole(text: &str, range: RangeInclusive<i64>) -> Option<i64> {
    // No sign: a plus in a query string is a space.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && range.contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[&'static str]) -> Vec<Param> {
        names.iter().map(|name| Param::new(name, FROM, "")).collect()
    }

    fn faults(mut params: Params<'_>) -> Vec<(String, String)> {
        let problem = params.check().expect_err("faults");
        assert_eq!(problem.code(), Code::BadRequest);
        problem.fields().iter().map(|e| (e.field.clone(), e.message.clone())).collect()
    }

    #[test]
    fn every_fault_is_told_at_once_under_the_name_of_its_parameter() {
        let query = "deviceId=7&devceId=7&limit=0&limit=5&from=-1&order=up&eventType=%00x&zz=";
        let mut known = known(&["deviceId", "eventType", "from", "limit", "order"]);
        known.push(Param::required("step", Kind::Step, ""));
        let mut params = Params::parse(Some(query), &known);
        params.read("deviceId", device_id);
        params.read("eventType", event_type);
        params.read("from", time_ms);
        params.read("limit", limit(1_000));
        params.read("order", order);
        params.read("step", step_ms);
        let told = faults(params);
        let of = |name: &str| told.iter().find(|(field, _)| field == name).map(|(_, m)| m.as_str());
        assert_eq!(of("devceId"), Some("unknown parameter, did you mean deviceId?"));
        assert!(of("zz").is_some_and(|message| message.contains("expected one of deviceId")));
        assert_eq!(of("limit"), Some("given more than once"));
        for name in ["deviceId", "eventType", "from", "order", "step"] {
            assert!(of(name).is_some(), "{name}: {told:?}");
        }
    }

    #[test]
    fn what_is_right_is_read() {
        let query = "eventType=a%20b%26c&from=0&limit=1000&order=asc";
        let known = known(&["eventType", "from", "limit", "order", "to"]);
        let mut params = Params::parse(Some(query), &known);
        assert_eq!(params.read("eventType", event_type).as_deref(), Some("a b&c"));
        assert_eq!(params.read("from", time_ms), Some(0));
        assert_eq!(params.read("to", time_ms), None);
        assert_eq!(params.read("limit", limit(1_000)), Some(1_000));
        assert_eq!(params.read("order", order), Some(Order::Ascending));
        assert!(params.check().is_ok());
    }

    #[test]
    fn numbers_are_digits_within_their_range() {
        for text in ["", "+1", " 1", "-1", "1.0", "1e3", "99999999999999999999", "0x1", "１"] {
            assert!(time_ms(text).is_err(), "{text}");
        }
        assert!(limit(1_000)("1001").is_err());
        assert!(step_ms("0").is_err());
    }

    #[test]
    fn a_hostile_query_string_makes_no_long_answer() {
        let query = "x&".repeat(30_000);
        assert_eq!(faults(Params::parse(Some(&query), &known(&["limit"]))).len(), MOST_FAULTS);
    }
}
