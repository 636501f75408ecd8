//! One lane: appends records that fail together, a group or two at a time.

use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use pulsestream_shared::clock;
use pulsestream_shared::codec::Encoder;
use pulsestream_shared::log::{AppendError, AppendResult, EventLog, NewRecord, Topic};
use pulsestream_shared::problem::Code;
use pulsestream_shared::traces::Step;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::breaker::Breakers;
use super::finishing::Finishing;
use super::settle::Change;
use super::{Answer, MAX_GROUP, Owned, fill};
use crate::metrics::GatewayMetrics;

/// How long a group waits for company when the one before it had some. A record alone never waits. Measured
/// on two cores with 64 and 256 connections: the broker's time per record falls by a sixth to a quarter,
/// and with more requests served the latency falls too; two milliseconds gain no more.
const LINGER: Duration = Duration::from_millis(1);

pub(super) struct Lane {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) partitions: u32,
    pub(super) breakers: Arc<Breakers>,
    pub(super) index: usize,
    /// Groups in flight at most. One, when the log's time for a group hardly depends on its size: the next
    /// is the larger, more so when it lingers. Two, when the log writes by itself what gathered meanwhile: it
    /// is never without work.
    pub(super) groups: usize,
    pub(super) settle: mpsc::Sender<Change>,
    pub(super) finishing: Arc<Finishing>,
    pub(super) metrics: Arc<GatewayMetrics>,
}

impl Lane {
    /// Runs until the lock stage is gone and the queue is empty.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Owned>) {
        let mut group = Vec::with_capacity(MAX_GROUP);
        let mut in_flight = FuturesUnordered::new();
        let mut had_company = false;
        loop {
            // Both lose nothing when the other is taken.
            tokio::select! {
                biased;
                Some(()) = in_flight.next() => {}
                taken = queue.recv_many(&mut group, MAX_GROUP), if in_flight.len() < self.groups => {
                    if taken == 0 {
                        break;
                    }
                    if self.groups == 1 && had_company {
                        sleep(LINGER).await;
                        fill(&mut group, &mut queue);
                    }
                    had_company = group.len() > 1;
                    in_flight.push(self.append_group(std::mem::take(&mut group)));
                }
            }
        }
        in_flight.collect().await
    }

    async fn append_group(&self, mut group: Vec<Owned>) {
        let now = Instant::now();
        // A lease that ran out while the attempt waited here may belong to somebody else by now.
        for late in group.extract_if(.., |owned| owned.lease.ends <= now) {
            late.waiting.answer(Answer::Failed(Code::OutcomeUnknown));
        }
        // What gathered behind a group that was waited for in vain need not wait as long again: it was not
        // tried, so its keys are free.
        if self.breakers.is_open(self.index) {
            for owned in group.extract_if(.., |owned| !owned.waiting.pass.is_probe()) {
                let reason = "records before it were not confirmed".to_owned();
                self.settle_one(owned, Err(AppendError::Unavailable(reason)));
            }
        }
        if group.is_empty() {
            return;
        }
        let mut encoder = Encoder::new(self.partitions, group.len());
        let records = group.iter_mut().map(|owned| record(owned, &mut encoder)).collect();
        self.metrics.group_records.observe(group.len() as f64);
        let started = StdInstant::now();
        let results = self.log.append(Topic::Raw, records).await;
        self.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        if let Some(last) = results.last() {
            self.breakers.note(self.index, last);
        }
        for (owned, result) in group.into_iter().zip(results) {
            self.settle_one(owned, result);
        }
    }

    fn settle_one(&self, mut owned: Owned, result: AppendResult) {
        if let (Some(step), Err(error)) = (&mut owned.waiting.step, &result) {
            step.failed(error.kind());
        }
        if let Err(error) = &result {
            self.metrics.append_errors.with_label_values(&[error.kind()]).inc();
        }
        owned.waiting.step = None;
        match result {
            Ok(_) => {
                let received_at_us = owned.waiting.attempt.accepted.received_at_us;
                let age = clock::seconds_between(received_at_us, clock::unix_us());
                self.metrics.logged.observe(age);
                let trace = owned.waiting.attempt.trace.take();
                self.settle(Change::finish(&owned.lease).traced(trace));
                let local = owned.lease.is_local();
                owned.waiting.answer(Answer::Accepted { local });
            }
            Err(AppendError::Refused(reason)) => {
                tracing::warn!(%reason, "record refused");
                self.settle(Change::release(&owned.lease));
                owned.waiting.answer(Answer::Failed(Code::LogUnavailable));
            }
            Err(AppendError::Unavailable(reason)) => {
                tracing::debug!(%reason, "log unavailable");
                self.settle(Change::release(&owned.lease));
                owned.waiting.answer(Answer::Failed(Code::LogUnavailable));
            }
            // The record may be in the log: the key keeps its fingerprint.
            Err(AppendError::Unknown(reason)) => {
                tracing::debug!(%reason, "append not confirmed");
                self.settle(Change::give_up(&owned.lease));
                owned.waiting.answer(Answer::Failed(Code::OutcomeUnknown));
            }
        }
    }

    fn settle(&self, change: Change) {
        change.queue(&self.settle, &self.finishing, &self.metrics);
    }
}

fn record(owned: &mut Owned, encoder: &mut Encoder) -> NewRecord {
    let attempt = &owned.waiting.attempt;
    owned.waiting.step = attempt.trace.as_ref().map(|trace| trace.send(Topic::Raw, 1));
    let trace = owned.waiting.step.as_ref().map(Step::parent);
    let record = encoder.encode(&attempt.accepted, trace);
    NewRecord { outcomes: vec![owned.lease.outcome()], ..record }
}
