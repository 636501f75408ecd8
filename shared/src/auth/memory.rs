//! What one process remembers of API keys, and which lookups are under way. No I/O, no clock.
//!
//! One lock orders the start of a lookup, its end, and the news that a key changed. News removes the
//! lookup it concerns, and a lookup that is no longer under way when it ends is *not remembered*: it may
//! have read the store before the change. So a revoked key cannot be put back by a loader that was
//! slower than the revocation, nor a new one be held unknown. When news was missed, what was read before
//! is *not fresh*: it serves an outage and nothing else. A request that finds its key fresh takes none of
//! these steps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Shared;
use moka::sync::Cache as Memo;
use rand::RngExt as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::STALE;
use crate::store::{KeyHash, KeyRecord};

const KNOWN_KEYS: u64 = 100_000;
/// A table of their own, so that random keys cannot push good ones out.
const UNKNOWN_KEYS: u64 = 10_000;
/// A stale key is used for about so long before the store is asked again: during an outage most requests
/// must not wait for an answer that does not come.
const STALE_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It does not exist, or was revoked.
    Unknown,
    /// Nobody can say.
    Unavailable,
}

pub(super) type Answer = Result<Arc<KeyRecord>, Refusal>;

/// What a lookup found.
pub(super) enum Found {
    /// The key, usable for `life` without asking again; read from the store `age` ago.
    Key { record: Arc<KeyRecord>, age: Duration, life: Duration },
    /// There is no such key.
    Unknown,
    /// Nobody could say.
    Unavailable,
}

/// What is remembered of a key, good for now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recall {
    Fresh(Arc<KeyRecord>),
    /// Valid when it was last read; the store cannot be asked and was tried a moment ago.
    Stale(Arc<KeyRecord>),
    Unknown,
}

/// Part of a lookup.
pub(super) enum Joined {
    /// Somebody else's: wait for it.
    Follow(Shared<oneshot::Receiver<Answer>>),
    /// Ours to make.
    Lead(Lookup, Shared<oneshot::Receiver<Answer>>),
    /// It ended between the look and the call.
    Recalled(Recall),
}

#[derive(Debug, Clone)]
struct Remembered {
    record: Arc<KeyRecord>,
    fresh_until: Instant,
    stale_until: Instant,
    /// Taken from [`Memory::generation`].
    generation: u64,
    stale: bool,
}

struct UnderWay {
    number: u64,
    /// When it began; after [`Memory::missed`] nobody joins it any more.
    generation: u64,
    answer: Shared<oneshot::Receiver<Answer>>,
}

#[derive(Default)]
struct Lookups {
    /// As many as requests at once: each lookup ends by its own deadlines.
    under_way: HashMap<KeyHash, UnderWay>,
    next: u64,
}

/// The memory of a process.
pub(super) struct Memory {
    keys: Memo<KeyHash, Remembered>,
    unknown: Memo<KeyHash, ()>,
    lookups: Mutex<Lookups>,
    /// Counts [`Memory::missed`]: what was remembered before is fresh no more.
    generation: AtomicU64,
}

/// A lookup under way. Dropped unfinished, its followers are told so and the next request begins anew.
pub(super) struct Lookup {
    memory: Arc<Memory>,
    hash: KeyHash,
    number: u64,
    generation: u64,
    tell: Option<oneshot::Sender<Answer>>,
    /// The key was known a while ago.
    pub(super) known: bool,
}

impl Memory {
    pub(super) fn new(negative_ttl: Duration) -> Arc<Self> {
        Arc::new(Self {
            keys: Memo::builder().max_capacity(KNOWN_KEYS).time_to_live(STALE).build(),
            unknown: Memo::builder().max_capacity(UNKNOWN_KEYS).time_to_live(negative_ttl).build(),
            lookups: Mutex::default(),
            generation: AtomicU64::new(0),
        })
    }

    /// What is known of the key without asking anybody; `None`: ask.
    pub(super) fn recall(&self, hash: &KeyHash, now: Instant) -> Option<Recall> {
        let Some(key) = self.keys.get(hash) else {
            return self.unknown.contains_key(hash).then_some(Recall::Unknown);
        };
        if now >= key.fresh_until || key.generation != self.generation() {
            return None;
        }
        Some(if key.stale { Recall::Stale(key.record) } else { Recall::Fresh(key.record) })
    }

