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
use axum::routing::post;
use pulsestream_shared::problem::{Code, Problem};

use crate::admission::{Admission, Counted, admit};
use crate::ingest::Ingest;
use crate::metrics::GatewayMetrics;
use crate::{batch, ingest};

/// What the handler of a busy route needs.
struct Busy {
    admission: Admission,
    counted: Counted,
    ingest: Arc<Ingest>,
}

pub(crate) fn router(
    ingest: &Arc<Ingest>,
    metrics: &Arc<GatewayMetrics>,
    max_in_flight: usize,
) -> Router {
    let admission = Admission::new(metrics.clone(), max_in_flight);
    let busy = |route| {
        let counted = Counted::posts(metrics, route);
        Arc::new(Busy { admission: admission.clone(), counted, ingest: ingest.clone() })
    };
    let rest = Router::new()
        .fallback(|| async { Problem::from(Code::NotFound) })
        .layer(from_fn_with_state(admission.clone(), admit));
    let events = post(accept_event).fallback(only_post).with_state(busy("/v1/events"));
    let batches = post(accept_batch).fallback(only_post).with_state(busy("/v1/events/batch"));
    Router::new().route("/v1/events", events).route("/v1/events/batch", batches).merge(rest)
}

async fn accept_event(State(busy): State<Arc<Busy>>, request: Request) -> Response {
    busy.admission.run(&busy.counted, ingest::accept(&busy.ingest, request)).await
}

async fn accept_batch(State(busy): State<Arc<Busy>>, request: Request) -> Response {
    busy.admission.run(&busy.counted, batch::accept(&busy.ingest, request)).await
}

async fn only_post(State(busy): State<Arc<Busy>>, method: Method) -> Response {
    let refuse = async {
        let detail = format!("{method} is not allowed here, POST is");
        let mut response = Problem::from(Code::MethodNotAllowed).detail(detail).into_response();
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        response
    };
    busy.admission.run_other(&busy.counted, &method, refuse).await
}
