//! Headers of our own answers.

use axum::http::{HeaderName, HeaderValue};
use pulsestream_shared::openapi::Header;

/// `true` when the answer is that of an earlier attempt.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// `local` when the key could be locked in this process alone.
pub(crate) const STATUS: HeaderName = HeaderName::from_static("idempotency-status");

pub(crate) const TRUE: HeaderValue = HeaderValue::from_static("true");
pub(crate) const LOCAL: HeaderValue = HeaderValue::from_static("local");

// The same, as the API's description tells them.

pub(crate) const REPLAYED_TOLD: Header = Header {
    name: "Idempotency-Replayed",
    about: "`true` when the answer is that of an earlier attempt; absent otherwise.",
    always: false,
    example: "true",
    whole: false,
};
pub(crate) const STATUS_TOLD: Header = Header {
    name: "Idempotency-Status",
    about: "`local` while the shared cache is away and the key is known to this gateway alone: repeats are then \
            found when the event is stored. Absent otherwise.",
    always: false,
    example: "local",
    whole: false,
};
