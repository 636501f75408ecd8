//! What a client is told when something is wrong: one table of codes, rendered as RFC 9457
//! `application/problem+json`.
//!
//! 4xx: the caller can fix it. 503: the same request may succeed later. 500 is never answered on
//! purpose. A 5xx never holds an internal message: the cause is logged where it is handled.

use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any};
use rand::RngExt as _;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::openapi::Header;
use crate::request_id;

mod advice;

/// Seconds by which [`spread`] stretches at most.
const JITTER_SECONDS: u32 = 2;

/// `Retry-After`, as the API's description tells it.
pub const RETRY_AFTER_TOLD: Header = Header {
    name: "Retry-After",
    about: "Seconds after which the same request may be sent again.",
    always: true,
    example: "2",
    whole: true,
};

/// `Retry-After` stretched at random: those turned away together must not come back together.
pub fn spread(seconds: u32) -> u32 {
    seconds + rand::rng().random_range(0..=JITTER_SECONDS)
}

/// One faulty field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FieldError {
    /// Path of the field, such as `metadata.a`; empty for the body itself.
    pub field: String,
    /// A sentence for a person.
    pub message: String,
}

/// Every stable code. A code is never given another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the table below documents each code")]
pub enum Code {
    InvalidJson,
    ValidationFailed,
    MissingIdempotencyKey,
    InvalidIdempotencyKey,
    MissingApiKey,
    InvalidApiKey,
    InvalidToken,
    Forbidden,
    TokenRestricted,
    OriginRefused,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    InProgress,
    PayloadTooLarge,
    UnsupportedMediaType,
    IdempotencyMismatch,
    BatchInvalid,
    QuotaExceeded,
    TooManyStreams,
    BadRequest,
    Overloaded,
    LogUnavailable,
    OutcomeUnknown,
    Unavailable,
    QueryTimeout,
    Starting,
}

impl Code {
    /// Status, stable word, title, and the fewest seconds after which the same request may be sent again.
    #[expect(clippy::too_many_lines, reason = "one table")]
    const fn row(self) -> (StatusCode, &'static str, &'static str, Option<u32>) {
        use StatusCode as S;
        match self {
            Self::InvalidJson => (S::BAD_REQUEST, "invalid_json", "The body is not JSON", None),
            Self::ValidationFailed => {
                (S::BAD_REQUEST, "validation_failed", "Validation failed", None)
            }
            Self::MissingIdempotencyKey => {
                (S::BAD_REQUEST, "missing_idempotency_key", "Missing Idempotency-Key header", None)
            }
            Self::InvalidIdempotencyKey => (
                S::BAD_REQUEST,
                "invalid_idempotency_key",
                "Idempotency-Key must be one UUID in hyphenated form",
                None,
            ),
            Self::MissingApiKey => (S::UNAUTHORIZED, "missing_api_key", "Missing API key", None),
            Self::InvalidApiKey => (
                S::UNAUTHORIZED,
                "invalid_api_key",
                "The API key is unknown, revoked or expired",
                None,
            ),
            Self::InvalidToken => (
                S::UNAUTHORIZED,
                "invalid_token",
                "The stream token is not one of ours or has expired",
                None,
            ),
            Self::Forbidden => (S::FORBIDDEN, "forbidden", "The API key lacks a scope", None),
            Self::TokenRestricted => {
                (S::FORBIDDEN, "token_restricted", "The stream token does not allow this", None)
            }
            Self::OriginRefused => (
                S::FORBIDDEN,
                "origin_refused",
                "Pages of this origin may not open streams here",
                None,
            ),
            Self::NotFound => (S::NOT_FOUND, "not_found", "No such resource", None),
            Self::MethodNotAllowed => {
                (S::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed here", None)
            }
            Self::RequestTimeout => {
                (S::REQUEST_TIMEOUT, "request_timeout", "The request did not arrive in time", None)
            }
            Self::InProgress => (
                S::CONFLICT,
                "in_progress",
                "A request with this Idempotency-Key is already in progress",
                Some(1),
            ),
            Self::PayloadTooLarge => {
                (S::PAYLOAD_TOO_LARGE, "payload_too_large", "Body too large", None)
            }
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Send application/json", None)
            }
            Self::IdempotencyMismatch => (
                S::UNPROCESSABLE_ENTITY,
                "idempotency_mismatch",
                "This Idempotency-Key was used with another body",
                None,
            ),
            Self::BatchInvalid => {
                (S::UNPROCESSABLE_ENTITY, "batch_invalid", "No event of the batch is valid", None)
            }
            Self::QuotaExceeded => {
                (S::TOO_MANY_REQUESTS, "quota_exceeded", "Too many events", Some(1))
            }
            Self::TooManyStreams => {
                (S::TOO_MANY_REQUESTS, "too_many_streams", "Too many streams are open", Some(5))
            }
            Self::BadRequest => (S::BAD_REQUEST, "bad_request", "Bad request", None),
            Self::Overloaded => {
                (S::SERVICE_UNAVAILABLE, "overloaded", "Too busy right now", Some(1))
            }
            Self::LogUnavailable => (
                S::SERVICE_UNAVAILABLE,
                "log_unavailable",
                "Events cannot be accepted right now",
                Some(2),
            ),
            Self::OutcomeUnknown => (
                S::SERVICE_UNAVAILABLE,
                "outcome_unknown",
                "The event may or may not be accepted: send it again",
                Some(2),
            ),
            Self::Unavailable => {
                (S::SERVICE_UNAVAILABLE, "unavailable", "Cannot answer right now", Some(2))
            }
            Self::QueryTimeout => (
                S::SERVICE_UNAVAILABLE,
                "query_timeout",
                "The query takes too long: ask for a shorter span or one device",
                Some(5),
            ),
            Self::Starting => {
                (S::SERVICE_UNAVAILABLE, "starting", "Starting, not ready yet", Some(1))
            }
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        self.row().0
    }

    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        self.row().1
    }

