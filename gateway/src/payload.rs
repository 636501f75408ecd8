//! What comes with a request: its key, its media type, and its body, read and decompressed under limits.
//!
//! A body is bounded three times: by its declared length before anything is read, by what arrives and how
//! fast, and by what comes out of decompression, whose ratio is bounded too. Decompressing what is large
//! happens away from the runtime's threads.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use pulsestream_shared::event::EventId;
use pulsestream_shared::problem::{Code, Problem};
use tokio::time::Instant;

use crate::arrival::{self, Fault, Pace};
use crate::encoding::Encoding;

/// Compressed bytes from which decompressing may take longer than a thread of the runtime should be held.
const LARGE_BYTES: usize = 16 << 10;

/// What a route takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes, as sent and as decompressed.
    pub(crate) bytes: usize,
    /// The noun of the sentence that refuses more: an event, a batch.
    pub(crate) what: &'static str,
    /// How fast it must arrive.
    pub(crate) pace: Pace,
    /// When the whole body must be here.
    pub(crate) deadline: Instant,
}

impl Bounds {
    /// Bytes to be kept free for a body before it is read: as declared, else the most it may have.
    pub(crate) fn expected(&self, headers: &HeaderMap) -> usize {
        let declared = declared_length(headers).and_then(|length| usize::try_from(length).ok());
        declared.map_or(self.bytes, |length| length.min(self.bytes))
    }

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
    bounds: Bounds,
) -> Result<Bytes, Problem> {
    let encoding = Encoding::of(headers)?;
    if declared_length(headers).is_some_and(|length| length > bounds.bytes as u64) {
        return Err(bounds.too_large());
    }
    let received = arrival::receive(body, bounds.bytes, bounds.pace, bounds.deadline).await;
    let sent = received.map_err(|fault| match fault {
        Fault::TooLarge => bounds.too_large(),
        Fault::TooSlow => Code::RequestTimeout.into(),
        Fault::Cut => Problem::from(Code::BadRequest).detail("the body ended too early"),
    })?;
    match encoding {
        Encoding::Identity => Ok(sent),
        encoding if sent.len() < LARGE_BYTES => encoding.decode(&sent, bounds),
        encoding => {
            let decoding = tokio::task::spawn_blocking(move || encoding.decode(&sent, bounds));
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

#[cfg(test)]
mod fuzz;
