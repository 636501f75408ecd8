//! `POST /v1/stream/tokens`: a stream token for an API key.
//!
//! What is restricted by mistake is seen at once, what is not restricted by mistake is seen by the wrong
//! person: so members nobody knows and empty lists are refused here, and not ignored as elsewhere.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use pulsestream_shared::config;
use pulsestream_shared::event::{DeviceId, EVENT_TYPE_CHARS, whole};
use pulsestream_shared::openapi::{Answer, Body, Operation, example};
use pulsestream_shared::problem::{Code, FieldError, Problem};
use pulsestream_shared::store::Scope;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use url::form_urlencoded;

use crate::filter::{Audience, Filter, MOST};
use crate::stream::Stream;

/// Bytes of a body at most: the longest that names what a token can hold.
pub(crate) const MOST_BODY_BYTES: usize = 16 * 1_024;
/// How long the body may take.
const BODY_PATIENCE: Duration = Duration::from_secs(5);
const SHORTEST_TTL_MS: u64 = 1_000;

/// What is answered.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "StreamToken")]
struct Issued {
    /// Secret, like a key.
    token: String,
    /// Unix ms.
    expires_at: i64,
}

/// What is asked for.
struct Wanted {
    only: Filter,
    ttl: Duration,
}

pub(crate) async fn issue(State(stream): State<Arc<Stream>>, request: Request) -> Response {
    match answer(&stream, request).await {
        Ok(issued) => {
            stream.metrics.tokens.inc();
            let no_store = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            ([no_store], Json(issued)).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

async fn answer(stream: &Stream, request: Request) -> Result<Issued, Problem> {
    let key = stream.access.key(request.headers(), Scope::EventsRead).await?;
    let body = timeout(BODY_PATIENCE, Bytes::from_request(request, &()));
    let body = body.await.map_err(|_| Code::RequestTimeout)?.map_err(unread)?;
    let wanted = Wanted::read(&body, Audience::Client(key.client), &stream.config)?;
    let (token, expires_at) = stream.access.issue(&key, wanted.only, wanted.ttl)?;
    Ok(Issued { token, expires_at })
}

fn unread(rejection: BytesRejection) -> Problem {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => Code::RequestTimeout.into(), // it ended before its length
    }
}

fn too_large() -> Problem {
    let detail = format!("a request for a token is at most {MOST_BODY_BYTES} bytes");
    Problem::from(Code::PayloadTooLarge).detail(detail)
}

impl Wanted {
    /// Reads a body; an empty one wants all defaults.
    fn read(body: &[u8], audience: Audience, config: &config::Live) -> Result<Self, Problem> {
        let members: Map<String, Value> = if body.is_empty() {
            Map::new()
        } else {
            let read = serde_json::from_slice::<Value>(body);
            match read
                .map_err(|fault| Problem::from(Code::InvalidJson).detail(fault.to_string()))?
            {
                Value::Object(members) => members,
                _ => return Err(wrong(vec![fault("", "expected an object")])),
            }
        };
        let (mut errors, mut ttl) = (Vec::new(), config.token_ttl);
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in &members {
            let read = match name.as_str() {
                "ttlMs" => ttl_of(value, config).map(|wanted| ttl = wanted),
                "deviceId" | "eventType" => texts(value).map(|texts| {
                    query.extend_pairs(texts.into_iter().map(|text| (name, text)));
                }),
                _ => Err("is no member of this request".to_owned()),
            };
            errors.extend(read.err().map(|message| fault(name, message)));
        }
        match Filter::parse(audience, &query.finish()) {
            Ok(only) if errors.is_empty() => Ok(Self { only, ttl }),
            Ok(_) => Err(wrong(errors)),
            Err(problem) => {
                errors.extend_from_slice(problem.fields());
                Err(wrong(errors))
            }
        }
    }
}

fn wrong(errors: Vec<FieldError>) -> Problem {
    Problem::from(Code::BadRequest).errors(errors)
}

fn fault(field: &str, message: impl Into<String>) -> FieldError {
    FieldError { field: field.to_owned(), message: message.into() }
}

fn ttl_of(value: &Value, config: &config::Live) -> Result<Duration, String> {
    let most_ms = longest_ms(config);
    // JSON has one kind of number: 60000.0 is as whole as 60000.
    let ttl_ms = value.as_f64().and_then(whole).and_then(|ttl_ms| u64::try_from(ttl_ms).ok());
    let ttl_ms = ttl_ms.filter(|ttl_ms| (SHORTEST_TTL_MS..=most_ms).contains(ttl_ms));
    ttl_ms.map(Duration::from_millis).ok_or_else(|| {
        format!("expected a whole number of milliseconds, {SHORTEST_TTL_MS} to {most_ms}")
    })
}

fn longest_ms(config: &config::Live) -> u64 {
    u64::try_from(config.token_max_ttl.as_millis()).unwrap_or(u64::MAX)
}

/// One text, or a list of them.
fn texts(value: &Value) -> Result<Vec<&str>, String> {
    let values = match value {
        Value::Array(values) => &values[..],
        value => std::slice::from_ref(value),
    };
    if values.is_empty() {
        return Err("names none: leave it out to allow all".to_owned());
    }
    let texts = values.iter().map(|value| value.as_str());
    texts.collect::<Option<_>>().ok_or_else(|| "expected a text or a list of texts".to_owned())
}

/// The route in the API's description.
pub(crate) fn operation(config: &config::Live) -> Operation {
    let expires_at = example::TIMESTAMP_MS + 300_000;
    let token = "ps_token_AXV0b2RpZGFjdA".to_owned();
    let answer = Answer::new(
        StatusCode::OK,
        "Give it to the page, and get the next one before `expiresAt`: a stream ends with its token.",
    )
    .json::<Issued>()
    .example("token", "One for a device", &Issued { token, expires_at });
    let asked = json!({"ttlMs": 60_000, "deviceId": [example::DEVICE_ID]});
    let schema = wanted_schema(config);
    let body = Body::optional(format!(
        "What the token is for, at most {MOST_BODY_BYTES} bytes. Without a body: all events of the key's client, \
         for {:?}. A member that is not known is refused.",
        config.token_ttl
    ))
    .content("application/json", move |_: &mut SchemaGenerator| schema)
    .example("token", "One minute, one device", &asked);
    let faulty = wrong(vec![fault("deviceId", "deviceId must be a UUID in hyphenated form")]);
    Operation::post("/v1/stream/tokens", "makeStreamToken", "Make a stream token")
        .about(
            "A stream token lets a page read live events for a short time, as the key may that asked for it, or \
             less. Every broadcaster of this pipeline takes it. It is not stored and cannot be taken back but by \
             revoking the key.",
        )
        .tag("live")
        .needs(Scope::EventsRead)
        .body(body)
        .answer(answer)
        .problem(Code::InvalidJson)
        .problem(faulty)
        .problem(too_large())
        .problem(Code::RequestTimeout)
        .problem(Code::Starting)
}

fn wanted_schema(config: &config::Live) -> Schema {
    let of = |item: Value| json!({"anyOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": MOST}]});
    let (least, most) = (EVENT_TYPE_CHARS.start(), EVENT_TYPE_CHARS.end());
    let mut device = of(DeviceId::json_schema(&mut SchemaGenerator::default()).into());
    device["description"] = json!("Devices that may be seen; without it all.");
    let mut event_type = of(json!({"type": "string", "minLength": least, "maxLength": most}));
    event_type["description"] = json!("Types that may be seen; without it all.");
    json_schema!({
        "type": "object",
        "properties": {
            "ttlMs": {
                "type": "integer", "minimum": SHORTEST_TTL_MS, "maximum": longest_ms(config),
                "description": "How long it works."
            },
            "deviceId": device,
            "eventType": event_type
        },
        "additionalProperties": false
    })
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::event::ClientId;

    use super::*;

    const ME: Audience = Audience::Client(ClientId(7));

    fn read(body: &str) -> Result<Wanted, Problem> {
        let config = config::load(None, std::iter::empty(), &[]).unwrap().config.live;
        Wanted::read(body.as_bytes(), ME, &config)
    }

    #[test]
    fn without_a_body_a_token_allows_all_for_the_usual_time() {
        for body in ["", "{}"] {
            let wanted = read(body).unwrap();
            assert_eq!(wanted.ttl, Duration::from_secs(300));
            assert_eq!(wanted.only, Filter::parse(ME, "").unwrap());
        }
    }

    #[test]
    fn a_restriction_is_a_text_or_a_list() {
        let wanted = read(
            r#"{"ttlMs":3600000,"eventType":["cpu","a&b"],
                "deviceId":"00000000-0000-0000-0000-000000000009"}"#,
        );
        let wanted = wanted.unwrap();
        assert_eq!(wanted.ttl, Duration::from_secs(3_600));
        assert_eq!(wanted.only.event_types(), ["a&b", "cpu"]);
        assert_eq!(wanted.only.devices().len(), 1);
    }

    #[test]
    fn what_would_allow_more_than_was_meant_is_refused_and_every_fault_named() {
        let fields = |body: &str| -> Vec<String> {
            let problem = read(body).map(drop).unwrap_err();
            assert_eq!(problem.code(), Code::BadRequest, "{body}");
            problem.fields().iter().map(|fault| fault.field.clone()).collect()
        };
        assert_eq!(
            fields(r#"{"deviceID":"x","ttlMs":0,"eventType":[]}"#),
            ["deviceID", "eventType", "ttlMs"]
        );
        assert_eq!(fields(r#"{"deviceId":null}"#), ["deviceId"]);
        assert_eq!(fields(r#"{"deviceId":["nope"],"ttlMs":3600001}"#), ["ttlMs", "deviceId"]);
        assert_eq!(fields(r#"{"ttlMs":"5m"}"#), ["ttlMs"]);
        assert_eq!(fields(r#"{"ttlMs":60000.5}"#), ["ttlMs"]);
        assert!(read(r#"{"ttlMs":60000.0}"#).is_ok(), "as whole as 60000");
        assert_eq!(fields("[]"), [""]);
        assert_eq!(read("{").map(drop).unwrap_err().code(), Code::InvalidJson);
    }
}
