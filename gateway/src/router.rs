//! The gateway's routes, with admission and counting around them.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use prometheus::IntGauge;
use pulsestream_shared::problem::{Code, Problem};

use crate::ingest::{self, Ingest};
use crate::metrics::GatewayMetrics;
use crate::read::{self, Read};

#[derive(Clone)]
struct Admission {
    metrics: Arc<GatewayMetrics>,
    most: i64,
}

pub(crate) fn router(
    ingest: Arc<Ingest>,
    read: Arc<Read>,
    metrics: Arc<GatewayMetrics>,
    max_in_flight: usize,
) -> Router {
    let most = i64::try_from(max_in_flight).unwrap_or(i64::MAX);
    let admission = Admission { metrics, most };
    let events = post(ingest::accept).with_state(ingest).merge(read::get_events(read.clone()));
    Router::new()
        .route("/v1/events", events.fallback(|method| not_allowed(method, "GET, HEAD, POST")))
        .merge(read::routes(read))
        .fallback(|| async { Problem::from(Code::NotFound) })
        .layer(from_fn_with_state(admission, admit))
}

/// A `405` that names the methods of the path.
pub(crate) async fn not_allowed(method: Method, allow: &'static str) -> Response {
    let detail = format!("{method} is not allowed here; allowed: {allow}");
    let mut response = Problem::from(Code::MethodNotAllowed).detail(detail).into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// Bounds the requests at work, and counts and times every answer.
async fn admit(State(admission): State<Admission>, request: Request, next: Next) -> Response {
    let metrics = &admission.metrics;
    let _in_flight = InFlight::enter(&metrics.in_flight);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let method = method_label(request.method());
    let started = Instant::now();
    let response = if metrics.in_flight.get() > admission.most {
        metrics.events.with_label_values(&["shed"]).inc();
        Problem::from(Code::Overloaded).into_response()
    } else {
        next.run(request).await
    };
    metrics.request_seconds.with_label_values(&[route]).observe(started.elapsed().as_secs_f64());
    metrics.requests.with_label_values(&[route, method, status_label(response.status())]).inc();
    response
}

/// Falls again however the request ends, also when its client goes away.
struct InFlight<'a>(&'a IntGauge);

impl<'a> InFlight<'a> {
    fn enter(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A closed set: a client may invent methods.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

fn status_label(status: StatusCode) -> &'static str {
    match status.as_u16() {
        101 => "101",
        200 => "200",
        202 => "202",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        405 => "405",
        408 => "408",
        409 => "409",
        413 => "413",
        415 => "415",
        422 => "422",
        429 => "429",
        503 => "503",
        _ => "other",
    }
}
