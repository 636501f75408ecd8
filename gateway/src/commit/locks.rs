//! Who owns a key: decides for any number of keys in one round trip.
//!
//! The shared cache is asked; while it is away a table in this process is, and what is locked there is
//! `local`. What a key that is already known means is judged by [`crate::idempotency`]. Nothing here
//! knows what a key is wanted for: single events come in groups from the stage, batches by themselves.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::admin::{Dependency, Readiness};
use pulsestream_shared::cache::memory::MemoryLocks;
use pulsestream_shared::cache::{
    Cache, CacheError, Fingerprint, LockChange, LockKey, LockRecord, LockReply, LockRequest,
    Locked, Outcome,
};
use pulsestream_shared::clock;
use pulsestream_shared::codec::Unsure;
use pulsestream_shared::event::Event;
use pulsestream_shared::problem::Code;
use pulsestream_shared::store::KeyHash;
use tokio::time::Instant;

use super::Answer;
use super::breaker::CacheBreaker;
use super::finishing::{Finishing, finish};
use crate::body::is_too_old;
use crate::idempotency::{Verdict, done, first_attempt, judge, next_attempt};
use crate::metrics::GatewayMetrics;

/// How often a dead cache is asked whether it lives again.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// A key that an attempt wants to own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) key: LockKey,
    pub(super) fingerprint: Fingerprint,
    pub(super) age: Age,
}

/// When what is claimed happened, for the rule that an event must not be too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// The rule does not apply, or its answer is known.
    Fine,
    /// Young enough for a first attempt; unix milliseconds.
    Young(i64),
    /// Too old for one: only looked up, unless an earlier attempt is found. Unix milliseconds.
    Old(i64),
}

/// A key that is ours until the lease ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    pub(super) key: LockKey,
    pub(super) record: LockRecord,
    /// An earlier attempt may be in the log already.
    pub(super) taken_over: bool,
    /// Why somebody else may have accepted another body under the key.
    pub(super) unsure: Option<Unsure>,
    /// The record must be handed to the log before this, on the monotonic clock: afterwards somebody
    /// else may own the key.
    pub(super) ends: Instant,
}

impl Age {
    /// Of an event that was judged when its request came.
    pub(super) fn of(event: &Event, too_old: bool) -> Self {
        let at_ms = event.timestamp_ms;
        if too_old { Self::Old(at_ms) } else { Self::Young(at_ms) }
    }
}

impl Lease {
    /// What is remembered of the key once its event is in the log.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome { key: self.key, record: done(&self.record) }
    }

    /// Locked in this process alone.
    pub(super) fn is_local(&self) -> bool {
        self.unsure == Some(Unsure::Local)
    }
}

/// What a claim came to: the key, or the answer of an attempt that does not get it.
pub(super) type Claimed = Result<Lease, Answer>;

pub(super) struct Locks {
    pub(super) cache: Arc<dyn Cache>,
    pub(super) breaker: CacheBreaker,
    pub(super) local: Arc<MemoryLocks>,
    pub(super) finishing: Arc<Finishing>,
    pub(super) readiness: Readiness,
    pub(super) metrics: Arc<GatewayMetrics>,
    pub(super) lease: Duration,
    pub(super) lease_ms: i64,
    pub(super) max_event_age: Duration,
}

/// The moment of one call: all its leases end together.
#[derive(Clone, Copy)]
struct Moment {
    unix_ms: i64,
    lease_ends: Instant,
}

impl Locks {
    /// Claims each key; answers in order.
    pub(super) async fn claim(&self, claims: &[Claim]) -> Vec<Claimed> {
        let now = Moment { unix_ms: clock::unix_ms(), lease_ends: Instant::now() + self.lease };
        let known = self.known_locally(claims, now);
        if known.iter().all(Option::is_none) {
            return self.claim_unknown(claims, now).await;
        }
        let unknown: Vec<_> =
            claims.iter().zip(&known).filter(|(_, known)| known.is_none()).map(|c| *c.0).collect();
        let mut rest = self.claim_unknown(&unknown, now).await.into_iter();
        let unanswered = || Err(Answer::Failed(Code::Unavailable));
        known
            .into_iter()
            .map(|known| known.or_else(|| rest.next()).unwrap_or_else(unanswered))
            .collect()
    }

