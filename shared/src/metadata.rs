//! What a device tells beside the value: a small map of strings to strings, numbers and booleans.
//!
//! Kept as compact JSON text, because every reader behind the gateway passes it on unread.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, DeserializeSeed, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{NO_NUL, push_json_string, push_number};
use crate::plain_json::PlainJson;

/// Most entries one event may carry.
pub const MAX_ENTRIES: usize = 64;

/// A checked map in compact JSON, keys in the order they came, each once (the last value wins).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata(Box<str>);

/// One thing wrong with a metadata map; `key` is empty when it is the map itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataFault {
    /// The entry at fault.
    pub key: String,
    /// A sentence for the person who sent it.
    pub message: &'static str,
}

impl JsonSchema for Metadata {
    fn schema_name() -> Cow<'static, str> {
        "Metadata".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What else the device tells.",
            "type": "object",
            "maxProperties": MAX_ENTRIES,
            "propertyNames": {"pattern": NO_NUL},
            "additionalProperties": {"type": ["string", "number", "boolean"], "pattern": NO_NUL}
        })
    }
}

impl Metadata {
    /// The compact JSON text.
    pub fn as_json(&self) -> &str {
        &self.0
    }

    /// Checks a JSON value and writes it compactly.
    ///
    /// # Errors
    /// Every fault at once: not an object, too many entries, values that are not scalar, NUL in text.
    pub fn from_json(raw: &RawValue) -> Result<Self, Vec<MetadataFault>> {
        let text = raw.get();
        let mut json = PlainJson::new(text);
        match Self::take(&mut json) {
            Some(metadata) if json.rest().is_empty() => Ok(metadata),
            _ => Self::rewritten(text),
        }
    }

    /// Takes what [`Metadata::as_json`] gave from the front; `None` when it may be something else.
    pub(crate) fn take(json: &mut PlainJson<'_>) -> Option<Self> {
        let text = json.rest();
        take_map(json)?;
        let (map, _) = text.split_at_checked(text.len() - json.rest().len())?;
        Some(Self(map.into()))
    }

    fn rewritten(text: &str) -> Result<Self, Vec<MetadataFault>> {
        if !text.starts_with('{') {
            return Err(vec![fault("", "Invalid input: expected an object")]);
        }
        let mut json = serde_json::Deserializer::from_str(text);
        let entries = Entries
            .deserialize(&mut json)
            .map_err(|_| vec![fault("", "Invalid input: expected an object of scalars")])?;
        let mut faults: Vec<_> = entries.iter().filter_map(Entry::fault).collect();
        if entries.len() > MAX_ENTRIES {
            faults.insert(0, fault("", "Too big: expected at most 64 entries"));
        }
        if faults.is_empty() { Ok(Self(write(&entries))) } else { Err(faults) }
    }
}

/// Keys that [`take_map`] compares with each other.
const FEW_KEYS: usize = 16;

/// Takes a map that is what [`write()`] makes of it, as in every record of the log. `None` also where that takes a
/// closer look.
fn take_map(json: &mut PlainJson<'_>) -> Option<()> {
    let mut keys = [""; FEW_KEYS];
    let mut count = 0;
    json.literal("{")?;
    if json.literal("}").is_some() {
        return Some(());
    }
    loop {
        let key = json.string()?;
        let (known, free) = keys.split_at_mut(count);
        *free.first_mut().filter(|_| !known.contains(&key))? = key;
        count += 1;
        json.literal(":")?;
        json.scalar()?;
        if json.literal(",").is_none() {
            return json.literal("}");
        }
    }
}

const NUL: &str = "must not contain U+0000";

fn fault(key: &str, message: &'static str) -> MetadataFault {
    MetadataFault { key: key.to_owned(), message }
}

struct Entry<'a> {
    key: String,
    value: &'a RawValue,
}

impl Entry<'_> {
    fn fault(&self) -> Option<MetadataFault> {
        let text = self.value.get();
        let wrong = match text.as_bytes().first() {
            _ if has_nul(&self.key) => NUL,
            Some(b't' | b'f') => return None,
            Some(b'"') => match serde_json::from_str::<Cow<'_, str>>(text) {
                Ok(text) if has_nul(&text) => NUL,
                Ok(_) => return None,
                // Half a surrogate pair is no text to a database.
                Err(_) => "Invalid input: expected well-formed Unicode",
            },
            Some(b'{' | b'[' | b'n') | None => "Invalid input: expected string, number or boolean",
            Some(_) if serde_json::from_str::<f64>(text).is_ok_and(f64::is_finite) => return None,
            Some(_) => "Invalid input: expected a finite number",
        };
        Some(fault(&self.key, wrong))
    }
}

/// PostgreSQL stores no U+0000 in text, so no text of an event may hold one.
pub(crate) fn has_nul(text: &str) -> bool {
    text.contains('\0')
}

