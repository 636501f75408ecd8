//! Admission: how many requests are at work at once, and what became of each.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus::{Histogram, IntCounter, IntGauge};
use pulsestream_shared::problem::{Code, Problem};

use crate::metrics::GatewayMetrics;

/// Bounds the requests at work, and counts and times every answer.
#[derive(Clone)]
pub(crate) struct Admission {
    metrics: Arc<GatewayMetrics>,
    most: i64,
}

/// The metrics of a busy route, looked up once.
pub(crate) struct Counted {
    route: &'static str,
    seconds: Histogram,
    accepted: IntCounter,
}

impl Counted {
    /// Of `POST` requests to this route template.
    pub(crate) fn posts(metrics: &GatewayMetrics, route: &'static str) -> Self {
        let seconds = metrics.request_seconds.with_label_values(&[route]);
        let accepted = metrics.requests.with_label_values(&[route, "POST", "202"]);
        Self { route, seconds, accepted }
    }
}

impl Admission {
    pub(crate) fn new(metrics: Arc<GatewayMetrics>, max_in_flight: usize) -> Self {
        Self { metrics, most: i64::try_from(max_in_flight).unwrap_or(i64::MAX) }
    }

    /// Does the work of one `POST`, or sheds it.
    pub(crate) async fn run(
        &self,
        counted: &Counted,
        work: impl Future<Output = Response>,
    ) -> Response {
        let response = self.time(&counted.seconds, work).await;
        if response.status() == StatusCode::ACCEPTED {
            counted.accepted.inc();
        } else {
            self.count(counted.route, &Method::POST, response.status());
        }
        response
    }

    /// Does the work of a request by another method to that route.
    pub(crate) async fn run_other(
        &self,
        counted: &Counted,
        method: &Method,
        work: impl Future<Output = Response>,
    ) -> Response {
        let response = self.time(&counted.seconds, work).await;
        self.count(counted.route, method, response.status());
        response
    }

    async fn time(&self, seconds: &Histogram, work: impl Future<Output = Response>) -> Response {
        let started = Instant::now();
        let response = self.admit(work).await;
        seconds.observe(started.elapsed().as_secs_f64());
        response
    }

    async fn admit(&self, work: impl Future<Output = Response>) -> Response {
        let _in_flight = InFlight::enter(&self.metrics.in_flight);
        if self.metrics.in_flight.get() > self.most {
            self.metrics.events.with_label_values(&["shed"]).inc();
            return Problem::from(Code::Overloaded).into_response();
        }
        work.await
    }

    fn count(&self, route: &str, method: &Method, status: StatusCode) {
        let labels = [route, method_label(method), status_label(status)];
        self.metrics.requests.with_label_values(&labels).inc();
    }
}

/// The same for every other route and method, as a layer.
pub(crate) async fn admit(
    State(admission): State<Admission>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let method = request.method().clone();
    let seconds = admission.metrics.request_seconds.with_label_values(&[route]);
    let response = admission.time(&seconds, next.run(request)).await;
    admission.count(route, &method, response.status());
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
        207 => "207",
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
