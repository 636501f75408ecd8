//! Every metric of the gateway.

use std::sync::Arc;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};
use pulsestream_shared::admin::Dependency;
use pulsestream_shared::metrics::{GROUP_RECORDS, LATENCY_SECONDS, Metrics};
use pulsestream_shared::problem::Code;
use pulsestream_shared::service::Context;

/// The gateway's metrics; all without the prefix `pulsestream_`.
pub(crate) struct GatewayMetrics {
    /// Answers by route template, method and status.
    pub(crate) requests: IntCounterVec,
    /// Seconds from the request's headers to the answer's, by route template.
    pub(crate) request_seconds: HistogramVec,
    /// Requests being worked on; rises without falling when something behind hangs.
    pub(crate) in_flight: IntGauge,
    /// Bytes of the bodies of those requests.
    pub(crate) bytes_in_flight: IntGauge,
    /// Requests turned away unread because this gateway has no room.
    pub(crate) shed: Shed,
    /// What became of events.
    pub(crate) events: IntCounterVec,
    /// What the idempotency check said.
    pub(crate) idempotency: IntCounterVec,
    /// Of these: the key was not known.
    pub(crate) new_keys: IntCounter,
    /// Events accepted, of `events`.
    pub(crate) accepted: IntCounter,
    /// Seconds one group waited for the log.
    pub(crate) append_seconds: Histogram,
    /// Records that went to the log together.
    pub(crate) group_records: Histogram,
    /// Records without an offset, by kind.
    pub(crate) append_errors: IntCounterVec,
    /// Outcomes that were not written to the cache; their keys are taken over after their lease.
    pub(crate) outcomes_lost: IntCounter,
    /// Partitions of the log that are known to be down.
    pub(crate) log_breaker: Arc<BreakerMetrics>,
    /// Whether the shared cache is used.
    pub(crate) cache_breaker: Arc<BreakerMetrics>,
    /// When the cache was found to have lost keys, less than a day ago; unix seconds, 0: not.
    pub(crate) cache_forgot_at_seconds: IntGauge,
    /// Time from acceptance to the log's confirmation.
    pub(crate) logged: Histogram,
    /// What became of queries of the read API.
    pub(crate) read_queries: IntCounterVec,
}

/// Why a request was turned away; each is a bound of `[ingest]`, or what follows from one.
pub(crate) struct Shed {
    /// `max_in_flight`.
    pub(crate) requests: IntCounter,
    /// `max_in_flight_bytes`.
    pub(crate) bytes: IntCounter,
    /// The share of its device's partition.
    pub(crate) partition: IntCounter,
    /// A queue behind admission.
    pub(crate) queue: IntCounter,
}

impl Shed {
    fn new(metrics: &Metrics<'_>) -> Self {
        let help =
            "Requests answered 503 because this gateway is full, by the bound that was reached.";
        let all = metrics.counters("shed_total", help, &["reason"]);
        let [requests, bytes, partition, queue] = ["requests", "bytes", "partition", "queue"]
            .map(|reason| all.with_label_values(&[reason]));
        Self { requests, bytes, partition, queue }
    }
}

/// What is known to be down and therefore not waited for.
pub(crate) struct BreakerMetrics {
    /// How many breakers of the kind are open now.
    pub(crate) open: IntGauge,
    pub(crate) openings: IntCounter,
}

impl BreakerMetrics {
    fn of_log_and_cache(metrics: &Metrics<'_>) -> [Arc<Self>; 2] {
        let open = metrics.gauges(
            "breakers_open",
            "Partitions of the log (log), or the shared cache (cache), that are not used now.",
            &["dependency"],
        );
        let openings = metrics.counters(
            "breaker_openings_total",
            "How often one was found to be down.",
            &["dependency"],
        );
        [Dependency::Log, Dependency::Cache].map(|dependency| {
            let label = [dependency.as_str()];
            let (open, openings) =
                (open.with_label_values(&label), openings.with_label_values(&label));
            Arc::new(Self { open, openings })
        })
    }

    /// One opened, or closed.
    pub(crate) fn note(&self, open: bool) {
        if open {
            self.open.inc();
            self.openings.inc();
        } else {
            self.open.dec();
        }
    }

    #[cfg(test)]
    pub(crate) fn unseen() -> Arc<Self> {
        let [log, _] = Self::of_log_and_cache(&Metrics(&prometheus::Registry::new()));
        log
    }
}

impl GatewayMetrics {
    pub(crate) fn new(context: &Context) -> Self {
        let metrics = Metrics(&context.registry);
        let events = metrics.counters("ingest_events_total", "What became of events.", &["result"]);
        let idempotency =
            metrics.counters("idempotency_total", "What the idempotency check said.", &["result"]);
        let [log_breaker, cache_breaker] = BreakerMetrics::of_log_and_cache(&metrics);
        let new = Self {
            log_breaker,
            cache_breaker,
            new_keys: idempotency.with_label_values(&["new"]),
            accepted: events.with_label_values(&["accepted"]),
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
            bytes_in_flight: metrics.gauge(
                "http_body_bytes_in_flight",
                "Bytes of bodies of requests being worked on, as declared.",
            ),
            shed: Shed::new(&metrics),
            events,
            idempotency,
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
            cache_forgot_at_seconds: metrics.gauge(
                "cache_forgot_timestamp_seconds",
                "When Redis was found to have lost idempotency keys, less than a day ago; else 0.",
            ),
            logged: context.freshness.with_label_values(&["logged"]),
            read_queries: metrics.counters(
                "read_queries_total",
                "Queries of the read API by what became of them.",
                &["result"],
            ),
        };
        // Counters exist from the start: a rate over a series that appears with its first error is 0.
        for result in [
            "accepted",
            "replayed",
            "rejected",
            "conflict",
            "mismatch",
            "shed",
            "limited",
            "unavailable",
            "unknown",
        ] {
            new.events.with_label_values(&[result]);
        }
        for result in ["answered", "shed", "too_slow", "unavailable"] {
            new.read_queries.with_label_values(&[result]);
        }
        for result in ["new", "replay", "mismatch", "in_flight", "takeover", "local"] {
            new.idempotency.with_label_values(&[result]);
        }
        for kind in ["refused", "unknown", "unavailable"] {
            new.append_errors.with_label_values(&[kind]);
        }
        new
    }

    pub(crate) fn count_events(&self, result: &str, events: usize) {
        if events > 0 {
            self.events.with_label_values(&[result]).inc_by(events as u64);
        }
    }

    pub(crate) fn count_batch(&self, accepted: usize, duplicates: usize, rejected: usize) {
        self.count_events("accepted", accepted);
        self.count_events("replayed", duplicates);
        self.count_events("rejected", rejected);
    }

    /// A request that failed as a whole.
    pub(crate) fn count_failure(&self, code: Code) {
        let result = match code {
            Code::InProgress => "conflict",
            Code::IdempotencyMismatch => "mismatch",
            Code::Overloaded => "shed",
            Code::QuotaExceeded => "limited",
            Code::OutcomeUnknown => "unknown",
            Code::LogUnavailable | Code::Unavailable => "unavailable",
            _ => "rejected",
        };
        self.count_events(result, 1);
    }
}
