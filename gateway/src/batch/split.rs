//! Where in a batch's body each event stands: an array, an object with the array `events`, or one event a
//! line (NDJSON).

use pulsestream_shared::problem::{Code, Problem};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::body::text;

/// The media type of one event a line; two more spellings are taken.
pub(super) const NDJSON: &str = "application/x-ndjson";

/// How a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Ndjson,
}

impl Format {
    /// By media type; without one it is JSON.
    ///
    /// # Errors
    /// 415.
    pub(crate) fn of(media_type: Option<&str>) -> Result<Self, Problem> {
        match media_type {
            None | Some("application/json") => Ok(Self::Json),
            Some(NDJSON | "application/ndjson" | "application/jsonl") => Ok(Self::Ndjson),
            Some(_) => Err(Problem::from(Code::UnsupportedMediaType)
                .detail("a batch is application/json or application/x-ndjson")),
        }
    }
}

#[derive(Deserialize)]
struct Wrapper<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

/// Finds the events. Lines of blanks are no events.
///
/// # Errors
/// 400 when the body is not JSON, or neither an array nor an object with the array `events`.
pub(crate) fn split(body: &[u8], format: Format) -> Result<Vec<&[u8]>, Problem> {
    let bytes = |raw: Vec<_>| raw.into_iter().map(|raw: &RawValue| raw.get().as_bytes()).collect();
    if format == Format::Ndjson {
        let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        return Ok(lines.filter(|line| !line.is_empty()).collect());
    }
    let body = text(body)?;
    if !body.trim_ascii_start().starts_with('{') {
        return serde_json::from_str(body).map(bytes).map_err(|e| not_json(&e));
    }
    let wrapper: Wrapper<'_> = serde_json::from_str(body).map_err(|e| not_json(&e))?;
    Ok(bytes(wrapper.events))
}

fn not_json(error: &serde_json::Error) -> Problem {
    let detail = if error.is_data() {
        format!("expected an array of events, or an object with the array \"events\": {error}")
    } else {
        error.to_string()
    };
    Problem::from(Code::InvalidJson).detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(body: &str, format: Format) -> Vec<&str> {
        let events = split(body.as_bytes(), format).unwrap();
        events.into_iter().map(|event| std::str::from_utf8(event).unwrap()).collect()
    }

    #[test]
    fn an_array_an_object_and_lines_hold_the_same_events() {
        let events = [r#"{"a":[1,"\n"]}"#, "7", "\"x\""];
        assert_eq!(texts(r#" [ {"a":[1,"\n"]} , 7,"x" ] "#, Format::Json), events);
        let object = r#"{"source":"x","events":[{"a":[1,"\n"]},7,"x"],"more":{}}"#;
        assert_eq!(texts(object, Format::Json), events);
        assert_eq!(texts("{\"a\":[1,\"\\n\"]}\r\n\n7\n \"x\"", Format::Ndjson), events);
        assert_eq!(texts("[]", Format::Json), [""; 0]);
        assert_eq!(texts("\n\n", Format::Ndjson), [""; 0]);
    }

    #[test]
    fn what_is_no_batch_is_told() {
        for body in ["", "7", "{}", "[1", "[1]x", r#"{"events":{}}"#, "\u{0}"] {
            let problem = split(body.as_bytes(), Format::Json).unwrap_err();
            assert_eq!(problem.code(), Code::InvalidJson, "{body}");
        }
        let skipped = split(b"{\"events\":[],\"more\":\"\xff\"}", Format::Json).unwrap_err();
        assert_eq!(skipped.code(), Code::InvalidJson);
    }
}
