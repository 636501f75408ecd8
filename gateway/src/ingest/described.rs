//! `POST /v1/events` in the API's description, and what it has in common with batches.

use axum::http::StatusCode;
use pulsestream_shared::config;
use pulsestream_shared::event::{DeviceId, EventId};
use pulsestream_shared::openapi::{Answer, Body, Operation, Parameter, example, uuid};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::Scope;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::Success;
use crate::body;
use crate::headers::{REPLAYED_TOLD, STATUS_TOLD};
use crate::limits::TOLD;

/// The route.
pub(crate) fn operation(config: &config::Ingest) -> Operation {
    let event = example::event();
    let sent: Value = serde_json::from_slice(&event.to_json()).unwrap_or_default();
    let answered: Value = serde_json::from_str(&Success::new(&event).body).unwrap_or_default();
    let (ahead, behind) = (config.clock_drift, config.max_event_age);
    let body = Body::new(format!(
        "At most {} bytes, perhaps compressed (`Content-Encoding`: `gzip`, `zstd` or `br`). The timestamp is at \
         most {ahead:?} ahead of and, at the first attempt, {behind:?} behind the server's time.",
        config.max_body_bytes
    ))
    .content("application/json", SchemaGenerator::subschema_for::<body::Plain<'static>>)
    .example("accepted", "A temperature", &sent);
    let answer = Answer::new(
        StatusCode::ACCEPTED,
        "The event is in the log, flushed: the device may forget it. The same request again is answered the \
         same, with `Idempotency-Replayed: true`.",
    )
    .json::<AcceptedBody>()
    .example("accepted", "Accepted now", &answered)
    .example("replayed", "Accepted before", &answered)
    .header(REPLAYED_TOLD)
    .header(STATUS_TOLD)
    .leads_to("readEvent", "id", "/data/id");
    let wrong = body::read(b"{}", body::Id::Given(example::EVENT_ID), 0, config).err();
    let key =
        idempotency_key(true, "One UUID for each event and all its attempts; the event's id.");
    let operation = Operation::post("/v1/events", "sendEvent", "Send one event")
        .about(
            "Safe to repeat at any time with the same `Idempotency-Key` and the same body, until it is \
             answered 202: the event is stored once.",
        )
        .parameter(key)
        .body(body)
        .problem(Code::InvalidJson)
        .problem(wrong.unwrap_or_else(|| Code::ValidationFailed.into()))
        .problem(Code::MissingIdempotencyKey)
        .problem(Code::LogUnavailable)
        .problem(Code::OutcomeUnknown);
    let answer = TOLD.into_iter().fold(answer, Answer::header);
    every_sender(operation, config.max_body_bytes, "an event").answer(answer)
}

/// What every route that takes events answers, beside what it says of itself.
pub(crate) fn every_sender(operation: Operation, bytes: usize, what: &str) -> Operation {
    let too_large = Problem::from(Code::PayloadTooLarge);
    let quota = StatusCode::TOO_MANY_REQUESTS;
    let operation = operation
        .tag("send")
        .needs(Scope::EventsWrite)
        .problem(Code::InvalidIdempotencyKey)
        .problem(Problem::from(Code::BadRequest).detail("the body is not valid gzip"))
        .problem(Code::RequestTimeout)
        .problem(Code::InProgress)
        .problem(too_large.detail(format!("{what} is at most {bytes} bytes")))
        .problem(Code::UnsupportedMediaType)
        .problem(Code::IdempotencyMismatch)
        .problem(Code::QuotaExceeded)
        .problem(Code::Overloaded)
        .problem(Code::Starting);
    TOLD.into_iter().fold(operation, |operation, header| operation.problem_header(quota, header))
}

/// The header.
pub(crate) fn idempotency_key(required: bool, about: &str) -> Parameter {
    Parameter {
        place: "header",
        name: "Idempotency-Key",
        required,
        about: about.to_owned(),
        schema: uuid().into(),
        example: Some(json!(example::EVENT_ID)),
    }
}

/// That the event is in the log.
// Written by `Success::new`; a type for its schema alone.
#[derive(JsonSchema)]
#[schemars(rename = "Accepted")]
#[expect(dead_code, reason = "a schema")]
struct AcceptedBody {
    /// Always `success`.
    status: String,
    message: String,
    data: AcceptedEvent,
}

#[derive(JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
#[expect(dead_code, reason = "a schema")]
struct AcceptedEvent {
    id: EventId,
    device_id: DeviceId,
    timestamp: i64,
}
