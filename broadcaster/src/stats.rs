//! `GET /v1/stream/stats`: what this broadcaster does, read from the very metrics that `/metrics` tells.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use prometheus::core::Collector;
use prometheus::proto::{Histogram, Metric};
use pulsestream_shared::openapi::{Answer, Operation};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::Scope;
use schemars::JsonSchema;
use serde::Serialize;

use crate::metrics::LiveMetrics;
use crate::stream::Stream;

/// Numbers by the value of a label.
type ByLabel = BTreeMap<String, u64>;

/// Of this broadcaster alone; whatever is counted is counted since its start.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "StreamStats")]
struct Stats {
    /// Open now, by transport.
    connections: ByLabel,
    /// Of all open streams.
    subscriptions: u64,
    /// Bytes of events that subscribers have not taken yet.
    queue_bytes: u64,
    /// Events sent to subscribers, each as often as it was sent.
    deliveries: u64,
    /// Plain WebSockets that were closed because they missed events, by reason.
    dropped: ByLabel,
    /// Gaps that subscribers were told of, by reason.
    gaps: ByLabel,
    /// Streams this broadcaster ended, by close code.
    closes: ByLabel,
    /// Streams that were not opened, by the problem's code.
    refusals: ByLabel,
    /// Stream tokens made.
    tokens: u64,
    /// Places at which streams began, by transport and verdict.
    resumes: BTreeMap<String, ByLabel>,
    relay: Relay,
    hub: Hub,
    freshness: Freshness,
}

/// What it takes from the log and publishes for all broadcasters. They share the partitions.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Relay {
    /// Records of the log not yet published, by partition, of those this broadcaster relays or relayed.
    lag_records: ByLabel,
    /// Ranges published.
    batches: u64,
}

/// What it hears.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Hub {
    /// Ranges it fetched itself because the bus did not bring them, by source.
    repairs: ByLabel,
    /// Repeats in the log that were not shown again.
    repeats: u64,
}

/// From acceptance of an event until it was handed to subscribers.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Freshness {
    /// Events that somebody was shown.
    events: u64,
    /// Half of them took no longer; `null` without events, and above the longest time that is told apart.
    p50_ms: Option<u64>,
    /// 99 of 100 took no longer.
    p99_ms: Option<u64>,
}

pub(crate) async fn stats(State(stream): State<Arc<Stream>>, headers: HeaderMap) -> Response {
    match stream.access.key(&headers, Scope::Admin).await {
        Ok(_) => {
            let no_store = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            ([no_store], Json(Stats::of(&stream.metrics))).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

impl Stats {
    fn of(metrics: &LiveMetrics) -> Self {
        let held = metrics.load.held();
        Self {
            connections: by_label(&metrics.connections, "transport"),
            subscriptions: count(held.subscriptions),
            queue_bytes: count(held.queue_bytes),
            deliveries: metrics.sent.deliveries.get(),
            dropped: by_label(&metrics.dropped, "reason"),
            gaps: by_label(&metrics.sent.gaps, "reason"),
            closes: by_label(&metrics.closes, "code"),
            refusals: by_label(&metrics.refusals, "code"),
            tokens: metrics.tokens.get(),
            resumes: by_transport(&metrics.resumes),
            relay: Relay {
                lag_records: by_label(&metrics.relay_lag_records, "partition"),
                batches: metrics.relay_batches.get(),
            },
            hub: Hub {
                repairs: by_label(&metrics.repairs, "source"),
                repeats: metrics.repeats.get(),
            },
            freshness: Freshness::of(&metrics.freshness),
        }
    }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn series(vector: &impl Collector) -> Vec<Metric> {
    let families = vector.collect();
    families.iter().flat_map(|family| family.get_metric().iter().cloned()).collect()
}

fn label<'m>(metric: &'m Metric, name: &str) -> &'m str {
    let label = metric.get_label().iter().find(|label| label.name() == name);
    label.map_or("", |label| label.value())
}

/// The value of a counter or of a gauge; the other one is nothing.
fn value(metric: &Metric) -> u64 {
    let value = metric.get_counter().get_value() + metric.get_gauge().get_value();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number")]
    let whole = value.max(0.0) as u64;
    whole
}

fn by_label(vector: &impl Collector, name: &str) -> ByLabel {
    series(vector).iter().map(|metric| (label(metric, name).to_owned(), value(metric))).collect()
}

fn by_transport(vector: &impl Collector) -> BTreeMap<String, ByLabel> {
    let mut all = BTreeMap::<_, ByLabel>::new();
    for metric in &series(vector) {
        let of = all.entry(label(metric, "transport").to_owned()).or_default();
        of.insert(label(metric, "verdict").to_owned(), value(metric));
    }
    all
}

impl Freshness {
    fn of(vector: &impl Collector) -> Self {
        let all = series(vector);
        let socket = all.iter().find(|metric| label(metric, "stage") == "socket");
        let none = Self { events: 0, p50_ms: None, p99_ms: None };
        socket.map_or(none, |metric| Self::read(metric.get_histogram()))
    }

    fn read(histogram: &Histogram) -> Self {
        let events = histogram.get_sample_count();
        let within_ms = |percent: u64| {
            let rank = (events * percent).div_ceil(100).max(1);
            let mut buckets = histogram.get_bucket().iter();
            let bucket = buckets.find(|bucket| bucket.cumulative_count() >= rank)?;
            let ms = (bucket.upper_bound() * 1_000.0).ceil();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a bucket's bound"
            )]
            ms.is_finite().then_some(ms as u64)
        };
        Self { events, p50_ms: within_ms(50), p99_ms: within_ms(99) }
    }
}

