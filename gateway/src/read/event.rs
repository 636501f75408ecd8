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
use axum::http::HeaderMap;
use axum::response::Response;
use pulsestream_shared::cache::{LockKey, LockReply, LockRequest};
use pulsestream_shared::event::EventId;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::request_id;
use pulsestream_shared::store::query::Found;
use serde::Serialize;

use super::events::EventBody;
use super::params::Params;
use super::{Data, Read, ok};

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
            Status::Stored { event: Box::new((*event).into()), status: "stored" }
        }
        Some(Found::Dead { reason, detail }) => {
            Status::Dead { id, status: "dead-lettered", reason, detail }
        }
        None if read.is_remembered(LockKey { client, id }).await? => {
            Status::Pending { id, status: "pending" }
        }
        None => return Err(Problem::from(Code::NotFound).detail("no such event is known")),
    };
    ok(&Data { data })
}

/// What is known, by how far it got.
#[derive(Serialize)]
#[serde(untagged)]
enum Status {
    Stored {
        #[serde(flatten)]
        event: Box<EventBody>,
        status: &'static str,
    },
    Dead {
        id: EventId,
        status: &'static str,
        reason: String,
        detail: String,
    },
    Pending {
        id: EventId,
        status: &'static str,
    },
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
