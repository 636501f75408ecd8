//! `POST /v1/events`: who is it, what is it, and what became of it.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::cache::{Fingerprint, LockKey};
use pulsestream_shared::clock;
use pulsestream_shared::codec::Accepted;
use pulsestream_shared::config;
use pulsestream_shared::event::{Event, EventId};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::Scope;
use tokio::time::{Instant, timeout_at};

use crate::arrival::{self, Fault, Pace};
use crate::body;
use crate::budget::ByteBudget;
use crate::commit::{Answer, Attempt, Committer};
use crate::limits::{Limits, Quota};
use crate::metrics::GatewayMetrics;

const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const STATUS: HeaderName = HeaderName::from_static("idempotency-status");

/// What the route needs.
pub(crate) struct Ingest {
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) limits: Limits,
    pub(crate) bytes: ByteBudget,
    pub(crate) committer: Committer,
    pub(crate) config: config::Ingest,
    pub(crate) metrics: Arc<GatewayMetrics>,
}

pub(crate) async fn accept(State(ingest): State<Arc<Ingest>>, request: Request<Body>) -> Response {
    let result = ingest.accept(request).await;
    let label = match &result {
        Ok(accepted) if accepted.replayed => "replayed",
        Ok(_) => "accepted",
        Err(problem) => match problem.code() {
            Code::InProgress => "conflict",
            Code::IdempotencyMismatch => "mismatch",
            Code::Overloaded => "shed",
            Code::QuotaExceeded => "limited",
            Code::OutcomeUnknown => "unknown",
            Code::LogUnavailable | Code::Unavailable => "unavailable",
            _ => "rejected",
        },
    };
    ingest.metrics.events.with_label_values(&[label]).inc();
    result.map_or_else(Problem::into_response, IntoResponse::into_response)
}

impl Ingest {
    async fn accept(&self, request: Request<Body>) -> Result<Success, Problem> {
        let now = Instant::now();
        let deadline = now + self.config.request_timeout;
        let (parts, body) = request.into_parts();
        let declared = declared_length(&parts.headers).unwrap_or(self.config.max_body_bytes);
        let Some(_charged) = self.bytes.charge(declared.min(self.config.max_body_bytes)) else {
            self.metrics.shed.bytes.inc();
            return Err(Code::Overloaded.into());
        };
        let authorizing = self.keyring.authorize(&parts.headers, Scope::EventsWrite);
        let key = timeout_at(deadline, authorizing).await.map_err(|_| Code::Unavailable)??;
        let id = idempotency_key(&parts.headers)?;
        check_content_type(&parts.headers)?;
        let bytes = self.read_body(declared, body, deadline).await?;
        let received_at_us = clock::unix_us();
        let draft = body::read(&bytes, id, received_at_us / 1_000, &self.config)?;
        // By the time the request came: one that was slow to arrive is not told it came early.
        let quota = self.limits.admit(&key, &[(draft.event.device_id, 1)], now)?;
        let device = Success { quota, ..Success::new(&draft.event) };
        let attempt = Attempt {
            key: LockKey { client: key.client, id },
            fingerprint: fingerprint(&bytes),
            too_old: draft.too_old,
            accepted: Accepted {
                event: draft.event,
                client: key.client,
                received_at_us,
                unsure: false,
                replay: false,
            },
        };
        // From here on the attempt is not ours: a client that goes away, or a deadline, ends the wait
        // and nothing else.
        let answer = self.committer.submit(attempt)?;
        let answer = match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => return Err(Code::OutcomeUnknown.into()),
        };
        match answer {
            Answer::Accepted { local } => Ok(Success { local, ..device }),
            Answer::Replayed => Ok(Success { replayed: true, ..device }),
            Answer::TooOld => Err(body::too_old(&self.config)),
            Answer::Failed(code) => Err(code.into()),
        }
    }

    async fn read_body(
        &self,
        declared: usize,
        body: Body,
        deadline: Instant,
    ) -> Result<Bytes, Problem> {
        let most = self.config.max_body_bytes;
        let received = if declared > most {
            Err(Fault::TooLarge)
        } else {
            arrival::receive(body, most, Pace::new(&self.config), deadline).await
        };
        received.map_err(|fault| match fault {
            Fault::TooLarge => Problem::from(Code::PayloadTooLarge)
                .detail(format!("an event is at most {most} bytes")),
            Fault::TooSlow => Code::RequestTimeout.into(),
            Fault::Cut => Problem::from(Code::BadRequest).detail("the body ended too early"),
        })
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<EventId, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let value = values.next().ok_or(Code::MissingIdempotencyKey)?;
    if values.next().is_some() {
        return Err(Code::InvalidIdempotencyKey.into());
    }
    let text = value.to_str().unwrap_or_default();
    // The header is a structured-field string by its draft: quotes are its right spelling.
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    EventId::parse(bare).ok_or_else(|| Code::InvalidIdempotencyKey.into())
}

/// `None` for a body sent in chunks.
fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence =
        content_type.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Code::UnsupportedMediaType.into())
    }
}

/// Of the body; this route takes one content type, so the type adds nothing.
fn fingerprint(body: &[u8]) -> Fingerprint {
    Fingerprint(xxhash_rust::xxh3::xxh3_128(body).to_be_bytes())
}

/// A `202`.
struct Success {
    body: String,
    replayed: bool,
    local: bool,
    quota: Option<Quota>,
}

impl Success {
    fn new(event: &Event) -> Self {
        let body = format!(
            "{{\"status\":\"success\",\"message\":\"Event accepted for processing\",\
             \"data\":{{\"id\":\"{}\",\"deviceId\":\"{}\",\"timestamp\":{}}}}}",
            event.id, event.device_id, event.timestamp_ms
        );
        Self { body, replayed: false, local: false, quota: None }
    }
}

impl IntoResponse for Success {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::ACCEPTED, self.body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        if self.local {
            headers.insert(STATUS, HeaderValue::from_static("local"));
        }
        if let Some(quota) = self.quota {
            quota.put(headers);
        }
        response
    }
}
