//! What librdkafka tells about its clients, as metrics.
//!
//! Each client tells every [`INTERVAL_MS`] what it holds and what its brokers did; of some three hundred
//! numbers those are kept that an operator acts on. Readers are left out: they are polled only while they
//! work, and what is told to nobody piles up in librdkafka.
//!
//! Labels are bounded: the client is one of [`Client`], a broker is one of the [`MOST_BROKERS`] with the
//! lowest ids.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Registry};
use rdkafka::statistics::{Broker, Statistics, Window};

use crate::log::{LIVE_GROUP, STORE_GROUP};
use crate::metrics::Metrics;

/// How often a client tells, in milliseconds, as librdkafka wants it.
pub(super) const INTERVAL_MS: &str = "5000";

/// Brokers that are told of; more than one pipeline needs.
const MOST_BROKERS: usize = 32;

/// Whose numbers they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    Producer,
    Store,
    Live,
    Other,
}

impl Client {
    /// The member of that group, without the pipeline's namespace.
    pub(super) fn of_group(group: &str) -> Self {
        match group {
            STORE_GROUP => Self::Store,
            LIVE_GROUP => Self::Live,
            _ => Self::Other,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Store => "store",
            Self::Live => "live",
            Self::Other => "other",
        }
    }
}

/// The metrics of every Kafka client of a process; without the prefix `pulsestream_kafka_`.
#[derive(Clone)]
pub struct ClientMetrics {
    queue_records: IntGaugeVec,
    queue_bytes: IntGaugeVec,
    totals: [IntCounterVec; TOTALS.len()],
    broker_up: IntGaugeVec,
    requests: IntGaugeVec,
    rtt: GaugeVec,
    wait: GaugeVec,
    throttle: GaugeVec,
}

/// The counters, in the order of [`Totals`].
const TOTALS: [(&str, &str); 6] = [
    ("kafka_transmit_errors_total", "Requests that could not be sent."),
    ("kafka_receive_errors_total", "Answers that could not be read."),
    ("kafka_retries_total", "Requests sent again."),
    ("kafka_request_timeouts_total", "Requests without an answer in time."),
    ("kafka_disconnects_total", "Connections to brokers that ended."),
    ("kafka_rebalances_total", "Rebalances of the client's group."),
];

/// Sums over all brokers since the client was made.
type Totals = [u64; TOTALS.len()];

impl ClientMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics<'_>) -> Self {
        let by_broker = ["client", "broker"];
        let by_percentile = ["client", "broker", "percentile"];
        Self {
            queue_records: metrics.gauges(
                "kafka_queue_records",
                "Records the client holds: not yet confirmed, or fetched and not yet taken.",
                &["client"],
            ),
            queue_bytes: metrics.gauges("kafka_queue_bytes", "Bytes of those.", &["client"]),
            totals: TOTALS.map(|(name, help)| metrics.counters(name, help, &["client"])),
            broker_up: metrics.gauges(
                "kafka_broker_up",
                "1 while the client is connected to the broker.",
                &by_broker,
            ),
            requests: metrics.gauges(
                "kafka_requests_outstanding",
                "Requests waiting to be sent to the broker or for its answer.",
                &by_broker,
            ),
            rtt: metrics.seconds_by(
                "kafka_broker_rtt_seconds",
                "Time from a request to the broker's answer, of the last 5 s; 0 without any.",
                &by_percentile,
            ),
            wait: metrics.seconds_by(
                "kafka_send_wait_seconds",
                "Time records waited in the client before they were sent, of the last 5 s.",
                &by_percentile,
            ),
            throttle: metrics.seconds_by(
                "kafka_throttle_seconds",
                "Longest time the broker told the client to hold back, of the last 5 s.",
                &by_broker,
            ),
        }
    }

    /// On a registry of their own, that nobody looks at.
    pub fn unseen() -> Self {
        Self::new(&Metrics(&Registry::new()))
    }
}

/// One client's way to the metrics. A client that is replaced needs a new one: its numbers begin anew.
pub(super) struct Told {
    client: Client,
    metrics: ClientMetrics,
    totals: [IntCounter; TOTALS.len()],
    before: Mutex<Before>,
}

#[derive(Default)]
struct Before {
    totals: Totals,
    brokers: BTreeSet<String>,
}

impl Told {
    pub(super) fn new(client: Client, metrics: &ClientMetrics) -> Arc<Self> {
        let totals = metrics.totals.each_ref().map(|all| all.with_label_values(&[client.as_str()]));
        let before = Mutex::default();
        Arc::new(Self { client, metrics: metrics.clone(), totals, before })
    }

    /// Takes what the client told.
    pub(super) fn tell(&self, told: &Statistics) {
        let client = self.client.as_str();
        let (records, bytes) = held(self.client, told);
        self.metrics.queue_records.with_label_values(&[client]).set(records);
        self.metrics.queue_bytes.with_label_values(&[client]).set(bytes);
        let now = totals(told);
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        for ((counter, now), before) in self.totals.iter().zip(now).zip(before.totals) {
            counter.inc_by(now.saturating_sub(before));
        }
        before.totals = now;
        let brokers = brokers(told);
        for gone in before.brokers.iter().filter(|id| !brokers.contains_key(*id)) {
            self.forget(gone);
        }
        for (id, broker) in &brokers {
            self.tell_broker(id, broker);
        }
        before.brokers = brokers.into_keys().collect();
    }

