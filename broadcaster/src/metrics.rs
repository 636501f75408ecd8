//! Every metric of the broadcaster.

use std::sync::Arc;

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};
use pulsestream_shared::clock;
use pulsestream_shared::metrics::Metrics;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::service::Context;

use crate::delivery::Outgoing;
use crate::load::Load;
use crate::parcel::Parcel;
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
    /// Plain sockets that were closed because they missed events.
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
    /// Streams that were to begin with the newest values, by what became of that.
    pub(crate) snapshots: IntCounterVec,
    /// Time from acceptance to a later stage.
    pub(crate) freshness: HistogramVec,
    /// What subscribers hold now.
    pub(crate) load: Load,
    /// What they were sent.
    pub(crate) sent: Sent,
}

/// What subscribers were sent.
#[derive(Clone)]
pub(crate) struct Sent {
    /// Events, each as often as it was sent.
    pub(crate) deliveries: IntCounter,
    /// Events for which a newer one of the same device and type was sent.
    pub(crate) conflated: IntCounter,
    /// Gaps that were told, by reason.
    pub(crate) gaps: IntCounterVec,
    /// From acceptance of an event to a write that had it as soon as it came; sockets that share the write
    /// are one.
    fresh: Histogram,
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

impl Sent {
    pub(crate) fn new(registry: &Registry, freshness: &HistogramVec) -> Self {
        let metrics = Metrics(registry);
        let sent = Self {
            fresh: freshness.with_label_values(&["socket"]),
            deliveries: metrics.counter(
                "live_deliveries_total",
                "Events sent to subscribers, each as often as it was sent.",
            ),
            conflated: metrics.counter(
                "live_conflated_total",
                "Events for which a subscriber was sent a newer one of the same device and type.",
            ),
            gaps: metrics.counters(
                "live_gaps_total",
                "Gaps that subscribers were told of, by reason.",
                &["reason"],
            ),
        };
        for reason in GapReason::ALL {
            sent.gaps.with_label_values(&[reason.word()]);
        }
        sent
    }

    /// Counts what so many subscribers are sent.
    pub(crate) fn count(&self, outgoing: &Outgoing, subscribers: u64) {
        match outgoing {
            Outgoing::Events(parcels) => {
                let events: usize = parcels.iter().map(|parcel| parcel.events.len()).sum();
                let left_out: usize = parcels.iter().filter_map(|parcel| parcel.left_out).sum();
                self.deliveries.inc_by(events as u64 * subscribers);
                self.conflated.inc_by(left_out as u64 * subscribers);
                if subscribers > 0 {
                    self.observe_ages(parcels);
                }
            }
            Outgoing::Values(values, _) => {
                self.deliveries.inc_by(values.len() as u64 * subscribers);
            }
            Outgoing::Gap(gap) => {
                self.gaps.with_label_values(&[gap.reason.word()]).inc_by(subscribers);
            }
        }
    }

    /// What a subscriber catches up with is as old as its absence, which says nothing of us.
    fn observe_ages(&self, parcels: &[Arc<Parcel>]) {
        let now_us = clock::unix_us();
        let live = parcels.iter().filter(|parcel| parcel.shared || parcel.left_out.is_some());
        for event in live.flat_map(|parcel| &parcel.events) {
            self.fresh.observe(clock::seconds_between(event.received_at_us, now_us));
        }
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

    pub(crate) fn new(context: &Context, load: Load, sent: Sent) -> Self {
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
            dropped: metrics.counters(
                "live_dropped_total",
                "Plain sockets that were closed because they missed events, by reason.",
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
            snapshots: metrics.counters(
                "live_snapshots_total",
                "Streams that were to begin with the newest values, by outcome.",
                &["outcome"],
            ),
            freshness: context.freshness.clone(),
            load,
            sent,
        };
        for transport in TRANSPORTS {
            new.connections.with_label_values(&[transport]);
        }
        for transport in TRANSPORTS.into_iter().filter(|transport| *transport != PLAIN) {
            for verdict in Verdict::ALL {
                new.resumes.with_label_values(&[transport, verdict.label()]);
            }
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
