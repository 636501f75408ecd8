//! `POST /v1/events/batch` in the API's description.

use axum::http::StatusCode;
use pulsestream_shared::config;
use pulsestream_shared::event::EventId;
use pulsestream_shared::openapi::{Answer, Body, Operation, example};
use pulsestream_shared::problem::{self, Code, Problem};
use schemars::{JsonSchema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::answer::Summary;
use super::items::Items;
use super::split::{Format, NDJSON};
use crate::body::Plain;
use crate::commit::Answer as Fate;
use crate::headers::{REPLAYED_TOLD, STATUS_TOLD};
use crate::ingest::described::{every_sender, idempotency_key};
use crate::limits::TOLD;

/// The route.
pub(crate) fn operation(config: &config::Ingest) -> Operation {
    let accepted =
        Answer::new(StatusCode::ACCEPTED, "Every event is in the log, now or from before.")
            .json::<Summary>()
            .example("all_accepted", "Accepted now", &answer_to(&json!([event()]), config))
            .example(
                "replayed",
                "The whole batch was accepted before",
                &answer_to(&json!([event()]), config),
            );
    let mixed = Answer::new(
        StatusCode::MULTI_STATUS,
        "Some events are in the log; `results` tells of the others. `retry`: send the same batch again after \
         `Retry-After` seconds, what is there already is then a `duplicate`. `rejected`: correct the event \
         and send it under another id.",
    )
    .json::<Summary>()
    .example("some_accepted", "One is faulty", &answer_to(&json!([event(), faulty()]), config))
    .header(problem::RETRY_AFTER_TOLD.sometimes());
    let none = answer_to(&json!([faulty()]), config).into_problem(Code::BatchInvalid);
    let operation = Operation::post("/v1/events/batch", "sendEvents", "Send many events")
        .about(
            "An array, an object with the array `events`, or one event a line. An event may bring its own \
             `id`; where it does not, its id is derived from the `Idempotency-Key` and its index (UUIDv5: the \
             key is the namespace, the index in decimal the name).\n\n\
             A batch of which some events could not be appended stays open: the same body goes on under the \
             same ids. Where no event was accepted, the problem has the members of a summary too.",
        )
        .parameter(idempotency_key(false, "Needed unless every event has an `id`."))
        .body(body(config))
        .problem(Code::InvalidJson)
        .problem(none)
        .problem(failed(Code::LogUnavailable, config))
        .problem(failed(Code::OutcomeUnknown, config));
    // Where no event was accepted; it is the first one's failure that names the status.
    let operation = [Code::InProgress, Code::BatchInvalid, Code::Unavailable]
        .into_iter()
        .fold(operation, |operation, code| operation.problem_members::<Summary>(code.status()));
    let headers = TOLD.into_iter().chain([REPLAYED_TOLD, STATUS_TOLD]);
    let (accepted, mixed) = headers.fold((accepted, mixed), |(accepted, mixed), header| {
        (accepted.header(header), mixed.header(header))
    });
    every_sender(operation, config.max_batch_bytes, "a batch").answer(accepted).answer(mixed)
}

fn body(config: &config::Ingest) -> Body {
    let most = config.max_batch_events;
    let json = move |generator: &mut SchemaGenerator| {
        let event = generator.subschema_for::<BatchEvent>();
        let events = json!({"type": "array", "items": event, "minItems": 1, "maxItems": most});
        json_schema!({
            "anyOf": [
                events,
                {"type": "object", "required": ["events"], "properties": {"events": events}}
            ]
        })
    };
    let about = format!(
        "1 to {most} events, at most {} bytes, sent and decompressed (`Content-Encoding`: `gzip`, `zstd` or `br`).",
        config.max_batch_bytes
    );
    let lines = move |generator: &mut SchemaGenerator| {
        let event = generator.subschema_for::<BatchEvent>();
        json_schema!({
            "type": "array", "items": event, "minItems": 1, "maxItems": most,
            "description": "Not an array as such, but one event a line."
        })
    };
    Body::new(about)
        .content("application/json", json)
        .example("all_accepted", "One event", &json!([event()]))
        .example("some_accepted", "A good and a faulty one", &json!([event(), faulty()]))
        .content(NDJSON, lines)
        .example("all_accepted", "One event, one line", &json!([event()]))
}

/// An event of a batch.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "a schema")]
struct BatchEvent {
    /// Its own id; without it, one that follows from the request's key.
    #[serde(default)]
    id: Option<EventId>,
    #[serde(flatten)]
    event: Plain<'static>,
}

fn event() -> Value {
    let event = example::event();
    let mut event: Value = serde_json::from_slice(&event.to_json()).unwrap_or_default();
    if let Some(fields) = event.as_object_mut() {
        fields.remove("id");
    }
    event
}

fn faulty() -> Value {
    let mut event = event();
    event["value"] = json!("40");
    event
}

/// What a gateway that can append answers to it.
fn answer_to(batch: &Value, config: &config::Ingest) -> Summary {
    with_fates(batch, Fate::Accepted { local: false }, config)
}

/// The answer when no event could be appended.
fn failed(code: Code, config: &config::Ingest) -> Problem {
    with_fates(&json!([event()]), Fate::Failed(code), config).into_problem(code)
}

fn with_fates(batch: &Value, fate: Fate, config: &config::Ingest) -> Summary {
    let (bytes, key) = (batch.to_string(), Some(example::EVENT_ID));
    let items = Items::read(bytes.as_bytes(), Format::Json, key, example::TIMESTAMP_MS, config);
    let Ok(items) = items else { return Summary::default() };
    Summary::of(&items, &vec![fate; items.events.len()], &crate::body::too_old(config))
}