    fn tell_broker(&self, id: &str, broker: &Broker) {
        let labels = [self.client.as_str(), id];
        let metrics = &self.metrics;
        metrics.broker_up.with_label_values(&labels).set(i64::from(broker.state == "UP"));
        let outstanding = broker.outbuf_cnt.max(0) + broker.waitresp_cnt.max(0);
        metrics.requests.with_label_values(&labels).set(outstanding);
        let percentiles = |gauge: &GaugeVec, window: &Option<Window>| {
            let Some(window) = window else { return };
            for (percentile, us) in [("50", window.p50), ("99", window.p99)] {
                let labels = [labels[0], id, percentile];
                gauge.with_label_values(&labels).set(scaled(us, 1e-6));
            }
        };
        percentiles(&metrics.rtt, &broker.rtt);
        if self.client == Client::Producer {
            percentiles(&metrics.wait, &broker.int_latency);
        }
        if let Some(throttle) = &broker.throttle {
            metrics.throttle.with_label_values(&labels).set(scaled(throttle.max, 1e-3));
        }
    }

    /// Removes the series of a broker that is told of no more. One that was never there is no fault.
    fn forget(&self, id: &str) {
        let labels = [self.client.as_str(), id];
        let metrics = &self.metrics;
        for gauges in [&metrics.broker_up, &metrics.requests] {
            drop(gauges.remove_label_values(&labels));
        }
        drop(metrics.throttle.remove_label_values(&labels));
        for percentile in ["50", "99"] {
            for gauges in [&metrics.rtt, &metrics.wait] {
                drop(gauges.remove_label_values(&[labels[0], id, percentile]));
            }
        }
    }
}

/// Records and bytes in the client. librdkafka counts what a producer holds, and what a consumer holds by
/// partition.
fn held(client: Client, told: &Statistics) -> (i64, i64) {
    let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    if client == Client::Producer {
        return (whole(told.msg_cnt), whole(told.msg_size));
    }
    let partitions = || told.topics.values().flat_map(|topic| topic.partitions.values());
    let records = partitions().map(|partition| partition.fetchq_cnt.max(0)).sum();
    let bytes = partitions().map(|partition| partition.fetchq_size).sum();
    (records, whole(bytes))
}

fn totals(told: &Statistics) -> Totals {
    let sum = |of: fn(&Broker) -> u64| told.brokers.values().map(of).sum();
    let count = |count: i64| u64::try_from(count).unwrap_or(0);
    let group = told.cgrp.as_ref();
    [
        sum(|broker| broker.txerrs),
        sum(|broker| broker.rxerrs),
        sum(|broker| broker.txretries),
        sum(|broker| broker.req_timeouts),
        sum(|broker| broker.disconnects.and_then(|count| count.try_into().ok()).unwrap_or(0)),
        group.map_or(0, |group| count(group.rebalance_cnt)),
    ]
}

/// The brokers proper by id; not the addresses first asked, nor the group's coordinator, which is one of
/// them a second time.
fn brokers(told: &Statistics) -> BTreeMap<String, &Broker> {
    let proper = |broker: &&Broker| broker.nodeid >= 0 && broker.source != "logical";
    let by_id: BTreeMap<_, _> =
        told.brokers.values().filter(proper).map(|broker| (broker.nodeid, broker)).collect();
    by_id.into_iter().take(MOST_BROKERS).map(|(id, broker)| (id.to_string(), broker)).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a gauge of seconds")]
fn scaled(count: i64, unit_seconds: f64) -> f64 {
    count.max(0) as f64 * unit_seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(nodeid: i32, retries: u64) -> Broker {
        Broker {
            nodeid,
            source: "learned".to_owned(),
            state: "UP".to_owned(),
            txretries: retries,
            waitresp_cnt: 2,
            rtt: Some(Window { p50: 1_500, p99: 2_000_000, ..Window::default() }),
            ..Broker::default()
        }
    }

    fn statistics(brokers: Vec<Broker>) -> Statistics {
        let brokers = (0..).map(|n: i32| n.to_string()).zip(brokers).collect();
        Statistics { msg_cnt: 7, msg_size: 700, brokers, ..Statistics::default() }
    }

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("text")
    }

    #[test]
    fn counters_go_on_when_a_client_is_replaced_and_gone_brokers_are_forgotten() {
        let registry = Registry::new();
        let metrics = ClientMetrics::new(&Metrics(&registry));
        let first = Told::new(Client::Producer, &metrics);
        first.tell(&statistics(vec![broker(1, 3), broker(2, 0), broker(-1, 1)]));
        first.tell(&statistics(vec![broker(1, 5), broker(-1, 1)]));
        let text = || text(&registry);
        assert!(text().contains("pulsestream_kafka_retries_total{client=\"producer\"} 6"));
        assert!(text().contains("pulsestream_kafka_queue_records{client=\"producer\"} 7"));
        assert!(!text().contains("broker=\"2\"") && !text().contains("broker=\"-1\""));
        let rtt = "rtt_seconds{broker=\"1\",client=\"producer\",percentile=\"50\"} 0.0015";
        assert!(text().contains(rtt), "{}", text());
        Told::new(Client::Producer, &metrics).tell(&statistics(vec![broker(1, 2)]));
        assert!(text().contains("pulsestream_kafka_retries_total{client=\"producer\"} 8"));
    }

    #[test]
    fn a_large_cluster_makes_no_more_series_than_the_bound() {
        let registry = Registry::new();
        let told = Told::new(Client::Store, &ClientMetrics::new(&Metrics(&registry)));
        told.tell(&statistics((0..1_000).map(|id| broker(id, 0)).collect()));
        assert_eq!(text(&registry).matches("kafka_broker_up{").count(), MOST_BROKERS);
    }
}
