//! Every metric of the broadcaster.

use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use pulsestream_shared::metrics::Metrics;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::service::Context;

use crate::load::Load;
use crate::resume::Verdict;
use crate::snapshot::Without;
use crate::subscription::GapReason;

/// The broadcaster's metrics; all without the prefix `pulsestream_`.
pub(crate) struct LiveMetrics {
    /// Open connections.
    pub(crate) connections: IntGaugeVec,
    /// Streams that were not opened, by the problem's code.
    pub(crate) refusals: IntCounterVec,
    /// Stream tokens handed out.
    pub(crate) tokens: IntCounter,
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
    /// Places clients came back with, by transport and what became of them.
    pub(crate) resumes: IntCounterVec,
    /// Gaps subscribers were told of, by reason.
    pub(crate) gaps: IntCounterVec,
    /// Events for which a subscriber was sent a newer one of the same device and type.
    pub(crate) conflated: IntCounter,
    /// Streams that were to begin with the newest values, by what became of that.
    pub(crate) snapshots: IntCounterVec,
    /// Time from acceptance to a later stage.
    pub(crate) freshness: HistogramVec,
    /// What subscribers hold now.
    pub(crate) load: Load,
}

/// The transport without a place, and all of them.
const PLAIN: &str = "websocket";
const TRANSPORTS: [&str; 4] = [PLAIN, "framed", "sse", "poll"];

/// The outcome of a snapshot that was had.
pub(crate) const SENT: &str = "sent";

/// Why streams are refused, most of the time.
const REFUSED: [Code; 8] = [
    Code::MissingApiKey,
    Code::InvalidApiKey,
    Code::InvalidToken,
    Code::Forbidden,
    Code::TokenRestricted,
    Code::OriginRefused,
    Code::TooManyStreams,
    Code::Overloaded,
];

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

    /// Counts a stream that was not opened.
    pub(crate) fn refused(&self, problem: &Problem) {
        self.refusals.with_label_values(&[problem.code().as_str()]).inc();
    }

    pub(crate) fn new(context: &Context, load: Load) -> Self {
        let metrics = Metrics(&context.registry);
        let new = Self {
            connections: metrics.gauges("live_connections", "Open connections.", &["transport"]),
            refusals: metrics.counters(
                "live_refusals_total",
                "Streams that were not opened, by the code of the problem.",
                &["code"],
            ),
            tokens: metrics.counter("live_tokens_total", "Stream tokens handed out."),
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
                "Places at which streams began, by transport and verdict.",
                &["transport", "verdict"],
            ),
            gaps: metrics.counters(
                "live_gaps_total",
                "Gaps that subscribers were told of, by reason.",
                &["reason"],
            ),
            conflated: metrics.counter(
                "live_conflated_total",
                "Events for which a subscriber was sent a newer one of the same device and type.",
            ),
            snapshots: metrics.counters(
                "live_snapshots_total",
                "Streams that were to begin with the newest values, by outcome.",
                &["outcome"],
            ),
            freshness: context.freshness.clone(),
            load,
        };
        for transport in TRANSPORTS {
            new.connections.with_label_values(&[transport]);
        }
        for transport in TRANSPORTS.into_iter().filter(|transport| *transport != PLAIN) {
            for verdict in Verdict::ALL {
                new.resumes.with_label_values(&[transport, verdict.label()]);
            }
        }
        for reason in GapReason::ALL {
            new.gaps.with_label_values(&[reason.word()]);
        }
        new.snapshots.with_label_values(&[SENT]);
        for without in Without::ALL {
            new.snapshots.with_label_values(&[without.word()]);
        }
        for code in REFUSED {
            new.refusals.with_label_values(&[code.as_str()]);
        }
        new.dropped.with_label_values(&["slow"]);
        new.repairs.with_label_values(&["log"]);
        new
    }
}
