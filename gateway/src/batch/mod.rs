//! `POST /v1/events/batch`: many events in one request, each with its own fate.
//!
//! `split` finds the events in the body, `items` judges each, `commit::batch` locks and appends them,
//! `answer` tells what was not accepted, by index. An event is what it is to `POST /v1/events`: the same
//! rules, the same keys, the same record.

use axum::body::{Body, Bytes};
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use pulsestream_shared::cache::{Fingerprint, LockKey};
use pulsestream_shared::clock;
use pulsestream_shared::event::EventId;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::traces::{Steps, Trace};
use tokio::time::{Instant, timeout_at};

mod answer;
pub(crate) mod described;
#[cfg(test)]
mod fuzz;
mod items;
mod split;

use answer::Summary;
use items::Items;
use split::Format;

use crate::body;
use crate::commit::{Answer, Batch, BatchAnswer};
use crate::ingest::Ingest;
use crate::payload;

/// Bodies from which reading the events takes longer than a thread of the runtime should be held.
const LARGE_BYTES: usize = 32 << 10;

pub(crate) async fn accept(
    ingest: &Ingest,
    request: Request<Body>,
    trace: Option<Trace>,
) -> Response {
    let result = accept_batch(ingest, request, trace).await;
    match &result {
        Ok(summary) => {
            ingest.metrics.count_batch(summary.accepted, summary.duplicates, summary.rejected)
        }
        Err(problem) => ingest.metrics.count_failure(problem.code()),
    }
    result.map_or_else(Problem::into_response, IntoResponse::into_response)
}

async fn accept_batch(
    ingest: &Ingest,
    request: Request<Body>,
    trace: Option<Trace>,
) -> Result<Summary, Problem> {
    let mut steps = Steps::of(trace.as_ref());
    let (config, now) = (&ingest.config, Instant::now());
    let bounds = ingest.bounds(config.max_batch_bytes, "a batch", now);
    let deadline = bounds.deadline;
    let (parts, body) = request.into_parts();
    let mut charged = ingest.charge(bounds.expected(&parts.headers))?;
    steps.next("authorize");
    let api_key = ingest.authorize(&parts.headers, deadline).await?;
    let key = payload::idempotency_key(&parts.headers)?;
    let format = Format::of(payload::media_type(&parts.headers).as_deref())?;
    steps.next("read body");
    let body = payload::read(&parts.headers, body, bounds).await?;
    if !charged.raise_to(body.len()) {
        return Err(ingest.no_room().into());
    }
    let received_at_us = clock::unix_us();
    let items = read_items(ingest, body.clone(), format, key, received_at_us / 1_000).await?;
    steps.end();
    let too_old = body::too_old(config);
    if items.events.is_empty() {
        return Ok(Summary::of(&items, &[], &too_old));
    }
    let quota = ingest.limits.admit(&api_key, &items.per_device(), now)?;
    let batch = Batch {
        key: key.map(|id| (LockKey { client: api_key.client, id }, fingerprint(&body, format))),
        client: api_key.client,
        received_at_us,
        events: items.events.clone(),
        trace,
    };
    let answer = ingest.committer.submit_batch(batch)?;
    match timeout_at(deadline, answer).await {
        Ok(Ok(BatchAnswer::Events(answers))) => {
            Ok(Summary::of(&items, &answers, &too_old).with_quota(quota))
        }
        Ok(Ok(BatchAnswer::Whole(Answer::Replayed { first_at_ms }))) => {
            let old = |at: usize| {
                items.events.get(at).is_some_and(|event| {
                    body::is_too_old(event.event.timestamp_ms, first_at_ms, config.max_event_age)
                })
            };
            Ok(Summary::replayed(&items, old, &too_old).with_quota(quota))
        }
        Ok(Ok(BatchAnswer::Whole(Answer::Failed(code)))) => Err(code.into()),
        // The age rule does not apply to a batch's own key, so the other answers do not occur.
        Ok(Ok(BatchAnswer::Whole(_)) | Err(_)) | Err(_) => Err(Code::OutcomeUnknown.into()),
    }
}

async fn read_items(
    ingest: &Ingest,
    body: Bytes,
    format: Format,
    key: Option<EventId>,
    now_ms: i64,
) -> Result<Items, Problem> {
    let config = ingest.config.clone();
    let large = body.len() >= LARGE_BYTES;
    let read = move || Items::read(&body, format, key, now_ms, &config);
    if !large {
        return read();
    }
    let reading = tokio::task::spawn_blocking(read);
    reading.await.unwrap_or_else(|_| Err(Code::Unavailable.into()))
}

/// Of the decompressed body and its format.
fn fingerprint(body: &[u8], format: Format) -> Fingerprint {
    let seed = match format {
        Format::Json => 0,
        Format::Ndjson => 1,
    };
    Fingerprint(xxhash_rust::xxh3::xxh3_128_with_seed(body, seed).to_be_bytes())
}