/// The route in the API's description.
pub(crate) fn operation() -> Operation {
    let one = |name: &str, number| ByLabel::from([(name.to_owned(), number)]);
    let shown = Stats {
        connections: one("framed", 2),
        subscriptions: 3,
        queue_bytes: 0,
        deliveries: 120,
        dropped: one("slow", 0),
        gaps: one("slow", 0),
        closes: one("1012", 1),
        refusals: one("invalid_token", 1),
        tokens: 4,
        resumes: BTreeMap::from([("framed".to_owned(), one("recovered", 1))]),
        relay: Relay { lag_records: one("0", 0), batches: 60 },
        hub: Hub { repairs: one("log", 0), repeats: 0 },
        freshness: Freshness { events: 60, p50_ms: Some(10), p99_ms: Some(25) },
    };
    let answer = Answer::new(StatusCode::OK, "Ask each broadcaster: none knows of the others.")
        .json::<Stats>()
        .example("stats", "Two dashboards", &shown);
    Operation::get("/v1/stream/stats", "readStreamStats", "Figures of a broadcaster")
        .about("For people and pages; `/metrics` has the same and more, for Prometheus.")
        .tag("live")
        .needs(Scope::Admin)
        .answer(answer)
        .problem(Problem::from(Code::Starting))
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};

    use super::*;

    #[test]
    fn a_share_of_events_took_no_longer_than_the_bound_told() {
        let opts = HistogramOpts::new("t", "t").buckets(vec![0.01, 0.1, 1.0]);
        let freshness = HistogramVec::new(opts, &["stage"]).unwrap();
        let told = || {
            let read = Freshness::of(&freshness);
            (read.events, read.p50_ms, read.p99_ms)
        };
        assert_eq!(told(), (0, None, None));
        let socket = freshness.with_label_values(&["socket"]);
        freshness.with_label_values(&["stored"]).observe(0.001);
        (0..98).for_each(|_| socket.observe(0.005));
        socket.observe(0.05);
        assert_eq!(told(), (99, Some(10), Some(100)));
        (0..3).for_each(|_| socket.observe(5.0));
        assert_eq!(told(), (102, Some(10), None));
    }

    #[test]
    fn numbers_are_told_by_label() {
        let counters = IntCounterVec::new(Opts::new("t", "t"), &["transport", "verdict"]).unwrap();
        counters.with_label_values(&["sse", "recovered"]).inc_by(3);
        counters.with_label_values(&["poll", "recovered"]).inc();
        let told = by_transport(&counters);
        assert_eq!((told["sse"]["recovered"], told["poll"]["recovered"]), (3, 1));
    }
}
