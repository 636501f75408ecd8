//! What comes with a request: its key, its media type, and its body, read and decompressed under limits.
//!
//! A body is bounded three times: by its declared length before anything is read, by what arrives, and by
//! what comes out of decompression, whose ratio is bounded too. Decompressing what is large happens away
//! from the runtime's threads.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use pulsestream_shared::event::EventId;
use pulsestream_shared::problem::{Code, Problem};
use tokio::time::{Instant, timeout_at};

use crate::encoding::Encoding;

/// Compressed bytes from which decompressing may take longer than a thread of the runtime should be held.
const LARGE_BYTES: usize = 16 << 10;

/// What a route takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes, as sent and as decompressed.
    pub(crate) bytes: usize,
    /// The noun of the sentence that refuses more: an event, a batch.
    pub(crate) what: &'static str,
    /// When the whole body must be here.
    pub(crate) deadline: Instant,
}

impl Limits {
    /// The answer to a larger one.
    pub(crate) fn too_large(&self) -> Problem {
        let Self { bytes, what, .. } = self;
        Problem::from(Code::PayloadTooLarge).detail(format!("{what} is at most {bytes} bytes"))
    }
}

/// Reads the body.
///
/// # Errors
/// 413 over the limits, 415 for another encoding, 408 when it does not arrive in time, 400 when it ends
/// too early or is not what its encoding says.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: Limits,
) -> Result<Bytes, Problem> {
    let encoding = Encoding::of(headers)?;
    if declared_length(headers).is_some_and(|length| length > limits.bytes as u64) {
        return Err(limits.too_large());
    }
    let limited = Limited::new(body, limits.bytes);
    let sent = match timeout_at(limits.deadline, limited.collect()).await {
        Err(_) => return Err(Code::RequestTimeout.into()),
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(limits.too_large()),
        Ok(Err(_)) => {
            return Err(Problem::from(Code::BadRequest).detail("the body ended too early"));
        }
    };
    match encoding {
        Encoding::Identity => Ok(sent),
        encoding if sent.len() < LARGE_BYTES => encoding.decode(&sent, limits),
        encoding => {
            let decoding = tokio::task::spawn_blocking(move || encoding.decode(&sent, limits));
            decoding.await.unwrap_or_else(|_| Err(Code::Unavailable.into()))
        }
    }
}

/// The `Idempotency-Key`, when there is one.
///
/// # Errors
/// 400 for more than one, or one that is not a UUID in hyphenated form.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<EventId>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Code::InvalidIdempotencyKey.into());
    }
    let text = value.to_str().unwrap_or_default();
    // The header is a structured-field string by its draft: quotes are its right spelling.
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    EventId::parse(bare).map(Some).ok_or_else(|| Code::InvalidIdempotencyKey.into())
}

/// The media type without its parameters, in lower case; `None` when the header is absent.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().unwrap_or_default();
    Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
