//! Admission: how many requests are at work at once, and what became of each.
//!
//! Here a request's span begins and ends, when it is traced: whatever becomes of the request, it passes here.
//!
//! What is turned away is turned away cheaply and at a pace: see [`crate::shedding`].

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus::{Histogram, IntCounter, IntGauge};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::traces::{RequestSpan, Trace, Traces};

use crate::metrics::GatewayMetrics;
use crate::shedding::Paces;

/// Bounds the requests at work, and counts and times every answer.
#[derive(Clone)]
pub(crate) struct Admission {
    metrics: Arc<GatewayMetrics>,
    paces: Arc<Paces>,
    traces: Traces,
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
    pub(crate) fn new(metrics: Arc<GatewayMetrics>, traces: Traces, max_in_flight: usize) -> Self {
        let most = i64::try_from(max_in_flight).unwrap_or(i64::MAX);
        Self { metrics, paces: Arc::default(), traces, most }
    }

    /// Does the work of one `POST`, which may be traced, or sheds it.
    pub(crate) async fn run<Work: Future<Output = Response>>(
        &self,
        counted: &Counted,
        request: Request,
        work: impl FnOnce(Request, Option<Trace>) -> Work,
    ) -> Response {
        let span = self.traces.request(&Method::POST, counted.route, request.headers());
        let work = pin!(work(request, span.as_ref().map(RequestSpan::trace)));
        let response = self.time(&counted.seconds, work).await;
        if let Some(span) = span {
            span.answered(response.status());
        }
        if response.status() == StatusCode::ACCEPTED {
            counted.accepted.inc();
        } else {
            self.count(counted.route, &Method::POST, response.status());
        }
        response
    }

    // Pinned by the caller: a future handed on from one async function to the next lies in each of them
    // twice, and what a request's future weighs is copied and allocated for every request.
    async fn time<Work: Future<Output = Response>>(
        &self,
        seconds: &Histogram,
        work: Pin<&mut Work>,
    ) -> Response {
        let started = Instant::now();
        let response = self.admit(work).await;
        seconds.observe(started.elapsed().as_secs_f64());
        response
    }

    async fn admit<Work: Future<Output = Response>>(&self, work: Pin<&mut Work>) -> Response {
        let Some(place) = self.enter().await else {
            self.metrics.events.with_label_values(&["shed"]).inc();
            self.metrics.shed.requests.inc();
            return Problem::from(Code::Overloaded).into_response();
        };
        let response = work.await;
        drop(place);
        if let Some(pace) = response.extensions().get().and_then(|code| self.paces.of(*code)) {
            pace.turn().await;
        }
        response
    }

    /// A place among the requests at work. One that finds none waits its turn to be told so, and is told
    /// only if there is none then either.
    async fn enter(&self) -> Option<InFlight<'_>> {
        let place = InFlight::enter(&self.metrics.in_flight, self.most);
        if place.is_some() {
            return place;
        }
        self.paces.overloaded.turn().await;
        InFlight::enter(&self.metrics.in_flight, self.most)
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
    let span = admission.traces.request(&method, route, request.headers());
    let seconds = admission.metrics.request_seconds.with_label_values(&[route]);
    let response = admission.time(&seconds, pin!(next.run(request))).await;
    admission.count(route, &method, response.status());
    if let Some(span) = span {
        span.answered(response.status());
    }
    response
}

/// Falls again however the request ends, also when its client goes away.
struct InFlight<'a>(&'a IntGauge);

impl<'a> InFlight<'a> {
    fn enter(gauge: &'a IntGauge, most: i64) -> Option<Self> {
        gauge.inc();
        let place = Self(gauge);
        (gauge.get() <= most).then_some(place)
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