    /// Keys locked in this process while the cache was away stay this process's: the cache knows
    /// nothing of them.
    fn known_locally(&self, claims: &[Claim], now: Moment) -> Vec<Option<Claimed>> {
        if self.local.is_empty() {
            return vec![None; claims.len()];
        }
        let looks: Vec<_> =
            claims.iter().map(|c| LockRequest { key: c.key, record: None }).collect();
        let replies = self.local.lock(&looks, now.unix_ms);
        let held = |(claim, reply): (&Claim, LockReply)| match reply {
            LockReply::Held(seen) => Some(self.use_local(claim, seen, now)),
            _ => None,
        };
        claims.iter().zip(replies).map(held).collect()
    }

    async fn claim_unknown(&self, claims: &[Claim], now: Moment) -> Vec<Claimed> {
        if claims.is_empty() {
            return Vec::new();
        }
        let requests: Vec<_> = claims.iter().map(|claim| self.request(claim, now)).collect();
        if !self.breaker.is_open() {
            let finishing = self.finishing.among(claims);
            match self.cache.lock(&requests).await {
                Ok(mut locked) => {
                    finish(&mut locked.replies, &finishing);
                    return self.use_replies(claims, &requests, locked, now).await;
                }
                Err(error) => self.open_breaker(&error),
            }
        }
        self.lock_locally(claims, &requests, now)
    }

    fn request(&self, claim: &Claim, now: Moment) -> LockRequest {
        let record = first_attempt(claim.fingerprint, now.unix_ms, self.lease_ms);
        let old = matches!(claim.age, Age::Old(_));
        LockRequest { key: claim.key, record: (!old).then_some(record) }
    }

    async fn use_replies(
        &self,
        claims: &[Claim],
        requests: &[LockRequest],
        Locked { replies, forgot_at_ms }: Locked,
        now: Moment,
    ) -> Vec<Claimed> {
        self.note_loss(forgot_at_ms);
        let unsure = forgot_at_ms.map(|at_ms| Unsure::Forgotten { at_ms });
        let (mut acquired, mut takeovers) = (0, Vec::new());
        let answered_ms = clock::unix_ms();
        let mut claimed: Vec<_> = (claims.iter().zip(requests).zip(replies).enumerate())
            .map(|(index, ((claim, request), reply))| match (reply, request.record) {
                (LockReply::Acquired, Some(record)) => {
                    acquired += 1;
                    Ok(Lease { unsure, ..lease(claim, record, now) })
                }
                (LockReply::Acquired | LockReply::Free, _) => Err(Answer::TooOld),
                (LockReply::Full, _) => Err(Answer::Failed(Code::Overloaded)),
                (LockReply::Held(seen), _) => {
                    let takeover = self.judge(claim, &seen, answered_ms)?;
                    takeovers.push((index, seen, takeover));
                    // Until the swap says otherwise.
                    Err(Answer::Failed(Code::InProgress))
                }
            })
            .collect();
        self.metrics.new_keys.inc_by(acquired);
        let swaps: Vec<_> = takeovers
            .iter()
            .filter_map(|(index, seen, next)| Some(swap(claims.get(*index)?.key, *seen, *next)))
            .collect();
        let won = self.take_over(&swaps).await;
        for ((index, _, next), _) in takeovers.iter().zip(won).filter(|(_, won)| *won) {
            if let (Some(place), Some(claim)) = (claimed.get_mut(*index), claims.get(*index)) {
                *place = Ok(Lease { taken_over: true, unsure, ..lease(claim, *next, now) });
            }
        }
        claimed
    }

    /// The record by which an attempt takes over a known key, or the answer it gets instead.
    fn judge(&self, claim: &Claim, seen: &LockRecord, now_ms: i64) -> Result<LockRecord, Answer> {
        let (result, verdict) = match judge(seen, claim.fingerprint, now_ms) {
            Verdict::Replay => ("replay", Err(Answer::Replayed { first_at_ms: seen.first_at_ms })),
            Verdict::Mismatch => ("mismatch", Err(Answer::Failed(Code::IdempotencyMismatch))),
            Verdict::InProgress => ("in_flight", Err(Answer::Failed(Code::InProgress))),
            Verdict::TakeOver if self.was_too_old(claim, seen) => return Err(Answer::TooOld),
            Verdict::TakeOver => ("takeover", Ok(next_attempt(seen, now_ms, self.lease_ms))),
        };
        self.count(result);
        verdict
    }

