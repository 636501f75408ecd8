//! `GET /v1/events/{id}`: what became of one event.
//!
//! ```text
//! in the table                           -> stored
//! else a dead letter                     -> dead-lettered, with the reason
//! else its idempotency key is remembered -> pending: accepted, or an attempt is or was under way
//! else                                   -> 404
//! ```
//!
//! The store is asked first: whatever the key's record says, what is stored is stored. A key is
//! remembered for a day; while Redis is away only the gateway that accepted an event remembers it.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use pulsestream_shared::cache::{LockKey, LockReply, LockRequest};
use pulsestream_shared::event::EventId;
use pulsestream_shared::openapi::{Answer, Operation, example};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::request_id;
use pulsestream_shared::store::query::Found;
use schemars::JsonSchema;
use serde::Serialize;

use super::events::EventBody;
use super::params::Params;
use super::{Data, Read, described, id_parameter, ok};

pub(super) fn operation() -> Operation {
    let id = example::EVENT_ID;
    let stored = Status::Stored { event: Box::new(EventBody::example()), status: Stored::Stored };
    let dead = Status::Dead {
        id,
        status: Dead::DeadLettered,
        reason: "out_of_range".to_owned(),
        detail: "timestamp: out of range".to_owned(),
    };
    let pending = Status::Pending { id, status: Pending::Pending };
    let answer = Answer::new(
        StatusCode::OK,
        "How far it got. `pending`: accepted and not stored yet, or an attempt has no known outcome; send it \
         again with the same key and body if you got no 202. `dead-lettered`: it will not be stored, and \
         `reason` says why.",
    )
    .json::<Data<Status>>()
    .example("stored", "It is in the database", &Data { data: stored })
    .example("pending", "It is on its way", &Data { data: pending })
    .example("dead_lettered", "The store refused it", &Data { data: dead });
    let operation = Operation::get("/v1/events/{id}", "readEvent", "What became of one event")
        .about("The id is the `Idempotency-Key` it was sent with, or its own within a batch.")
        .parameter(id_parameter("The event.", &id));
    described(operation, &[]).problem(no_such_event()).answer(answer)
}

fn no_such_event() -> Problem {
    Problem::from(Code::NotFound).detail("no such event is known")
}

pub(super) async fn one(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.client(&headers).await?;
    let mut params = Params::parse(query.as_deref(), &[]);
    let id = path.ok().and_then(|Path(text)| EventId::parse(&text));
    if id.is_none() {
        params.refuse("id", "must be a UUID in hyphenated form");
    }
    params.check()?;
    let id = id.ok_or(Code::BadRequest)?;
    let data = match read.ask(client, read.query.event(client, id)).await? {
        Some(Found::Stored(event)) => {
            Status::Stored { event: Box::new((*event).into()), status: Stored::Stored }
        }
        Some(Found::Dead { reason, detail }) => {
            Status::Dead { id, status: Dead::DeadLettered, reason, detail }
        }
        None if read.is_remembered(LockKey { client, id }).await? => {
            Status::Pending { id, status: Pending::Pending }
        }
        None => return Err(no_such_event()),
    };
    ok(&Data { data })
}

/// What is known, by how far it got.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "EventStatus")]
enum Status {
    Stored {
        #[serde(flatten)]
        event: Box<EventBody>,
        status: Stored,
    },
    Dead {
        id: EventId,
        status: Dead,
        /// `malformed`, `unknown_client`, `out_of_range`, `id_conflict` or `rejected`.
        reason: String,
        detail: String,
    },
    Pending {
        id: EventId,
        status: Pending,
    },
}

// The word of each, as a type of its own: so the schema tells the three apart.

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
enum Stored {
    Stored,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
enum Dead {
    DeadLettered,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
enum Pending {
    Pending,
}

impl Read {
    /// True when an attempt with this key was made and may have come, or may come, to the log.
    async fn is_remembered(&self, key: LockKey) -> Result<bool, Problem> {
        if self.committer.remembers(key) {
            return Ok(true);
        }
        match self.cache.lock(&[LockRequest { key, record: None }]).await {
            Ok(locked) => {
                Ok(locked.replies.iter().any(|reply| matches!(reply, LockReply::Held(_))))
            }
            Err(error) => {
                // A 404 would tell a device that its accepted event is gone.
                let request_id = request_id::to_log();
                tracing::warn!(%error, request_id, "an idempotency key could not be looked up");
                Err(Code::Unavailable.into())
            }
        }
    }
}