    /// The sentence it is known by.
    pub const fn title(self) -> &'static str {
        self.row().2
    }
}

/// An answer that is not a success. As a response it carries its [`Code`] as an extension, for layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    code: Code,
    detail: Option<String>,
    errors: Vec<FieldError>,
    retry_after: Option<u32>,
    headers: Vec<(HeaderName, HeaderValue)>,
    extension: Map<String, Value>,
}

impl From<Code> for Problem {
    fn from(code: Code) -> Self {
        Self {
            code,
            detail: None,
            errors: Vec::new(),
            retry_after: code.row().3,
            headers: Vec::new(),
            extension: Map::new(),
        }
    }
}

impl Problem {
    /// Adds what is particular to this request; never an internal message.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the faulty fields.
    #[must_use]
    pub fn errors(mut self, errors: Vec<FieldError>) -> Self {
        self.errors = errors;
        self
    }

    /// Adds members of the route's own.
    #[must_use]
    pub fn extend(mut self, members: Map<String, Value>) -> Self {
        self.extension = members;
        self
    }

    /// Names the seconds after which the same request may be sent again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The sentence for a person.
    pub fn text(&self) -> &str {
        self.detail.as_deref().unwrap_or(self.code.title())
    }

    /// The faulty fields.
    pub fn fields(&self) -> &[FieldError] {
        &self.errors
    }

    /// Seconds after which the same request may be sent again; `None` when that would be in vain.
    pub fn wait_seconds(&self) -> Option<u32> {
        self.retry_after
    }

    /// Its code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Its body as an example.
    pub(crate) fn shown(&self) -> Value {
        serde_json::to_value(self.body("4f1d6a0c5b7e2a93-0000000000000011")).unwrap_or_default()
    }

    fn body<'a>(&'a self, request_id: &'a str) -> Body<'a> {
        let (status, code, title, _) = self.code.row();
        Body {
            r#type: format!("urn:pulsestream:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: self.text(),
            code,
            request_id,
            errors: &self.errors,
            extension: &self.extension,
        }
    }
}

/// The schema of every problem's body.
pub(crate) fn schema(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<Body<'static>>()
}

/// The answer for a path nobody knows.
pub async fn not_found() -> Problem {
    Problem::from(Code::NotFound)
}

/// The answer for the other methods of a path; names those it has.
pub fn not_allowed(allow: &'static str) -> MethodRouter {
    any(async move |method: Method| {
        let detail = format!("{method} is not allowed here; allowed: {allow}");
        let allow = HeaderValue::from_static(allow);
        Problem::from(Code::MethodNotAllowed).detail(detail).header(header::ALLOW, allow)
    })
}

/// What is wrong (RFC 9457). Decide by `code`; the rest is for people.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Problem")]
struct Body<'a> {
    /// `urn:pulsestream:problem:` and the code.
    r#type: String,
    title: &'a str,
    status: u16,
    /// What is particular to this request.
    detail: &'a str,
    /// A stable word, never given another meaning.
    code: &'a str,
    /// What `X-Request-Id` says: name it when you ask for help.
    request_id: &'a str,
    /// Every faulty field or parameter, when that is what is wrong.
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
    #[serde(flatten)]
    #[schemars(skip)]
    extension: &'a Map<String, Value>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let request_id = request_id::current();
        let body = self.body(request_id.to_str().unwrap_or_default());
        // For the day on which one device's failures must be found; see docs/operations.md.
        tracing::debug!(
            request_id = body.request_id,
            status = body.status,
            code = body.code,
            "problem"
        );
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, json).into_response();
        let headers = response.headers_mut();
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem);
        headers.insert(request_id::HEADER, request_id);
        headers.extend(self.headers);
        if let Some(mut seconds) = self.retry_after {
            if status == StatusCode::SERVICE_UNAVAILABLE {
                seconds = spread(seconds);
            }
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::RequestTimeout {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(self.code);
        response
    }
}
