//! Locks within one process, for the time in which the shared cache is away.
//!
//! What they promise is less than what the shared cache promises, and callers say so (`unsure`): another
//! gateway does not see them, and under pressure the oldest settled ones are forgotten. The store finds
//! what slips through. No clock and no I/O here: every call is told the time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{LOCK_LIFE, LockChange, LockKey, LockRecord, LockReply, LockRequest, LockState};

/// A bounded table of idempotency locks.
///
/// At the bound the oldest settled keys (done or open) are forgotten first; keys in flight never are,
/// before their day is over: then a table is [`LockReply::Full`].
pub struct MemoryLocks {
    capacity: usize,
    table: Mutex<Table>,
}

impl MemoryLocks {
    /// An empty table for at most `capacity` keys, about 250 bytes each.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, table: Mutex::default() }
    }

    /// Tries to own each key, as [`super::Cache::lock`] does; answers in order.
    pub fn lock(&self, requests: &[LockRequest], now_ms: i64) -> Vec<LockReply> {
        let mut table = self.table();
        table.expire(now_ms);
        let dies_at_ms = now_ms.saturating_add(life_ms());
        requests
            .iter()
            .map(|request| match (table.get(&request.key), request.record) {
                (Some(held), _) => LockReply::Held(held),
                (None, None) => LockReply::Free,
                (None, Some(_)) if !table.make_room(self.capacity) => LockReply::Full,
                (None, Some(record)) => {
                    table.put(request.key, record, dies_at_ms);
                    LockReply::Acquired
                }
            })
            .collect()
    }

    /// Applies changes, as [`super::Cache::settle`] does. A `Finish` of a key that is not here, in a
    /// table full of attempts in flight, is the one that may be left out: it answers `false`.
    pub fn settle(&self, changes: &[LockChange], now_ms: i64) -> Vec<bool> {
        let mut table = self.table();
        table.expire(now_ms);
        changes.iter().map(|change| table.apply(change, self.capacity, now_ms)).collect()
    }

    /// Keys in the table.
    pub fn len(&self) -> usize {
        self.table().entries.len()
    }

    /// True when the table is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics while the lock is held; a poisoned table is still a table.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn life_ms() -> i64 {
    i64::try_from(LOCK_LIFE.as_millis()).unwrap_or(i64::MAX)
}

/// When a key dies; the number tells keys of the same millisecond apart.
type Age = (i64, u64);

/// Invariants: `ages` names every key of `entries`, `settled` those that are not in flight, each under
/// the age in its entry.
#[derive(Default)]
struct Table {
    entries: HashMap<LockKey, Entry>,
    ages: BTreeMap<Age, LockKey>,
    settled: BTreeMap<Age, LockKey>,
    next_number: u64,
}

struct Entry {
    record: LockRecord,
    age: Age,
}

impl Table {
    fn get(&self, key: &LockKey) -> Option<LockRecord> {
        self.entries.get(key).map(|entry| entry.record)
    }

    fn expire(&mut self, now_ms: i64) {
        while let Some((&(dies_at_ms, _), &key)) = self.ages.first_key_value() {
            if dies_at_ms > now_ms {
                return;
            }
            self.remove(&key);
        }
    }

    /// Forgets the oldest settled keys until one more fits.
    fn make_room(&mut self, capacity: usize) -> bool {
        while self.entries.len() >= capacity {
            let Some((_, &oldest)) = self.settled.first_key_value() else { return false };
            self.remove(&oldest);
        }
        true
    }

    fn put(&mut self, key: LockKey, record: LockRecord, dies_at_ms: i64) {
        let age = (dies_at_ms, self.next_number);
        self.next_number += 1;
        self.remove(&key);
        self.ages.insert(age, key);
        self.entries.insert(key, Entry { record, age });
        self.rewrite(&key, record);
    }

    /// Changes a kept key's record; its age stays.
    fn rewrite(&mut self, key: &LockKey, record: LockRecord) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.record = record;
        if record.state == LockState::InFlight {
            self.settled.remove(&entry.age);
        } else {
            self.settled.insert(entry.age, *key);
        }
    }

    fn remove(&mut self, key: &LockKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.ages.remove(&entry.age);
            self.settled.remove(&entry.age);
        }
    }

    fn apply(&mut self, change: &LockChange, capacity: usize, now_ms: i64) -> bool {
        match change {
            LockChange::Finish(key, record) if self.entries.contains_key(key) => {
                self.rewrite(key, *record);
                true
            }
            LockChange::Finish(key, record) => {
                let dies_at_ms = record.first_at_ms.saturating_add(life_ms());
                if dies_at_ms <= now_ms {
                    return true; // written, and its day is over
                }
                let fits = self.make_room(capacity);
                if fits {
                    self.put(*key, *record, dies_at_ms.min(now_ms.saturating_add(life_ms())));
                }
                fits
            }
            LockChange::Swap { key, expected, record } => {
                if self.get(key).as_ref() != Some(expected) {
                    return false;
                }
                match record {
                    Some(record) => self.rewrite(key, *record),
                    None => self.remove(key),
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests;
