//! The name of one request, in its answer and in what is written about it: `X-Request-Id`.
//!
//! The server settles it before anything else looks at the request, and [`current`] tells it to whoever
//! writes an answer. It is for people who compare logs, never for deciding anything.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::openapi::Header;

/// `X-Request-Id`.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The same, as the API's description tells it.
pub(crate) const TOLD: Header = Header {
    name: "X-Request-Id",
    about: "The name of this request in the server's logs: the client's own, or one made here.",
    always: true,
    example: "4f1d6a0c5b7e2a93-0000000000000011",
    whole: false,
};

/// Longest one taken from a client, in bytes.
const MAX_LENGTH: usize = 128;

tokio::task_local! { static CURRENT: HeaderValue; }

/// The client's own when it is 1 to 128 visible ASCII characters, else a new one.
pub(crate) fn of(headers: &HeaderMap) -> HeaderValue {
    let sane = |id: &&HeaderValue| {
        (1..=MAX_LENGTH).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get(HEADER).filter(sane).cloned().unwrap_or_else(made)
}

/// Runs the work on a request under its id.
pub(crate) fn within<F: Future>(id: HeaderValue, work: F) -> impl Future<Output = F::Output> {
    CURRENT.scope(id, work)
}

/// The id of the request this task works on; a new one outside of any.
pub(crate) fn current() -> HeaderValue {
    CURRENT.try_with(HeaderValue::clone).unwrap_or_else(|_| made())
}

/// [`current`] as text, for a log line.
pub fn to_log() -> String {
    String::from_utf8_lossy(current().as_bytes()).into_owned()
}

/// Random for each process, counted within it: asking the system for randomness for every request would
/// cost more than everything else here.
fn made() -> HeaderValue {
    static PROCESS: LazyLock<u64> = LazyLock::new(rand::random);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut text = [b'-'; 33];
    write_hex(*PROCESS, &mut text[..16]);
    write_hex(next, &mut text[17..]);
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
}

fn write_hex(mut number: u64, to: &mut [u8]) {
    for digit in to.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_client(id: &[u8]) -> HeaderValue {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_bytes(id).expect("a header value"));
        of(&headers)
    }

    #[test]
    fn a_clients_id_is_taken_when_it_is_short_and_visible() {
        let longest = [b'a'; MAX_LENGTH];
        for sane in ["x".as_bytes(), b"7f3e-21/{a}", &longest] {
            assert_eq!(of_client(sane), sane);
        }
        for wrong in ["".as_bytes(), b"two words", "gr\u{fc}n".as_bytes(), &[b'a'; MAX_LENGTH + 1]]
        {
            assert_ne!(of_client(wrong), wrong);
        }
    }

    #[test]
    fn ids_that_are_made_differ() {
        let (one, other) = (made(), made());
        assert_ne!(one, other);
        assert_eq!(one.len(), 33);
        assert_eq!(one.as_bytes()[..17], other.as_bytes()[..17]);
    }

    #[tokio::test]
    async fn whoever_works_on_a_request_sees_its_id() {
        let id = HeaderValue::from_static("mine");
        assert_eq!(within(id.clone(), async { current() }).await, id);
        assert_ne!(current(), id);
    }
}
