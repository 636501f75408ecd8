//! The gateway's routes.
//!
//! The two that devices send to admit and count by themselves: a layer costs each request more than
//! everything the gateway does with it. A layer does it for the rest. Single events do not even pass the
//! router.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::post;
use pulsestream_shared::problem::{not_allowed, not_found};
use pulsestream_shared::service::Routes;
use pulsestream_shared::traces::Traces;

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

/// `rest`: the routes besides those of `/v1/events` and `/v1/events/batch`.
pub(crate) fn router(
    ingest: &Arc<Ingest>,
    read: &Arc<Read>,
    rest: Router,
    metrics: &Arc<GatewayMetrics>,
    traces: Traces,
    max_in_flight: usize,
) -> Routes {
    let admission = Admission::new(metrics.clone(), traces, max_in_flight);
    let busy = |route| {
        let counted = Counted::posts(metrics, route);
        Arc::new(Busy { admission: admission.clone(), counted, ingest: ingest.clone() })
    };
    let layer = from_fn_with_state(admission.clone(), admit);
    let single = busy("/v1/events");
    let events = post(accept_event)
        .with_state(single.clone())
        .merge(read::get_events(read.clone()).layer(layer.clone()))
        .fallback_service(not_allowed("GET, HEAD, POST").layer(layer.clone()));
    let batches = post(accept_batch)
        .with_state(busy("/v1/events/batch"))
        .fallback_service(not_allowed("POST").layer(layer.clone()));
    let rest = rest.fallback(not_found).layer(layer);
    let router =
        Router::new().route("/v1/events", events).route("/v1/events/batch", batches).merge(rest);
    Routes::from(router)
        .with_shortcut("/v1/events", move |request| accept_event(State(single.clone()), request))
}

async fn accept_event(State(busy): State<Arc<Busy>>, request: Request) -> Response {
    let accept = |request, trace| ingest::accept(&busy.ingest, request, trace);
    busy.admission.run(&busy.counted, request, accept).await
}

async fn accept_batch(State(busy): State<Arc<Busy>>, request: Request) -> Response {
    let accept = |request, trace| batch::accept(&busy.ingest, request, trace);
    busy.admission.run(&busy.counted, request, accept).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of<Answer>(_: impl Fn(State<Arc<Busy>>, Request) -> Answer) -> usize {
        size_of::<Answer>()
    }

    /// It is allocated, and copied into its place, for every event.
    #[test]
    fn the_future_of_an_event_is_small() {
        assert!(bytes_of(accept_event) <= 3_072, "{} bytes", bytes_of(accept_event));
    }
}
