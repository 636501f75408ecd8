//! The lock stage: decides for a whole group of attempts in one round trip who owns its key.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::admin::{Dependency, Readiness};
use pulsestream_shared::cache::memory::MemoryLocks;
use pulsestream_shared::cache::{Cache, LockChange, LockRecord, LockReply, LockRequest};
use pulsestream_shared::clock;
use pulsestream_shared::problem::Code;
use pulsestream_shared::store::KeyHash;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::breaker::{CacheBreaker, LaneGate};
use super::settle::Change;
use super::{Answer, MAX_GROUP, Owned, PROBE_INTERVAL, Waiting};
use crate::idempotency::{Verdict, first_attempt, judge, next_attempt};
use crate::metrics::GatewayMetrics;

pub(super) struct Locks {
    pub(super) cache: Arc<dyn Cache>,
    pub(super) breaker: CacheBreaker,
    pub(super) local: Arc<MemoryLocks>,
    pub(super) lanes: Vec<mpsc::Sender<Owned>>,
    pub(super) gates: Arc<[LaneGate]>,
    pub(super) settle: mpsc::Sender<Change>,
    pub(super) readiness: Readiness,
    pub(super) metrics: Arc<GatewayMetrics>,
    pub(super) lease: Duration,
    pub(super) lease_ms: i64,
    pub(super) max_event_age_ms: i64,
}

/// A lapsed key that an attempt wants to take over.
struct Takeover {
    waiting: Waiting,
    seen: LockRecord,
    next: LockRecord,
}

