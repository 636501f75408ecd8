//! The gateway's routes.
//!
//! The two that devices send to admit and count by themselves: a layer costs each request more than
//! everything the gateway does with it. A layer does it for the rest.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, any, post};
use pulsestream_shared::problem::{Code, Problem};

use crate::admission::{Admission, Counted, admit};
use crate::ingest::Ingest;
use crate::metrics::GatewayMetrics;
use crate::read::{self, Read};
use crate::{batch, ingest};

/// What the handler of a busy route needs.
struct Busy {
    admission: Admission,
    counted: Counted,
    ingest: Arc<Ingest>,
}

pub(crate) fn router(
    ingest: &Arc<Ingest>,
    read: Arc<Read>,
    metrics: &Arc<GatewayMetrics>,
    max_in_flight: usize,
) -> Router {
    let admission = Admission::new(metrics.clone(), max_in_flight);
    let busy = |route| {
        let counted = Counted::posts(metrics, route);
        Arc::new(Busy { admission: admission.clone(), counted, ingest: ingest.clone() })
    };
    let layer = from_fn_with_state(admission.clone(), admit);
    let events = post(accept_event)
        .with_state(busy("/v1/events"))
        .merge(read::get_events(read.clone()).layer(layer.clone()))
        .fallback_service(not_allowed("GET, HEAD, POST").layer(layer.clone()));
    let batches = post(accept_batch)
        .with_state(busy("/v1/events/batch"))
        .fallback_service(not_allowed("POST").layer(layer.clone()));
    let rest = Router::new()
        .merge(read::routes(read))
        .fallback(|| async { Problem::from(Code::NotFound) })
        .layer(layer);
    Router::new().route("/v1/events", events).route("/v1/events/batch", batches).merge(rest)
}

async fn accept_event(State(busy): State<Arc<Busy>>, request: Request) -> Response {
    busy.admission.run(&busy.counted, ingest::accept(&busy.ingest, request)).await
}

async fn accept_batch(State(busy): State<Arc<Busy>>, request: Request) -> Response {
    busy.admission.run(&busy.counted, batch::accept(&busy.ingest, request)).await
}

/// A `405` that names the methods of the path.
pub(crate) fn not_allowed(allow: &'static str) -> MethodRouter {
    any(async move |method: Method| {
        let detail = format!("{method} is not allowed here; allowed: {allow}");
        let mut response = Problem::from(Code::MethodNotAllowed).detail(detail).into_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        response
    })
}
