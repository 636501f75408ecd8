//! Every metric of the broadcaster.

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use pulsestream_shared::metrics::Metrics;
use pulsestream_shared::service::Context;

/// The broadcaster's metrics; all without the prefix `pulsestream_`.
pub(crate) struct LiveMetrics {
    /// Open connections.
    connections: IntGaugeVec,
    /// Connections the server closed, by close code.
    pub(crate) closes: IntCounterVec,
    /// Events handed to a subscriber's queue.
    pub(crate) deliveries: IntCounter,
    /// Events a subscriber did not get.
    pub(crate) dropped: IntCounterVec,
    /// Ranges published on the bus.
    pub(crate) relay_batches: IntCounter,
    /// Records of the log not yet published, by partition.
    pub(crate) relay_lag_records: IntGaugeVec,
    /// Ranges the hub fetched itself because the bus did not bring them.
    pub(crate) repairs: IntCounterVec,
    /// Repeats of an event in the log that were not shown again.
    pub(crate) repeats: IntCounter,
    /// Places clients came back with, by what became of them.
    pub(crate) resumes: IntCounterVec,
    /// Gaps subscribers were told of, by reason.
    pub(crate) gaps: IntCounterVec,
    /// Time from acceptance to a later stage.
    pub(crate) freshness: HistogramVec,
}

/// An open connection; counted until it is dropped.
pub(crate) struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl LiveMetrics {
    /// Counts a connection of that transport.
    pub(crate) fn open(&self, transport: &str) -> Open {
        let gauge = self.connections.with_label_values(&[transport]);
        gauge.inc();
        Open(gauge)
    }

    pub(crate) fn new(context: &Context) -> Self {
        let metrics = Metrics(&context.registry);
        let new = Self {
            connections: metrics.gauges("live_connections", "Open connections.", &["transport"]),
            closes: metrics.counters(
                "live_closes_total",
                "Connections the server closed, by close code.",
                &["code"],
            ),
            deliveries: metrics
                .counter("live_deliveries_total", "Events handed to a subscriber's queue."),
            dropped: metrics.counters(
                "live_dropped_total",
                "Events a subscriber did not get, by reason.",
                &["reason"],
            ),
            relay_batches: metrics.counter("relay_batches_total", "Ranges published on the bus."),
            relay_lag_records: metrics.gauges(
                "relay_lag_records",
                "Records of the log not yet published on the bus.",
                &["partition"],
            ),
            repairs: metrics.counters(
                "hub_repairs_total",
                "Ranges the hub fetched itself because the bus did not bring them.",
                &["source"],
            ),
            repeats: metrics.counter(
                "hub_repeats_total",
                "Repeats of an event in the log that were not shown again.",
            ),
            resumes: metrics.counters(
                "live_resumes_total",
                "Cursors clients came back with, by verdict.",
                &["verdict"],
            ),
            gaps: metrics.counters(
                "live_gaps_total",
                "Gaps that subscribers were told of, by reason.",
                &["reason"],
            ),
            freshness: context.freshness.clone(),
        };
        for transport in ["websocket", "framed", "sse", "poll"] {
            new.connections.with_label_values(&[transport]);
        }
        new.resumes.with_label_values(&["recovered"]);
        new.gaps.with_label_values(&["slow"]);
        new.dropped.with_label_values(&["slow"]);
        new.repairs.with_label_values(&["log"]);
        new
    }
}
