//! `POST /v1/events`: who is it, what is it, and what became of it.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::cache::LockKey;
use pulsestream_shared::clock;
use pulsestream_shared::codec::Accepted;
use pulsestream_shared::config;
use pulsestream_shared::event::Event;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::{KeyRecord, Scope};
use pulsestream_shared::traces::{Steps, Trace};
use tokio::time::{Instant, timeout_at};

use crate::arrival::Pace;
use crate::body;
use crate::budget::{ByteBudget, Charged};
use crate::commit::{Answer, Attempt, Committer};
use crate::headers::{LOCAL, REPLAYED, STATUS, TRUE};
use crate::idempotency::fingerprint;
use crate::limits::{Limits, Quota};
use crate::metrics::GatewayMetrics;
use crate::payload::{self, Bounds};

pub(crate) mod described;

/// What the route needs.
pub(crate) struct Ingest {
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) limits: Limits,
    pub(crate) bytes: ByteBudget,
    pub(crate) committer: Committer,
    pub(crate) config: config::Ingest,
    pub(crate) metrics: Arc<GatewayMetrics>,
}

pub(crate) async fn accept(
    ingest: &Ingest,
    request: Request<Body>,
    trace: Option<Trace>,
) -> Response {
    let result = ingest.accept(request, trace).await;
    match &result {
        Ok(success) if success.replayed => ingest.metrics.count_events("replayed", 1),
        Ok(_) => ingest.metrics.accepted.inc(),
        Err(problem) => ingest.metrics.count_failure(problem.code()),
    }
    result.map_or_else(Problem::into_response, IntoResponse::into_response)
}

impl Ingest {
    async fn accept(
        &self,
        request: Request<Body>,
        trace: Option<Trace>,
    ) -> Result<Success, Problem> {
        let mut steps = Steps::of(trace.as_ref());
        let now = Instant::now();
        let bounds = self.bounds(self.config.max_body_bytes, "an event", now);
        let deadline = bounds.deadline;
        let (parts, body) = request.into_parts();
        let _charged = self.charge(bounds.expected(&parts.headers))?;
        steps.next("authorize");
        let key = self.authorize(&parts.headers, deadline).await?;
        let id = payload::idempotency_key(&parts.headers)?.ok_or(Code::MissingIdempotencyKey)?;
        check_media_type(&parts.headers)?;
        steps.next("read body");
        let bytes = payload::read(&parts.headers, body, bounds).await?;
        steps.end();
        let received_at_us = clock::unix_us();
        let draft = body::read(&bytes, body::Id::Given(id), received_at_us / 1_000, &self.config)?;
        // By the time the request came: one that was slow to arrive is not told it came early.
        let quota = self.limits.admit(&key, &[(draft.event.device_id, 1)], now)?;
        let device = Success { quota, ..Success::new(&draft.event) };
        let attempt = Attempt {
            key: LockKey { client: key.client, id },
            fingerprint: fingerprint(&draft.event),
            too_old: draft.too_old,
            trace,
            accepted: Accepted {
                event: draft.event,
                client: key.client,
                received_at_us,
                unsure: None,
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
            Answer::Replayed { .. } => Ok(Success { replayed: true, ..device }),
            Answer::TooOld => Err(body::too_old(&self.config)),
            Answer::Failed(code) => Err(code.into()),
        }
    }

    /// What a body that begins now may be.
    pub(crate) fn bounds(&self, bytes: usize, what: &'static str, now: Instant) -> Bounds {
        let deadline = now + self.config.request_timeout;
        Bounds { bytes, what, pace: Pace::new(&self.config), deadline }
    }

    /// Room for so many bytes, before they are read.
    pub(crate) fn charge(&self, bytes: usize) -> Result<Charged<'_>, Code> {
        self.bytes.charge(bytes).ok_or_else(|| self.no_room())
    }

    pub(crate) fn no_room(&self) -> Code {
        self.metrics.shed.bytes.inc();
        Code::Overloaded
    }

    pub(crate) async fn authorize(
        &self,
        headers: &HeaderMap,
        deadline: Instant,
    ) -> Result<Arc<KeyRecord>, Problem> {
        let authorizing = self.keyring.authorize(headers, Scope::EventsWrite);
        timeout_at(deadline, authorizing).await.map_err(|_| Code::Unavailable)?
    }
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    match payload::media_type(headers).as_deref() {
        None | Some("application/json") => Ok(()),
        Some(_) => Err(Code::UnsupportedMediaType.into()),
    }
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
            headers.insert(REPLAYED, TRUE);
        }
        if self.local {
            headers.insert(STATUS, LOCAL);
        }
        if let Some(quota) = self.quota {
            quota.put(headers);
        }
        response
    }
}
