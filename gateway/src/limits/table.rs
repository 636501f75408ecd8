//! Limits by name: a table in shards, bounded whatever names arrive.
//!
//! A limit without debt is not worth its place: a shard that is about to grow first forgets those, ten
//! times a second at most. So the table is as large as what is *in debt* at one moment (an event at a
//! limit of 1,000/s is for a millisecond), not as the number of names. A shard in which every place is
//! in debt takes no new name: the caller goes on without that limit.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pulsestream_shared::bucket::{Bucket, Debt, Rate};

const SHARDS: u64 = 64;
/// Names in one shard; seven eighths of a power of two, which is when the map would grow.
const MOST_IN_SHARD: usize = 3_584;
const FEWEST_TO_SWEEP: usize = 56;
const SWEEP_EVERY_NS: u64 = 100_000_000;

/// One limit.
pub(super) struct Limit {
    pub(super) rate: Rate,
    pub(super) bucket: Bucket,
    /// Events let through that the cache was not told of; stays 0 where nobody tells it.
    pub(super) untold: u32,
}

/// Limits by name; at most 229,376 of them, about 14 MB.
pub(super) struct Table<K> {
    hasher: RandomState,
    shards: Vec<Mutex<Shard<K>>>,
}

struct Shard<K> {
    limits: HashMap<K, Limit>,
    sweep_at_len: usize,
    next_sweep_ns: u64,
}

impl<K: Hash + Eq> Table<K> {
    pub(super) fn new() -> Self {
        let shard =
            || Shard { limits: HashMap::new(), sweep_at_len: FEWEST_TO_SWEEP, next_sweep_ns: 0 };
        let shards = (0..SHARDS).map(|_| Mutex::new(shard())).collect();
        Self { hasher: RandomState::new(), shards }
    }

    /// Works on the limit of that name, a new one if need be; `None` when there is no room for it.
    pub(super) fn with<Q, T>(
        &self,
        name: &Q,
        rate: Rate,
        now_ns: u64,
        work: impl FnOnce(&mut Limit) -> T,
    ) -> Option<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let mut shard = self.shard(name)?;
        if let Some(limit) = shard.limits.get_mut(name) {
            limit.rate = rate;
            return Some(work(limit));
        }
        if !shard.has_room(now_ns) {
            return None;
        }
        let new = Limit { rate, bucket: Bucket::default(), untold: 0 };
        Some(work(shard.limits.entry(name.to_owned()).or_insert(new)))
    }

    /// Works on the limit of that name if there is one.
    pub(super) fn with_known<Q, T>(&self, name: &Q, work: impl FnOnce(&mut Limit) -> T) -> Option<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shard(name)?.limits.get_mut(name).map(work)
    }

    fn shard<Q: Hash + ?Sized>(&self, name: &Q) -> Option<MutexGuard<'_, Shard<K>>> {
        let place = usize::try_from(self.hasher.hash_one(name) % SHARDS).unwrap_or(0);
        // Nothing panics while the lock is held; a poisoned shard is still a shard.
        self.shards.get(place).map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<K: Hash + Eq> Shard<K> {
    fn has_room(&mut self, now_ns: u64) -> bool {
        if self.limits.len() >= self.sweep_at_len && now_ns >= self.next_sweep_ns {
            self.limits.retain(|_, limit| !limit.is_idle(now_ns));
            self.sweep_at_len = (self.limits.len() * 2).clamp(FEWEST_TO_SWEEP, MOST_IN_SHARD);
            self.next_sweep_ns = now_ns.saturating_add(SWEEP_EVERY_NS);
        }
        self.limits.len() < MOST_IN_SHARD
    }
}

impl Limit {
    /// Lets events through, all or none.
    ///
    /// # Errors
    /// Nanoseconds to wait.
    pub(super) fn take(&mut self, events: u32, now_ns: u64) -> Result<(), u64> {
        self.bucket.take(events, self.rate, now_ns)
    }

    pub(super) fn give_back(&mut self, events: u32) {
        self.bucket.give_back(events);
        self.untold = self.untold.saturating_sub(events);
    }

    /// What all gateways owe, and what went through here since this one told its share.
    pub(super) fn learn(&mut self, debt: Debt, now_ns: u64) {
        self.bucket.set(debt.plus(Debt::of(self.untold)), now_ns);
    }

    fn is_idle(&self, now_ns: u64) -> bool {
        self.untold == 0 && self.bucket.is_empty(self.rate, now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn len(table: &Table<u64>) -> usize {
        table.shards.iter().map(|shard| shard.lock().unwrap().limits.len()).sum()
    }

    fn take(table: &Table<u64>, name: u64, rate: Rate, now_ns: u64) -> Option<Result<(), u64>> {
        table.with(&name, rate, now_ns, |limit| limit.take(1, now_ns))
    }

    #[test]
    fn a_million_devices_need_places_only_while_they_are_in_debt() {
        let (table, rate) = (Table::new(), Rate::new(100, None).unwrap());
        for name in 0..1_000_000 {
            // 100,000 events a second, in debt for 10 ms each: about 1,000 at once.
            assert_eq!(take(&table, name, rate, name * 10_000), Some(Ok(())));
        }
        assert!(len(&table) < 20_000, "{}", len(&table));
    }

    #[test]
    fn a_table_full_of_debt_takes_no_new_name_and_forgets_no_old_one() {
        let (table, rate) = (Table::new(), Rate::new(1, None).unwrap());
        let taken: Vec<u64> =
            (0..400_000).filter(|name| take(&table, *name, rate, 0).is_some()).collect();
        assert_eq!(taken.len(), MOST_IN_SHARD * 64);
        assert_eq!(len(&table), taken.len());
        for name in &taken {
            assert_eq!(take(&table, *name, rate, 0), Some(Err(SECOND)), "{name}");
        }
        assert_eq!(take(&table, 1_000_000, rate, SECOND / 2), None);
        assert_eq!(take(&table, 1_000_000, rate, SECOND), Some(Ok(())));
    }

    #[test]
    fn what_the_cache_was_not_told_of_is_not_forgotten() {
        let (table, rate) = (Table::new(), Rate::new(1_000, None).unwrap());
        table.with(&0, rate, 0, |limit| limit.untold = 7);
        for name in 1..100_000_u64 {
            take(&table, name, rate, name * SECOND);
        }
        assert_eq!(table.with_known(&0, |limit| limit.untold), Some(7));
    }
}
