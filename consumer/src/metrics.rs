//! Every metric of the consumer. Conservation, at every moment and in each process: read = stored + duplicate
//! + dead + given back + pending.

use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};
use pulsestream_shared::metrics::{GROUP_RECORDS, LATENCY_SECONDS, Metrics};
use pulsestream_shared::service::Context;
use pulsestream_shared::store::DeadReason;

/// The consumer's metrics; all without the prefix `pulsestream_`.
pub(crate) struct ConsumerMetrics {
    /// Records taken from the log.
    pub(crate) read: IntCounter,
    /// Records read, gathered or being written: what the store has not answered for.
    pub(crate) pending: IntGauge,
    /// Records by what became of them: settled in the store, or given back.
    pub(crate) records: IntCounterVec,
    /// Dead letters by reason.
    pub(crate) dead: IntCounterVec,
    /// Dead letters in the table, by reason: what waits for a person or for the store.
    pub(crate) letters: IntGaugeVec,
    /// Records of one committed batch.
    pub(crate) batch_records: Histogram,
    /// Seconds of one batch's transaction.
    pub(crate) write_seconds: Histogram,
    /// Batches tried again, by what failed.
    pub(crate) retries: IntCounterVec,
    /// Batches given up because another consumer owns the place.
    pub(crate) fenced: IntCounter,
    /// Partitions this process reads.
    pub(crate) assigned: IntGauge,
    /// Records of the log the store has not taken, by partition.
    pub(crate) lag_records: IntGaugeVec,
    /// Age of the oldest record the store has not taken, by partition.
    pub(crate) lag_seconds: IntGaugeVec,
    /// Records the log dropped before the store took them. Anything but 0 is data loss.
    pub(crate) lost: IntCounter,
    /// Seconds until the store has no day to put events in.
    pub(crate) horizon_seconds: Gauge,
    /// Time from acceptance to a later stage.
    pub(crate) freshness: HistogramVec,
}

impl ConsumerMetrics {
    pub(crate) fn new(context: &Context) -> Self {
        let metrics = Metrics(&context.registry);
        let new = Self {
            read: metrics.counter("consumer_read_records_total", "Records taken from the log."),
            pending: metrics.gauge("consumer_pending_records", "Records read and not settled yet."),
            records: metrics.counters(
                "consumer_records_total",
                "Records settled in the store, or given back to whoever reads them next.",
                &["result"],
            ),
            dead: metrics.counters("dead_letters_total", "Dead letters by reason.", &["reason"]),
            letters: metrics.gauges(
                "dead_letters_kept",
                "Dead letters in the table, neither stored after a replay nor purged.",
                &["reason"],
            ),
            batch_records: metrics.histogram(
                "consumer_batch_records",
                "Records of one committed batch.",
                &GROUP_RECORDS,
            ),
            write_seconds: metrics.histogram(
                "consumer_write_duration_seconds",
                "Time of one batch's transaction.",
                &LATENCY_SECONDS,
            ),
            retries: metrics.counters(
                "consumer_retries_total",
                "Batches tried again, by what failed.",
                &["class"],
            ),
            fenced: metrics.counter(
                "consumer_fenced_total",
                "Batches given up because another consumer owns the place.",
            ),
            assigned: metrics
                .gauge("consumer_assigned_partitions", "Partitions this process reads."),
            lag_records: metrics.gauges(
                "consumer_lag_records",
                "Records of the log the store has not taken.",
                &["partition"],
            ),
            lag_seconds: metrics.gauges(
                "consumer_lag_seconds",
                "Age of the oldest record the store has not taken.",
                &["partition"],
            ),
            lost: metrics.counter(
                "log_lost_records_total",
                "Records the log dropped before the store took them.",
            ),
            horizon_seconds: metrics.seconds(
                "store_horizon_seconds",
                "Time until the store has no day to put events in.",
            ),
            freshness: context.freshness.clone(),
        };
        for result in ["stored", "duplicate", "dead", "given_back"] {
            new.records.with_label_values(&[result]);
        }
        for reason in DeadReason::ALL {
            new.dead.with_label_values(&[reason.as_str()]);
        }
        for class in ["store", "log"] {
            new.retries.with_label_values(&[class]);
        }
        new
    }
}
