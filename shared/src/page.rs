//! An answer that changes with the program and its settings alone: written once, at the start.

use std::sync::Arc;

use crate::header_list;
use crate::openapi::{Answer, Header};
use crate::problem::not_allowed;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

/// Its body, and what the client keeps to ask for it again.
pub struct Page {
    body: Bytes,
    etag: HeaderValue,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Page {
    /// An answer of that type.
    pub fn new(media_type: &'static str, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        let hash = xxhash_rust::xxh3::xxh3_64(&body);
        let etag = HeaderValue::try_from(format!("\"{hash:016x}\""));
        let media_type = HeaderValue::from_static(media_type);
        Self {
            body,
            etag: etag.unwrap_or(HeaderValue::from_static("\"\"")),
            headers: vec![(header::CONTENT_TYPE, media_type)],
        }
    }

    /// With a header beside its body.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// GET and HEAD of it.
    pub fn route(self) -> MethodRouter {
        get(show).with_state(Arc::new(self)).fallback_service(not_allowed("GET, HEAD"))
    }
}

async fn show(State(page): State<Arc<Page>>, headers: HeaderMap) -> Response {
    // Asked for again each time, and answered with the bytes only when they are others.
    let caching = HeaderValue::from_static("no-cache");
    let told = [(header::ETAG, page.etag.clone()), (header::CACHE_CONTROL, caching)];
    if is_known(&headers, &page.etag) {
        return (StatusCode::NOT_MODIFIED, told).into_response();
    }
    let mut response = (told, page.body.clone()).into_response();
    for (name, value) in &page.headers {
        response.headers_mut().insert(name, value.clone());
    }
    response
}

/// Whether the client has it: a list of tags, each weak when a proxy on the way compressed what it tags, or `*`.
fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let mut tags = header_list::items(headers, header::IF_NONE_MATCH);
    tags.any(|tag| tag == "*" || etag == tag.strip_prefix("W/").unwrap_or(tag))
}

/// As the API's description tells it.
pub const ETAG: Header = Header {
    name: "ETag",
    about: "Changes with the document.",
    always: true,
    example: "\"0f3a\"",
    whole: false,
};

/// What is answered to a client that has it already.
pub fn unchanged() -> Answer {
    Answer::new(StatusCode::NOT_MODIFIED, "You have it: `If-None-Match` names it.").header(ETAG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_alone_in_a_list_in_a_second_header_and_when_a_proxy_made_it_weak() {
        let known = |lists: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for list in lists {
                headers.append(header::IF_NONE_MATCH, HeaderValue::from_static(list));
            }
            is_known(&headers, &HeaderValue::from_static("\"0f3a\""))
        };
        for lists in [
            &["\"0f3a\""][..],
            &["W/\"0f3a\""],
            &["\"1\", W/\"0f3a\""],
            &["\"1\"", "\"0f3a\""],
            &["*"],
        ] {
            assert!(known(lists), "{lists:?}");
        }
        for lists in [&[][..], &[""], &["0f3a"], &["\"1\",\"2\""], &["\"0f3a"]] {
            assert!(!known(lists), "{lists:?}");
        }
    }
}
