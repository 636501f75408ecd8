//! Every metric of the gateway.

use prometheus::{Histogram, HistogramVec, IntCounterVec, IntGauge};
use pulsestream_shared::metrics::{GROUP_RECORDS, LATENCY_SECONDS, Metrics};
use pulsestream_shared::service::Context;

/// The gateway's metrics; all without the prefix `pulsestream_`.
pub(crate) struct GatewayMetrics {
    /// Answers by route template, method and status.
    pub(crate) requests: IntCounterVec,
    /// Seconds from the request's headers to the answer's, by route template.
    pub(crate) request_seconds: HistogramVec,
    /// Requests being worked on; rises without falling when something behind hangs.
    pub(crate) in_flight: IntGauge,
    /// What became of events.
    pub(crate) events: IntCounterVec,
    /// What the idempotency check said.
    pub(crate) idempotency: IntCounterVec,
    /// Seconds one group waited for the log.
    pub(crate) append_seconds: Histogram,
    /// Records that went to the log together.
    pub(crate) group_records: Histogram,
    /// Records without an offset, by kind.
    pub(crate) append_errors: IntCounterVec,
    /// Outcomes that were not written to the cache; their keys are taken over after their lease.
    pub(crate) outcomes_lost: prometheus::IntCounter,
    /// What became of queries of the read API.
    pub(crate) read_queries: IntCounterVec,
    /// Time from acceptance to a later stage.
    pub(crate) freshness: HistogramVec,
}

impl GatewayMetrics {
    pub(crate) fn new(context: &Context) -> Self {
        let metrics = Metrics(&context.registry);
        let new = Self {
            requests: metrics.counters(
                "http_requests_total",
                "Answers by route template, method and status.",
                &["route", "method", "status"],
            ),
            request_seconds: metrics.histograms(
                "http_request_duration_seconds",
                "Time from a request's headers to its answer's, by route template.",
                &["route"],
                &LATENCY_SECONDS,
            ),
            in_flight: metrics.gauge("http_requests_in_flight", "Requests being worked on."),
            events: metrics.counters("ingest_events_total", "What became of events.", &["result"]),
            idempotency: metrics.counters(
                "idempotency_total",
                "What the idempotency check said.",
                &["result"],
            ),
            append_seconds: metrics.histogram(
                "append_duration_seconds",
                "Time one group of records waited for the log.",
                &LATENCY_SECONDS,
            ),
            group_records: metrics.histogram(
                "append_group_records",
                "Records that went to the log together.",
                &GROUP_RECORDS,
            ),
            append_errors: metrics.counters(
                "append_errors_total",
                "Records the log did not confirm.",
                &["kind"],
            ),
            outcomes_lost: metrics.counter(
                "idempotency_outcomes_lost_total",
                "Outcomes not written to the cache; their keys are taken over after their lease.",
            ),
            read_queries: metrics.counters(
                "read_queries_total",
                "Queries of the read API by what became of them.",
                &["result"],
            ),
            freshness: context.freshness.clone(),
        };
        // Counters exist from the start: a rate over a series that appears with its first error is 0.
        for result in [
            "accepted",
            "replayed",
            "rejected",
            "conflict",
            "mismatch",
            "shed",
            "unavailable",
            "unknown",
        ] {
            new.events.with_label_values(&[result]);
        }
        for result in ["answered", "shed", "too_slow", "unavailable"] {
            new.read_queries.with_label_values(&[result]);
        }
        for kind in ["refused", "unknown", "unavailable"] {
            new.append_errors.with_label_values(&[kind]);
        }
        new
    }
}