fn write(entries: &[Entry<'_>]) -> Box<str> {
    let mut json = String::with_capacity(entries.len() * 24 + 2);
    json.push('{');
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        push_json_string(&mut json, &entry.key);
        json.push(':');
        push_value(&mut json, entry.value.get());
    }
    json.push('}');
    json.into_boxed_str()
}

/// Appends a scalar as it came, except that a number with an exponent is written out as the double it
/// is: `1e-200000` is a number to JSON and an error to a database.
fn push_value(json: &mut String, text: &str) {
    let exponent = !text.starts_with(['"', 't', 'f']) && text.contains(['e', 'E']);
    match serde_json::from_str(text) {
        Ok(number) if exponent => push_number(json, number),
        _ => json.push_str(text),
    }
}

/// Collects the entries of an object without building its values.
struct Entries;

impl<'de> DeserializeSeed<'de> for Entries {
    type Value = Vec<Entry<'de>>;

    fn deserialize<D: de::Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<Entry<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut entries: Vec<Entry<'de>> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
            // One entry over the limit is enough to refuse the map; more would only cost memory.
            if entries.len() > MAX_ENTRIES {
                continue;
            }
            match entries.iter_mut().find(|entry| entry.key == key) {
                Some(entry) => entry.value = value,
                None => entries.push(Entry { key, value }),
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str) -> Result<Metadata, Vec<MetadataFault>> {
        Metadata::from_json(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn scalars_are_kept_in_order_and_the_last_of_two_equal_keys_wins() {
        let metadata = parse(r#"{ "b": 1.50, "a" : "x" , "c":true, "b": 2 }"#).unwrap();
        assert_eq!(metadata.as_json(), r#"{"b":2,"a":"x","c":true}"#);
    }

    /// JSON that is nearly always what `write` makes of it.
    fn object() -> impl Strategy<Value = String> {
        let key = prop_oneof![3 => "\"[a-c]{0,2}\"", 1 => r#""(\\u0000|\\"|\\\\|é|,|:|\})?""#];
        let number =
            prop_oneof!["-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?", "[1-9]{1,2}[eE]-?[0-9]{1,3}"];
        let other = prop_oneof![Just("null"), Just("[1]"), Just("{\"a\":1}")];
        let value = prop_oneof![
            4 => key.clone(),
            4 => number,
            2 => any::<bool>().prop_map(|flag| flag.to_string()),
            1 => other.prop_map(str::to_owned),
        ];
        let space = prop_oneof![9 => Just(""), 1 => Just(" ")];
        let entry =
            (space, key, value).prop_map(|(space, key, value)| format!("{key}:{space}{value}"));
        prop::collection::vec(entry, 0..20).prop_map(|entries| format!("{{{}}}", entries.join(",")))
    }

    proptest! {
        #[test]
        fn what_is_taken_as_it_is_would_be_written_so(json in object()) {
            prop_assert_eq!(parse(&json), Metadata::rewritten(&json));
        }
    }

    #[test]
    fn what_was_written_is_taken_as_it_is() {
        let taken = |json: &str| Metadata::take(&mut PlainJson::new(json)).is_some();
        for json in ["{}", r#"{"a":1.50,"b":"x y","c":true,"":-0.1}"#, r#"{"unit":"°C","n":0}"#] {
            assert!(taken(json), "{json}");
            assert_eq!(parse(json).unwrap().as_json(), json);
        }
        let huge = format!("{{\"a\":{}}}", "9".repeat(400));
        let others = [
            r#"{"a": 1}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":null}"#,
            r#"{"a":1e5}"#,
            r#"{"a":"\n"}"#,
            &huge,
        ];
        assert!(!others.iter().any(|json| taken(json)));
    }

    #[test]
    fn every_entry_that_is_not_scalar_is_named() {
        let faults = parse(r#"{"a":null,"b":[1],"c":{"d":1},"e":1}"#).unwrap_err();
        let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "c"]);
    }

    #[test]
    fn a_map_of_65_entries_is_refused_and_one_of_64_is_not() {
        let json = |n: usize| {
            let entries: Vec<_> = (0..n).map(|i| format!("\"k{i}\":{i}")).collect();
            format!("{{{}}}", entries.join(","))
        };
        assert!(parse(&json(64)).is_ok());
        assert!(parse(&json(65)).is_err());
    }

    #[test]
    fn nul_is_refused_in_keys_and_values_and_only_maps_are_taken() {
        assert!(parse(r#"{"a":"x\u0000"}"#).is_err());
        assert!(parse(r#"{"a\u0000":"x"}"#).is_err());
        assert!(parse("[1]").is_err());
        assert!(parse(r#"{"a":1e400}"#).is_err());
        assert!(parse(r#"{"a":"\ud800"}"#).is_err());
        assert!(parse(r#"{"a":"\\u0000"}"#).is_ok(), "a backslash and five letters");
        assert_eq!(
            parse(r#"{"a":1e-200000,"b":2E2,"c":"e"}"#).unwrap().as_json(),
            r#"{"a":0,"b":200,"c":"e"}"#
        );
    }
}
