//! What every metric of every service has in common: the registry is passed, never global; names begin
//! with `pulsestream_`; labels come from closed sets and never hold a device, a client or a key.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// Seconds, from half a millisecond to ten seconds.
pub const LATENCY_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Seconds from acceptance, to see both a live page and an outage.
pub const FRESHNESS_SECONDS: [f64; 13] =
    [0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];

/// How many records went together.
pub const GROUP_RECORDS: [f64; 9] = [1.0, 2.0, 4.0, 16.0, 64.0, 256.0, 1_000.0, 2_500.0, 5_000.0];

/// Registers the metrics of one service. Registering a name twice on one registry is a bug of ours and
/// is told by the test that builds every service on one registry; the second one then counts unseen.
#[derive(Clone)]
pub struct Metrics<'a>(pub &'a Registry);

impl Metrics<'_> {
    /// A counter without labels.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(opts(name, help)))
    }

    /// A counter with labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(opts(name, help), labels))
    }

    /// A gauge of whole numbers.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(opts(name, help)))
    }

    /// A gauge of seconds.
    pub fn seconds(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::with_opts(opts(name, help)))
    }

    /// A gauge of seconds with labels.
    pub fn seconds_by(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(opts(name, help), labels))
    }

    /// A gauge with labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(opts(name, help), labels))
    }

    /// A histogram without labels.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(opts))
    }

    /// A histogram with labels.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, labels))
    }

    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("metric names and labels are literals");
        if let Err(error) = self.0.register(Box::new(collector.clone())) {
            tracing::error!(%error, "metric not registered");
        }
        collector
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("pulsestream_{name}"), help)
}

/// From acceptance by a gateway to a later stage; made once a process and shared by its services.
pub fn freshness(registry: &Registry) -> HistogramVec {
    let help = "Time from acceptance of an event to the stage: logged, stored, socket.";
    Metrics(registry).histograms("freshness_seconds", help, &["stage"], &FRESHNESS_SECONDS)
}
