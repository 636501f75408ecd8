//! What every answer of every service has in common, whatever route gave it.
//!
//! Done around the router and not by layers in it: a layer costs each request about a microsecond. What is
//! switched off costs a comparison.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, Version, header};
use axum::response::Response;

use super::cors::Cors;
use super::routes::Routes;
use crate::config;
use crate::request_id;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The manners of one process.
pub(crate) struct Manners {
    cors: Option<Cors>,
    server_timing: bool,
}

impl Manners {
    pub(crate) fn new(config: &config::Server) -> Self {
        Self { cors: Cors::new(&config.cors_origins), server_timing: config.server_timing }
    }

    /// The answer of the routes to a request, with what every answer has. On a connection that is `closing` by
    /// then, it asks the client to connect anew, elsewhere.
    pub(crate) async fn answer(
        &self,
        routes: &Routes,
        request: Request,
        closing: &AtomicBool,
    ) -> Response {
        let begun = self.server_timing.then(Instant::now);
        let id = request_id::of(request.headers());
        let version = request.version();
        let origin =
            self.cors.as_ref().and_then(|_| request.headers().get(header::ORIGIN).cloned());
        let preflight = self.cors.as_ref().and_then(|cors| cors.preflight(&request));
        let mut response = match preflight {
            Some(response) => response,
            None => request_id::within(id.clone(), routes.answer(request)).await,
        };
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(request_id::HEADER, id);
        if let Some(cors) = &self.cors {
            cors.dress(origin.as_ref(), headers);
        }
        if let Some(begun) = begun {
            let text = format!("total;dur={:.3}", begun.elapsed().as_secs_f64() * 1_000.0);
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(SERVER_TIMING, value);
            }
        }
        // HTTP/2 knows no such header; its connections get GOAWAY.
        if closing.load(Ordering::Relaxed) && version <= Version::HTTP_11 && !switched {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;

    use super::*;
    use crate::problem::{Code, Problem};

    fn manners(cors_origins: &[&str], server_timing: bool) -> Manners {
        let origins: Vec<String> = cors_origins.iter().map(|&origin| origin.to_owned()).collect();
        Manners { cors: Cors::new(&origins), server_timing }
    }

    async fn ask(manners: &Manners, version: Version, closing: bool) -> Response {
        let router = Router::new().route("/", get(async || Problem::from(Code::NotFound)));
        let request = Request::builder().version(version).header("x-request-id", "mine");
        let request = request.body(Body::empty()).expect("a request");
        manners.answer(&router.into(), request, &AtomicBool::new(closing)).await
    }

    #[tokio::test]
    async fn a_problem_tells_the_id_of_its_request() {
        let answer = ask(&manners(&[], false), Version::HTTP_11, false).await;
        assert_eq!(answer.headers()["x-request-id"], "mine");
        assert!(!answer.headers().contains_key("connection"));
        assert!(!answer.headers().contains_key(SERVER_TIMING));
        let body = axum::body::to_bytes(answer.into_body(), 10_000).await.expect("a body");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["requestId"], "mine");
    }

    #[tokio::test]
    async fn a_closing_connection_is_told_where_a_header_can() {
        let manners = manners(&[], false);
        assert_eq!(ask(&manners, Version::HTTP_11, true).await.headers()["connection"], "close");
        assert!(!ask(&manners, Version::HTTP_2, true).await.headers().contains_key("connection"));
    }

    #[tokio::test]
    async fn the_time_an_answer_took_is_told_when_asked_for() {
        let answer = ask(&manners(&[], true), Version::HTTP_11, false).await;
        let text = answer.headers()[SERVER_TIMING].to_str().expect("text");
        let duration = text.strip_prefix("total;dur=").expect("the total");
        assert!(duration.parse::<f64>().is_ok_and(|ms| ms >= 0.0), "{text}");
    }
}
