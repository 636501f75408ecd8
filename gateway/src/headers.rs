//! Headers of our own answers.

use axum::http::{HeaderName, HeaderValue};

/// `true` when the answer is that of an earlier attempt.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// `local` when the key could be locked in this process alone.
pub(crate) const STATUS: HeaderName = HeaderName::from_static("idempotency-status");

pub(crate) const TRUE: HeaderValue = HeaderValue::from_static("true");
pub(crate) const LOCAL: HeaderValue = HeaderValue::from_static("local");
