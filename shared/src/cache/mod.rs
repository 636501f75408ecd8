//! The cache: idempotency locks, looked-up API keys and the use made of limits, shared by the gateways.
//!
//! Two engines stand behind the port: [`redis`] and [`embedded`] (rows of the log's file). Both pass
//! [`crate::testing::cache`]. Neither judges: what a held lock means for a request is decided in the
//! gateway, from the [`LockRecord`] it is handed.

use async_trait::async_trait;

mod charges;
pub mod embedded;
mod lock;
pub mod memory;
pub mod redis;

pub use lock::{Fingerprint, LockKey, LockRecord, LockState, Outcome, Owner};

use std::time::Duration;

use crate::bucket::{Debt, Rate};
use crate::store::KeyHash;

/// The cache did not answer, or not in time. Nothing is known about what happened to the request.
#[derive(Debug, thiserror::Error)]
#[error("cache unavailable: {0}")]
pub struct CacheError(pub String);

/// One key a gateway wants to own, or only to look at.
#[derive(Debug, Clone)]
pub struct LockRequest {
    /// Client and event.
    pub key: LockKey,
    /// What to write when nobody has it; `None` writes nothing.
    pub record: Option<LockRecord>,
}

/// The answer to a [`LockRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockReply {
    /// Nobody had the key; the caller's record is written.
    Acquired,
    /// Somebody has, or had, it; nothing was written.
    Held(LockRecord),
    /// Nobody had the key, and the caller only looked.
    Free,
    /// Nobody had the key, and there is no room for one more; nothing was written. The cache works: shed
    /// this request, use no local lock.
    Full,
}

/// What [`Cache::lock`] answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// A reply to each request, in order.
    pub replies: Vec<LockReply>,
    /// Set when the cache lost what it knew, less than [`LOCK_LIFE`] ago: when, unix milliseconds by the
    /// cache's clock. Whoever acquired a key since may not be its first owner.
    pub forgot_at_ms: Option<i64>,
}

/// One change to a lock after the attempt.
#[derive(Debug, Clone)]
pub enum LockChange {
    /// The attempt is over: write the outcome, whoever holds the key. The key's remaining life is kept.
    Finish(LockKey, LockRecord),
    /// Replace `expected` by `record`, or delete it when `None`, if it is still exactly that: takeover
    /// of a lapsed lease, release after a definite failure.
    Swap {
        /// Client and event.
        key: LockKey,
        /// What the caller saw.
        expected: LockRecord,
        /// What it becomes; `None` forgets the key.
        record: Option<LockRecord>,
    },
}

/// Events that one gateway let through under a shared limit since it last said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// Which limit; the same word in every gateway.
    pub limit: Box<str>,
    /// How fast the shared debt drains.
    pub rate: Rate,
    /// How many.
    pub events: u32,
}

/// What a shared tier says about an API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachedKey {
    /// The entry as it was put.
    Entry(Vec<u8>),
    /// The key was revoked a moment ago, for good: refuse it, ask nobody.
    Revoked,
}

/// Idempotency locks and key entries, each call over many keys in one round trip.
///
/// **Durability.** Redis: none beyond its own; it tells when it lost keys, and then the store's first event
/// wins.
/// Embedded: a lock in flight is in memory, an outcome is a row written with its event.
/// **Order.** Changes of one call are applied in order; calls that overlap are not ordered.
/// **Duplicates.** Every call may be repeated harmlessly, but a charge made twice counts twice.
/// **Cancellation.** Dropping a call leaves it unknown whether it happened.
/// **Bounds.** An engine with a bound of its own answers [`LockReply::Full`] for each key that does not
/// fit, and the other keys of the call as ever. Redis has none: short of memory, it fails.
/// **Time.** Every call answers within the engine's own timeout or fails with [`CacheError`].
#[async_trait]
pub trait Cache: Send + Sync {
    /// Tries to own each key; answers in order. A key is kept for [`LOCK_LIFE`] from its first attempt. No
    /// key is acquired after a loss without the answer telling of the loss.
    ///
    /// # Errors
    /// [`CacheError`]: none, some or all keys may be ours. Use the local locks.
    async fn lock(&self, requests: &[LockRequest]) -> Result<Locked, CacheError>;

    /// Applies changes; answers in order whether each took place (`Finish` always does).
    ///
    /// # Errors
    /// [`CacheError`]: each may or may not have happened.
    async fn settle(&self, changes: &[LockChange]) -> Result<Vec<bool>, CacheError>;

    /// Looks up the shared entry of an API key.
    ///
    /// # Errors
    /// [`CacheError`]: ask the store.
    async fn key(&self, hash: &KeyHash) -> Result<Option<CachedKey>, CacheError>;

    /// Puts the shared entry of an API key for `life`, unless the key is marked revoked.
    ///
    /// # Errors
    /// [`CacheError`]: harmless, the next lookup goes to the store.
    async fn put_key(&self, hash: &KeyHash, entry: &[u8], life: Duration)
    -> Result<(), CacheError>;

    /// Marks an API key revoked for `life`, replacing its entry, so that a loader that read the store
    /// before the revocation cannot put it back.
    ///
    /// # Errors
    /// [`CacheError`]: entries die by their own age.
    async fn revoke_key(&self, hash: &KeyHash, life: Duration) -> Result<(), CacheError>;

    /// Adds each to the debt of its limit and answers in order what all gateways together now owe, at
    /// most [`Rate::most_debt`]. Never refuses: what is charged went through already. A limit without
    /// debt is forgotten.
    ///
    /// # Errors
    /// [`CacheError`]: each may or may not have been added. Go on by what this process let through.
    async fn charge(&self, charges: &[Charge]) -> Result<Vec<Debt>, CacheError>;
}

/// How long a key is remembered, from its first attempt.
pub const LOCK_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
