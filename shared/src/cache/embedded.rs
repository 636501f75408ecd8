//! The cache of the embedded pipeline: one process, so everything is in memory except the outcomes,
//! which are rows of the log's file.
//!
//! **Durability.** A lock in flight dies with the process, and then its key is free. An outcome that
//! travelled with its append ([`NewRecord::outcome`](crate::log::NewRecord)) is durable with the event,
//! not a moment earlier or later; `Finish` then only forgets the lock. A `Finish` whose append carried
//! no outcome is kept in memory alone. An outcome that came with an event is final: no `Swap` undoes it.
//! **Order.** Changes of one call are applied in order; calls take turns.
//! **Cancellation.** Dropping a call gives back the keys it was still asking the file about.
//! **Bounds.** Locks in flight or left open, key entries and limits, each have a number; at the bound of
//! locks a key that nobody has is answered [`LockReply::Full`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::charges::Charges;
use super::{Cache, CacheError, CachedKey, Charge, LockChange, LockReply, LockRequest, Locked};
use crate::bucket::Debt;
use crate::clock::unix_ms;
use crate::log::embedded::EmbeddedLog;
use crate::log::embedded::fault::Fault;
use crate::log::embedded::outcomes::{Known, alive, read_pages};
use crate::log::embedded::shared::Shared;
use crate::store::KeyHash;

/// How many entries an [`EmbeddedCache`] keeps.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedCacheBounds {
    /// Locks in flight or left open; about 120 bytes each.
    pub locks: usize,
    /// API keys, and marks of revoked ones; and as many limits.
    pub keys: usize,
}

impl Default for EmbeddedCacheBounds {
    /// 30 MB of locks: what a log that confirms nothing leaves open in ten seconds at full speed.
    fn default() -> Self {
        Self { locks: 250_000, keys: 10_000 }
    }
}

/// Idempotency locks and key entries of a single process.
pub struct EmbeddedCache {
    log: Arc<Shared>,
    bounds: EmbeddedCacheBounds,
    keys: Mutex<HashMap<KeyHash, KeyEntry>>,
    charges: Charges,
}

struct KeyEntry {
    dies: Instant,
    content: CachedKey,
}

impl EmbeddedCache {
    /// A cache over the outcomes of a log.
    pub fn new(log: &EmbeddedLog, bounds: EmbeddedCacheBounds) -> Self {
        let charges = Charges::new(bounds.keys);
        Self { log: log.shared(), bounds, keys: Mutex::default(), charges }
    }

    fn with_keys<T>(&self, change: impl FnOnce(&mut HashMap<KeyHash, KeyEntry>) -> T) -> T {
        change(&mut self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes room for one more entry: first the dead ones go, then any that is not a revocation.
    fn make_room(&self, keys: &mut HashMap<KeyHash, KeyEntry>) {
        if keys.len() < self.bounds.keys {
            return;
        }
        let now = Instant::now();
        keys.retain(|_, entry| entry.dies > now);
        if keys.len() >= self.bounds.keys {
            let victim = keys.iter().find(|(_, entry)| entry.content != CachedKey::Revoked);
            if let Some(hash) = victim.map(|(hash, _)| *hash) {
                keys.remove(&hash);
            }
        }
    }
}

/// Keys that are ours unless the file says otherwise; given back when nobody waits for its answer.
struct Asking<'a> {
    log: &'a Shared,
    ours: Vec<&'a LockRequest>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.ours.iter().for_each(|request| self.log.outcomes.give_back(request));
    }
}

#[async_trait]
impl Cache for EmbeddedCache {
    async fn lock(&self, requests: &[LockRequest]) -> Result<Locked, CacheError> {
        let now_ms = unix_ms();
        let known = self.log.outcomes.lock(requests, now_ms, self.bounds.locks);
        let taken = requests.iter().zip(&known);
        let ours = taken.filter(|(_, known)| matches!(known, Known::Ours(_)));
        let mut asking =
            Asking { log: &self.log, ours: ours.map(|(request, _)| request).collect() };
        let pages = known.iter().flat_map(|known| match known {
            Known::Ours(pages) | Known::Free(pages) | Known::Full(pages) => pages.as_slice(),
            Known::Held(_) => &[],
        });
        let pages: Vec<i64> = pages.copied().collect();
        let mut done = HashMap::new();
        if !pages.is_empty() {
            let found = read_pages(&self.log.readers, &pages).await;
            done = found.map_err(|error| CacheError(Fault::of(&error).sentence()))?;
            done.retain(|_, record| alive(record, now_ms));
        }
        asking.ours.retain(|request| done.contains_key(&request.key));
        let replies = requests.iter().zip(known).map(|(request, known)| {
            match (done.get(&request.key).copied(), known) {
                (Some(record), _) | (None, Known::Held(record)) => LockReply::Held(record),
                (None, Known::Free(_)) => LockReply::Free,
                (None, Known::Ours(_)) => LockReply::Acquired,
                (None, Known::Full(_)) => LockReply::Full,
            }
        });
        // Outcomes lie with their events: this cache forgets nothing that the log knows.
        Ok(Locked { replies: replies.collect(), forgot_at_ms: None })
    }

    async fn settle(&self, changes: &[LockChange]) -> Result<Vec<bool>, CacheError> {
        let outcomes = &self.log.outcomes;
        let settle = |change: &LockChange| match change {
            LockChange::Finish(key, record) => {
                outcomes.finish(*key, *record);
                true
            }
            LockChange::Swap { key, expected, record } => outcomes.swap(*key, expected, *record),
        };
        Ok(changes.iter().map(settle).collect())
    }

    async fn key(&self, hash: &KeyHash) -> Result<Option<CachedKey>, CacheError> {
        let now = Instant::now();
        Ok(self.with_keys(|keys| {
            let alive = keys.get(hash).filter(|entry| entry.dies > now);
            alive.map(|entry| entry.content.clone())
        }))
    }

    async fn put_key(
        &self,
        hash: &KeyHash,
        entry: &[u8],
        life: Duration,
    ) -> Result<(), CacheError> {
        let now = Instant::now();
        self.with_keys(|keys| {
            let old = keys.get(hash).filter(|entry| entry.dies > now);
            if old.is_some_and(|entry| entry.content == CachedKey::Revoked) {
                return;
            }
            self.make_room(keys);
            let content = CachedKey::Entry(entry.to_vec());
            keys.insert(*hash, KeyEntry { dies: now + life, content });
        });
        Ok(())
    }

    async fn revoke_key(&self, hash: &KeyHash, life: Duration) -> Result<(), CacheError> {
        self.with_keys(|keys| {
            self.make_room(keys);
            let dies = Instant::now() + life;
            keys.insert(*hash, KeyEntry { dies, content: CachedKey::Revoked });
        });
        Ok(())
    }

    async fn charge(&self, charges: &[Charge]) -> Result<Vec<Debt>, CacheError> {
        Ok(charges.iter().map(|charge| self.charges.add(charge)).collect())
    }
}

#[cfg(test)]
mod tests;