    /// Joins the key's lookup, or begins it.
    pub(super) fn join(self: &Arc<Self>, hash: KeyHash, now: Instant) -> Joined {
        let mut lookups = self.lookups();
        let generation = self.generation();
        if let Some(lookup) = lookups.under_way.get(&hash)
            && lookup.generation == generation
        {
            return Joined::Follow(lookup.answer.clone());
        }
        if let Some(recalled) = self.recall(&hash, now) {
            return Joined::Recalled(recalled);
        }
        let (tell, answer) = oneshot::channel();
        let answer = answer.shared();
        lookups.next += 1;
        let number = lookups.next;
        let under_way = UnderWay { number, generation, answer: answer.clone() };
        lookups.under_way.insert(hash, under_way);
        let known = self.keys.contains_key(&hash);
        let (memory, tell) = (self.clone(), Some(tell));
        Joined::Lead(Lookup { memory, hash, number, generation, tell, known }, answer)
    }

    /// The key changed: what is remembered of it, or being looked up, is out of date.
    pub(super) fn changed(&self, hash: &KeyHash) {
        let mut lookups = self.lookups();
        lookups.under_way.remove(hash);
        self.keys.invalidate(hash);
        self.unknown.invalidate(hash);
    }

    /// Any key may have changed: every key is asked for again. Those that were good, or turn out so by a
    /// lookup that began before, are kept for the case that nobody answers.
    pub(super) fn missed(&self) {
        let _ordered = self.lookups();
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.unknown.invalidate_all();
    }

    fn remember(&self, hash: KeyHash, found: &Found, generation: u64, now: Instant) -> Answer {
        let key = match found {
            Found::Key { record, age, life } => Remembered {
                record: record.clone(),
                fresh_until: now + *life,
                stale_until: now + STALE.saturating_sub(*age),
                generation,
                stale: false,
            },
            Found::Unknown => {
                self.keys.invalidate(&hash);
                if generation == self.generation() {
                    self.unknown.insert(hash, ());
                }
                return Err(Refusal::Unknown);
            }
            Found::Unavailable => {
                let known = self.keys.get(&hash).filter(|key| now < key.stale_until);
                let pause = STALE_PAUSE.mul_f64(rand::rng().random_range(0.5..1.0));
                let fresh_until = now + pause;
                Remembered {
                    fresh_until,
                    generation,
                    stale: true,
                    ..known.ok_or(Refusal::Unavailable)?
                }
            }
        };
        self.keys.insert(hash, key.clone());
        Ok(key.record)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn lookups(&self) -> MutexGuard<'_, Lookups> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lookup {
    /// Ends the lookup and tells its followers. Returns what is remembered as fresh, `None` when the key
    /// changed meanwhile, or may have.
    pub(super) fn finish(mut self, found: &Found, now: Instant) -> Option<Answer> {
        let mut lookups = self.memory.lookups();
        let current = self.is_under_way(&lookups);
        let answer = if current {
            lookups.under_way.remove(&self.hash);
            self.memory.remember(self.hash, found, self.generation, now)
        } else {
            match found {
                Found::Key { record, .. } => Ok(record.clone()),
                Found::Unknown => Err(Refusal::Unknown),
                Found::Unavailable => Err(Refusal::Unavailable),
            }
        };
        let fresh = current && self.generation == self.memory.generation();
        drop(lookups);
        if let Some(tell) = self.tell.take() {
            // Nobody may be left to hear it.
            drop(tell.send(answer.clone()));
        }
        fresh.then_some(answer)
    }

    fn is_under_way(&self, lookups: &Lookups) -> bool {
        lookups.under_way.get(&self.hash).is_some_and(|lookup| lookup.number == self.number)
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        let mut lookups = self.memory.lookups();
        if self.is_under_way(&lookups) {
            lookups.under_way.remove(&self.hash);
        }
    }
}

#[cfg(test)]
mod tests;