    /// The age rule is judged at the first attempt: a retry after a lost answer is never too old.
    fn was_too_old(&self, claim: &Claim, seen: &LockRecord) -> bool {
        match claim.age {
            Age::Fine => false,
            Age::Young(at_ms) | Age::Old(at_ms) => {
                is_too_old(at_ms, seen.first_at_ms, self.max_event_age)
            }
        }
    }

    async fn take_over(&self, swaps: &[LockChange]) -> Vec<bool> {
        if swaps.is_empty() {
            return Vec::new();
        }
        self.cache.settle(swaps).await.unwrap_or_else(|error| {
            self.open_breaker(&error);
            vec![false; swaps.len()]
        })
    }

    fn lock_locally(
        &self,
        claims: &[Claim],
        requests: &[LockRequest],
        now: Moment,
    ) -> Vec<Claimed> {
        let replies = self.local.lock(requests, now.unix_ms);
        (claims.iter().zip(requests).zip(replies))
            .map(|((claim, request), reply)| match (reply, request.record) {
                (LockReply::Full, _) => Err(Answer::Failed(Code::Overloaded)),
                (LockReply::Acquired, Some(record)) => {
                    self.count("local");
                    Ok(Lease { unsure: Some(Unsure::Local), ..lease(claim, record, now) })
                }
                (LockReply::Held(seen), _) => self.use_local(claim, seen, now),
                // An old event whose key cannot be looked up: it may well be a retry, so not 400.
                _ => Err(Answer::Failed(Code::Unavailable)),
            })
            .collect()
    }

    fn use_local(&self, claim: &Claim, seen: LockRecord, now: Moment) -> Claimed {
        let next = self.judge(claim, &seen, now.unix_ms)?;
        if self.local.settle(&[swap(claim.key, seen, next)], now.unix_ms) != [true] {
            return Err(Answer::Failed(Code::InProgress));
        }
        let unsure = Some(Unsure::Local);
        Ok(Lease { taken_over: true, unsure, ..lease(claim, next, now) })
    }

    /// Tells of a loss once, and that it is over.
    fn note_loss(&self, forgot_at_ms: Option<i64>) {
        let lost = &self.metrics.cache_forgot_at_seconds;
        let at_seconds = forgot_at_ms.unwrap_or(0) / 1_000;
        if lost.get() == at_seconds {
            return;
        }
        lost.set(at_seconds);
        match forgot_at_ms {
            Some(at_ms) => tracing::warn!(
                at_ms,
                "redis has lost idempotency keys (restarted, failed over or emptied): for a day the \
                 store looks whether an id is taken"
            ),
            None => tracing::info!("redis has known every idempotency key for a day"),
        }
    }

    fn open_breaker(&self, error: &CacheError) {
        self.breaker.set_open(true);
        self.readiness.note(Dependency::Cache, Err(error.to_string()));
    }

    /// Asks a cache that is not used, from time to time, whether it lives again.
    pub(super) async fn probe(&self) -> Infallible {
        loop {
            tokio::time::sleep(PROBE_INTERVAL).await;
            if self.breaker.is_open() && self.cache.key(&KeyHash([0; 32])).await.is_ok() {
                self.breaker.set_open(false);
                self.readiness.note(Dependency::Cache, Ok(()));
            }
        }
    }

    fn count(&self, result: &str) {
        self.metrics.idempotency.with_label_values(&[result]).inc();
    }
}

/// A first attempt's lease in the shared cache.
fn lease(claim: &Claim, record: LockRecord, now: Moment) -> Lease {
    let ends = now.lease_ends;
    Lease { key: claim.key, record, taken_over: false, unsure: None, ends }
}

fn swap(key: LockKey, expected: LockRecord, next: LockRecord) -> LockChange {
    LockChange::Swap { key, expected, record: Some(next) }
}
