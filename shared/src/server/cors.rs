//! Which web pages of other origins may read our answers (`server.cors_origins`): the protocol of the
//! Fetch standard. Credentials in the browser's sense (cookies) are never allowed; our keys are headers.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use crate::origins::Origins;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST");
const ALLOWED: HeaderValue = HeaderValue::from_static(
    "authorization, content-encoding, content-type, idempotency-key, last-event-id, traceparent, x-api-key, \
     x-request-id",
);
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "idempotency-replayed, idempotency-status, ratelimit, ratelimit-policy, retry-after, server-timing, \
     stream-recovered, x-request-id",
);
/// Seconds a browser may remember a preflight; no browser takes more than two hours.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// For pages of these.
pub(super) struct Cors(Origins);

impl Cors {
    /// `None` when no origin may: then nothing is done at all.
    pub(super) fn new(origins: &[String]) -> Option<Self> {
        (!origins.is_empty()).then(|| Self(Origins::new(origins)))
    }

    /// The answer to the question a browser asks before the request itself; `None` for any other request.
    pub(super) fn preflight(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        let asks = request.method() == Method::OPTIONS
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let origin = headers.get(header::ORIGIN).filter(|_| asks)?;
        if !self.0.allow(origin) {
            return Some(StatusCode::NO_CONTENT.into_response());
        }
        let grants = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED),
            (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
        ];
        Some((StatusCode::NO_CONTENT, grants).into_response())
    }

    /// Tells the browser whether a page of that origin may read this answer.
    pub(super) fn dress(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let granted = match &self.0 {
            Origins::Any => HeaderValue::from_static("*"),
            Origins::Listed(_) => {
                // For caches, also when this answer is for no such page.
                headers.append(header::VARY, HeaderValue::from_static("origin"));
                let Some(origin) = origin.filter(|origin| self.0.allow(origin)) else { return };
                origin.clone()
            }
        };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, granted);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    const PAGE: &str = "https://dash.example";

    fn cors(origins: &[&str]) -> Option<Cors> {
        Cors::new(&origins.iter().map(|&origin| origin.to_owned()).collect::<Vec<_>>())
    }

    fn only_page() -> Cors {
        cors(&[PAGE]).expect("on")
    }

    fn ask(method: &str, origin: &str) -> Request {
        let request = Request::builder().method(method).uri("/v1/events").header("origin", origin);
        let request = request.header("access-control-request-method", "POST");
        request.body(Body::empty()).expect("a request")
    }

    fn dressed(cors: &Cors, origin: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        cors.dress(Some(&HeaderValue::from_static(origin)), &mut headers);
        headers
    }

    #[test]
    fn without_origins_there_is_no_cors() {
        assert!(cors(&[]).is_none());
    }

    #[test]
    fn a_preflight_of_an_allowed_page_is_granted() {
        let answer = only_page().preflight(&ask("OPTIONS", PAGE)).expect("an answer");
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        let allowed =
            answer.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS].to_str().expect("text");
        for name in ["x-api-key", "idempotency-key", "content-type"] {
            assert!(allowed.contains(name), "{allowed}");
        }
    }

    #[test]
    fn a_preflight_of_another_page_is_granted_nothing() {
        let answer = only_page().preflight(&ask("OPTIONS", "https://evil.example"));
        assert!(answer.expect("an answer").headers().is_empty());
    }

    #[test]
    fn other_requests_are_no_preflight() {
        assert!(only_page().preflight(&ask("POST", PAGE)).is_none());
        let mut plain = ask("OPTIONS", PAGE);
        plain.headers_mut().remove(header::ACCESS_CONTROL_REQUEST_METHOD);
        assert!(only_page().preflight(&plain).is_none());
    }

    #[test]
    fn only_an_exact_origin_may_read_an_answer() {
        assert_eq!(dressed(&only_page(), PAGE)[header::ACCESS_CONTROL_ALLOW_ORIGIN], PAGE);
        for other in ["https://dash.example.evil", "http://dash.example", "null"] {
            let headers = dressed(&only_page(), other);
            assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN), "{other}");
            assert_eq!(headers[header::VARY], "origin");
        }
        let any = dressed(&cors(&["*"]).expect("on"), "https://anyone.example");
        assert_eq!(any[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    }
}
