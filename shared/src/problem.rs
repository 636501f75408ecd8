//! What a client is told when something is wrong: one table of codes, rendered as RFC 9457
//! `application/problem+json`.
//!
//! 4xx: the caller can fix it. 503: the same request may succeed later. 500 is never answered on
//! purpose. A 5xx never holds an internal message: the cause is logged where it is handled.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use uuid::Uuid;

/// One faulty field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    InProgress,
    PayloadTooLarge,
    UnsupportedMediaType,
    IdempotencyMismatch,
    BadRequest,
    Overloaded,
    LogUnavailable,
    OutcomeUnknown,
    Unavailable,
    QueryTimeout,
    Starting,
}

impl Code {
    /// Status, stable word, title, and seconds after which the same request may be sent again.
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
            Self::Forbidden => (S::FORBIDDEN, "forbidden", "The API key lacks a scope", None),
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
                Some(15),
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
}

/// An answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    code: Code,
    detail: Option<String>,
    errors: Vec<FieldError>,
    retry_after: Option<u32>,
}

impl From<Code> for Problem {
    fn from(code: Code) -> Self {
        Self { code, detail: None, errors: Vec::new(), retry_after: code.row().3 }
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

    /// The faulty fields.
    pub fn field_errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// Its code.
    pub fn code(&self) -> Code {
        self.code
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    request_id: String,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code, title, _) = self.code.row();
        let request_id = Uuid::new_v4().to_string();
        let body = Body {
            r#type: format!("urn:pulsestream:problem:{code}"),
            title,
            status: status.as_u16(),
            detail: self.detail.as_deref().unwrap_or(title),
            code,
            request_id: request_id.clone(),
            errors: &self.errors,
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, json).into_response();
        let headers = response.headers_mut();
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem);
        if let Ok(value) = HeaderValue::from_str(&request_id) {
            headers.insert("x-request-id", value);
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::RequestTimeout {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
