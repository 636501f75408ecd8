//! Writes one batch, for as long as it takes: the same again while the store is away, and never less than all
//! of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pulsestream_shared::admin::{Dependency, Readiness};
use pulsestream_shared::clock;
use pulsestream_shared::engine::Engine;
use pulsestream_shared::log::STORE_GROUP;
use pulsestream_shared::retry::Backoff;
use pulsestream_shared::service::Context;
use pulsestream_shared::store::{DeadLetter, StoreError, Written};
use pulsestream_shared::traces::Traces;
use tokio::time::sleep;

use crate::Stopped;
use crate::batch::Batch;
use crate::clients::Clients;
use crate::dead::DeadLetters;
use crate::metrics::ConsumerMetrics;

/// What all writers of a process share.
pub(crate) struct Writer {
    engine: Engine,
    clients: Clients,
    metrics: Arc<ConsumerMetrics>,
    readiness: Readiness,
    traces: Traces,
}

/// A batch that was written, or turned away.
pub(crate) struct Finished {
    pub(crate) batch: Batch,
    pub(crate) written: Written,
    /// How long the last attempt took.
    pub(crate) took: Duration,
}

impl Writer {
    pub(crate) fn new(context: &Context, metrics: Arc<ConsumerMetrics>) -> Self {
        Self {
            engine: context.engine.clone(),
            clients: Clients::new(context.engine.keys.clone()),
            metrics,
            readiness: context.readiness.clone(),
            traces: context.traces.clone(),
        }
    }

    /// Cancelled, it leaves the batch rolled back or committed as a whole; the offsets tell which.
    pub(crate) async fn write(&self, batch: Batch) -> Result<Finished, Stopped> {
        let _span = self.traces.process("store", STORE_GROUP, batch.len(), batch.traces());
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            let started = Instant::now();
            match self.write_once(&batch).await {
                Ok(written) => {
                    let took = started.elapsed();
                    self.readiness.note_work(Dependency::Store, Ok(()));
                    self.metrics.write_seconds.observe(took.as_secs_f64());
                    if let Written::Stored { new, duplicates, dead } = &written {
                        self.count(&batch, *new, *duplicates, dead);
                    }
                    return Ok(Finished { batch, written, took });
                }
                Err(error) if error.is_retryable() => {
                    self.metrics.retries.with_label_values(&["store"]).inc();
                    self.readiness.note_work(Dependency::Store, Err(error.to_string()));
                    sleep(backoff.next_delay()).await;
                }
                Err(error) => {
                    tracing::error!(%error, "the store cannot be used; nothing is dead-lettered");
                    return Err(Stopped);
                }
            }
        }
    }

    async fn write_once(&self, batch: &Batch) -> Result<Written, StoreError> {
        self.clients.learn(batch.clients()).await?;
        let to_store = batch.to_store(|client| self.clients.contains(client));
        let dead_letters = DeadLetters {
            log: self.engine.log.as_ref(),
            partitions: self.engine.partitions,
            epochs: batch.starts().iter().map(|place| (place.partition, place.epoch)).collect(),
            records: batch.records(),
        };
        self.engine.store.write(&to_store, &dead_letters).await
    }

    fn count(&self, batch: &Batch, new: u64, duplicates: u64, dead: &[DeadLetter]) {
        let metrics = &self.metrics;
        metrics.batch_records.observe(batch.len() as f64);
        metrics.records.with_label_values(&["stored"]).inc_by(new);
        metrics.records.with_label_values(&["duplicate"]).inc_by(duplicates);
        metrics.records.with_label_values(&["dead"]).inc_by(dead.len() as u64);
        for letter in dead {
            metrics.dead.with_label_values(&[letter.reason.as_str()]).inc();
        }
        let now_us = clock::unix_us();
        // Counted beside the others and added at its end: one atomic a bucket instead of two a record.
        let stored = metrics.freshness.with_label_values(&["stored"]).local();
        for received_at_us in batch.received_at_us() {
            stored.observe(clock::seconds_between(received_at_us, now_us));
        }
    }
}