impl Locks {
    /// Runs until `stop`, then until the queue is empty.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Waiting>, stop: CancellationToken) {
        let mut group = Vec::with_capacity(MAX_GROUP);
        // One for all rounds: begun anew with each group, it would never end under load.
        let probing = self.probe();
        tokio::pin!(probing);
        loop {
            // Cancel safe: a cancelled recv_many has taken nothing.
            let taken = tokio::select! {
                taken = queue.recv_many(&mut group, MAX_GROUP) => taken,
                () = stop.cancelled() => {
                    queue.close();
                    queue.recv_many(&mut group, MAX_GROUP).await
                }
                never = &mut probing => match never {},
            };
            if taken == 0 {
                return;
            }
            self.lock_group(std::mem::take(&mut group)).await;
        }
    }

    /// Asks a cache that is not used, from time to time, whether it lives again.
    async fn probe(&self) -> Infallible {
        loop {
            tokio::time::sleep(PROBE_INTERVAL).await;
            if self.breaker.is_open() && self.cache.key(&KeyHash([0; 32])).await.is_ok() {
                self.breaker.set_open(false);
                self.readiness.note(Dependency::Cache, Ok(()));
            }
        }
    }

    async fn lock_group(&self, group: Vec<Waiting>) {
        let lease_ends = Instant::now() + self.lease;
        let now_ms = clock::unix_ms();
        let group = self.answer_from_local(group, now_ms, lease_ends);
        if group.is_empty() {
            return;
        }
        let requests: Vec<_> = group.iter().map(|waiting| self.request(waiting, now_ms)).collect();
        match self.lock_shared(&requests).await {
            Some(replies) => self.use_replies(group, &requests, replies, lease_ends).await,
            None => self.lock_local(group, &requests, now_ms, lease_ends),
        }
    }

    /// Keys locked in this process while the cache was away stay this process's: the cache knows
    /// nothing of them. Returns the rest of the group.
    fn answer_from_local(
        &self,
        group: Vec<Waiting>,
        now_ms: i64,
        lease_ends: Instant,
    ) -> Vec<Waiting> {
        if self.local.is_empty() {
            return group;
        }
        let looks: Vec<_> =
            group.iter().map(|w| LockRequest { key: w.attempt.key, record: None }).collect();
        let replies = self.local.lock(&looks, now_ms);
        let mut rest = Vec::with_capacity(group.len());
        for (waiting, reply) in group.into_iter().zip(replies) {
            match reply {
                LockReply::Held(seen) => {
                    self.use_local_record(waiting, seen, now_ms, lease_ends);
                }
                _ => rest.push(waiting),
            }
        }
        rest
    }

    fn request(&self, waiting: &Waiting, now_ms: i64) -> LockRequest {
        let Waiting { attempt, .. } = waiting;
        let record = first_attempt(attempt.fingerprint, now_ms, self.lease_ms);
        LockRequest { key: attempt.key, record: (!attempt.too_old).then_some(record) }
    }

    /// `None` when the cache is not to be used, or did not answer.
    async fn lock_shared(&self, requests: &[LockRequest]) -> Option<Vec<LockReply>> {
        if self.breaker.is_open() {
            return None;
        }
        match self.cache.lock(requests).await {
            Ok(replies) => Some(replies),
            Err(error) => {
                self.breaker.set_open(true);
                self.readiness.note(Dependency::Cache, Err(error.to_string()));
                None
            }
        }
    }

    async fn use_replies(
        &self,
        group: Vec<Waiting>,
        requests: &[LockRequest],
        replies: Vec<LockReply>,
        lease_ends: Instant,
    ) {
        let now_ms = clock::unix_ms();
        let mut takeovers = Vec::new();
        for ((waiting, request), reply) in group.into_iter().zip(requests).zip(replies) {
            match (reply, request.record) {
                (LockReply::Acquired, Some(record)) => {
                    self.count("new");
                    self.send(Owned {
                        waiting,
                        record,
                        taken_over: false,
                        local: false,
                        lease_ends,
                    });
                }
                (LockReply::Acquired | LockReply::Free, _) => self.decline(waiting, Answer::TooOld),
                (LockReply::Full, _) => self.decline(waiting, Answer::Failed(Code::Overloaded)),
                (LockReply::Held(seen), _) => {
                    takeovers.extend(self.judge(waiting, seen, now_ms));
                }
            }
        }
        if !takeovers.is_empty() {
            self.take_over(takeovers, lease_ends).await;
        }
    }

    /// Answers by a known record, or says that the attempt may take it over.
    fn judge(&self, waiting: Waiting, seen: LockRecord, now_ms: i64) -> Option<Takeover> {
        match judge(&seen, waiting.attempt.fingerprint, now_ms) {
            Verdict::Replay => {
                self.count("replay");
                self.decline(waiting, Answer::Replayed);
            }
            Verdict::Mismatch => {
                self.count("mismatch");
                self.decline(waiting, Answer::Failed(Code::IdempotencyMismatch));
            }
            Verdict::InProgress => {
                self.count("in_flight");
                self.decline(waiting, Answer::Failed(Code::InProgress));
            }
            Verdict::TakeOver if self.was_too_old(&waiting, &seen) => {
                self.decline(waiting, Answer::TooOld)
            }
            Verdict::TakeOver => {
                self.count("takeover");
                let next = next_attempt(&seen, now_ms, self.lease_ms);
                return Some(Takeover { waiting, seen, next });
            }
        }
        None
    }

    /// The age rule is judged at the first attempt: a retry after a lost answer is never too old.
    fn was_too_old(&self, waiting: &Waiting, seen: &LockRecord) -> bool {
        let timestamp_ms = waiting.attempt.accepted.event.timestamp_ms;
        seen.first_at_ms.saturating_sub(timestamp_ms) > self.max_event_age_ms
    }

    async fn take_over(&self, takeovers: Vec<Takeover>, lease_ends: Instant) {
        let swaps: Vec<_> = takeovers.iter().map(Takeover::swap).collect();
        let swapped = match self.cache.settle(&swaps).await {
            Ok(swapped) => swapped,
            Err(error) => {
                self.breaker.set_open(true);
                self.readiness.note(Dependency::Cache, Err(error.to_string()));
                vec![false; takeovers.len()]
            }
        };
        for (takeover, won) in takeovers.into_iter().zip(swapped) {
            let Takeover { waiting, next: record, .. } = takeover;
            if won {
                self.send(Owned { waiting, record, taken_over: true, local: false, lease_ends });
            } else {
                self.decline(waiting, Answer::Failed(Code::InProgress));
            }
        }
    }

    fn lock_local(
        &self,
        group: Vec<Waiting>,
        requests: &[LockRequest],
        now_ms: i64,
        lease_ends: Instant,
    ) {
        let replies = self.local.lock(requests, now_ms);
        for ((mut waiting, request), reply) in group.into_iter().zip(requests).zip(replies) {
            match (reply, request.record) {
                (LockReply::Full, _) => self.decline(waiting, Answer::Failed(Code::Overloaded)),
                (LockReply::Acquired, Some(record)) => {
                    self.count("local");
                    waiting.attempt.accepted.unsure = true;
                    self.send(Owned {
                        waiting,
                        record,
                        taken_over: false,
                        local: true,
                        lease_ends,
                    });
                }
                (LockReply::Held(seen), _) => {
                    self.use_local_record(waiting, seen, now_ms, lease_ends);
                }
                // An old event whose key cannot be looked up: it may well be a retry, so not 400.
                _ => self.decline(waiting, Answer::Failed(Code::Unavailable)),
            }
        }
    }

    fn use_local_record(
        &self,
        waiting: Waiting,
        seen: LockRecord,
        now_ms: i64,
        lease_ends: Instant,
    ) {
        let Some(mut takeover) = self.judge(waiting, seen, now_ms) else { return };
        let won = self.local.settle(&[takeover.swap()], now_ms);
        if won != [true] {
            return self.decline(takeover.waiting, Answer::Failed(Code::InProgress));
        }
        takeover.waiting.attempt.accepted.unsure = true;
        let Takeover { waiting, next: record, .. } = takeover;
        self.send(Owned { waiting, record, taken_over: true, local: true, lease_ends });
    }

    fn send(&self, owned: Owned) {
        let Some(lane) = self.lanes.get(owned.waiting.lane) else { return };
        let Err(refused) = lane.try_send(owned) else { return };
        let refused = refused.into_inner();
        Change::release(&refused).queue(&self.settle, &self.metrics);
        self.decline(refused.waiting, Answer::Failed(Code::Overloaded));
    }

    /// Answers an attempt that does not go to the log. Was it the probe of a closed gate, it has told
    /// nothing about the log: the next attempt may probe.
    fn decline(&self, waiting: Waiting, answer: Answer) {
        if let Some(gate) = self.gates.get(waiting.lane) {
            gate.probe_unused();
        }
        waiting.answer(answer);
    }

    fn count(&self, result: &str) {
        self.metrics.idempotency.with_label_values(&[result]).inc();
    }
}

impl Takeover {
    fn swap(&self) -> LockChange {
        let key = self.waiting.attempt.key;
        LockChange::Swap { key, expected: self.seen, record: Some(self.next) }
    }
}
