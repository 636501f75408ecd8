//! Query strings: each parameter once, none unknown, and every fault told at once.
//!
//! An unknown parameter is refused and not ignored: a filter with a letter missing would show more than
//! was asked for, and look right.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pulsestream_shared::event::{DeviceId, EVENT_TYPE_CHARS};
use pulsestream_shared::problem::{Code, FieldError, Problem};
use pulsestream_shared::store::query::Order;
use url::form_urlencoded;

/// Faults told in one answer; a hostile query string must not make a long one.
const MOST_FAULTS: usize = 20;

/// Last time that is read, 9999-12-30, unix milliseconds: calendars of databases end soon after.
const LAST_MS: i64 = 253_402_128_000_000;

/// The parameters of one request.
pub(super) struct Params<'q> {
    values: BTreeMap<Cow<'q, str>, Cow<'q, str>>,
    faults: Vec<FieldError>,
}

impl<'q> Params<'q> {
    /// Takes a query string apart, for a route that knows these names.
    pub(super) fn parse(query: Option<&'q str>, known: &[&str]) -> Self {
        let mut params = Self { values: BTreeMap::new(), faults: Vec::new() };
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !known.contains(&name.as_ref()) {
                params.refuse(&name, unknown(&name, known));
            } else if params.values.insert(name.clone(), value).is_some() {
                params.refuse(&name, "given more than once");
            }
        }
        params
    }

    /// Reads a parameter that may be absent.
    pub(super) fn optional<T>(
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

    /// Reads a parameter that must be there.
    pub(super) fn required<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if !self.values.contains_key(name) {
            self.refuse(name, "is required");
        }
        self.optional(name, read)
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

fn unknown(name: &str, known: &[&str]) -> String {
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
    whole(text, 0..=LAST_MS).ok_or_else(|| "expected unix milliseconds, a whole number".to_owned())
}

/// A step in milliseconds.
pub(super) fn step_ms(text: &str) -> Result<i64, String> {
    whole(text, 1..=LAST_MS)
        .ok_or_else(|| "expected milliseconds, a whole number from 1".to_owned())
}

/// `asc` or `desc`.
pub(super) fn order(text: &str) -> Result<Order, String> {
    match text {
        "asc" => Ok(Order::Ascending),
        "desc" => Ok(Order::Descending),
        _ => Err("expected asc or desc".to_owned()),
    }
}

/// How many rows at most.
pub(super) fn limit(most: i64) -> impl FnOnce(&str) -> Result<usize, String> {
    move |text| {
        whole(text, 1..=most)
            .and_then(|limit| usize::try_from(limit).ok())
            .ok_or_else(|| format!("expected a whole number from 1 to {most}"))
    }
}

fn whole(text: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
    // No sign: a plus in a query string is a space.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && range.contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(mut params: Params<'_>) -> Vec<(String, String)> {
        let problem = params.check().expect_err("faults");
        assert_eq!(problem.code(), Code::BadRequest);
        problem.fields().iter().map(|e| (e.field.clone(), e.message.clone())).collect()
    }

    #[test]
    fn every_fault_is_told_at_once_under_the_name_of_its_parameter() {
        let query = "deviceId=7&devceId=7&limit=0&limit=5&from=-1&order=up&eventType=%00x&zz=";
        let known = ["deviceId", "eventType", "from", "limit", "order", "step"];
        let mut params = Params::parse(Some(query), &known);
        params.optional("deviceId", device_id);
        params.optional("eventType", event_type);
        params.optional("from", time_ms);
        params.optional("limit", limit(1_000));
        params.optional("order", order);
        params.required("step", step_ms);
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
        let mut params = Params::parse(Some(query), &["eventType", "from", "limit", "order", "to"]);
        assert_eq!(params.required("eventType", event_type).as_deref(), Some("a b&c"));
        assert_eq!(params.optional("from", time_ms), Some(0));
        assert_eq!(params.optional("to", time_ms), None);
        assert_eq!(params.optional("limit", limit(1_000)), Some(1_000));
        assert_eq!(params.optional("order", order), Some(Order::Ascending));
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
        assert_eq!(faults(Params::parse(Some(&query), &["limit"])).len(), MOST_FAULTS);
    }
}
