//! Keys whose event is in the log and whose outcome is on its way to the cache.
//!
//! The outcome is written behind the answer. A client that sends the same again right after its 202 may come
//! before it, find the key in flight, and be told to wait for what it was just told is done. So the gateway
//! that answered knows better. Another gateway does not: there the 409 stands, for the milliseconds that an
//! outcome takes.
//!
//! Asked **before** the cache is: a key that leaves in between has its outcome there, which the cache then
//! answers by itself.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pulsestream_shared::cache::{LockKey, LockReply};

use super::locks::Claim;
use crate::idempotency::done;

/// As many keys as the settle stage has at hand, so it is bounded by its queue.
#[derive(Default)]
pub(super) struct Finishing(Mutex<HashSet<LockKey>>);

impl Finishing {
    pub(super) fn add(&self, key: LockKey) {
        self.keys().insert(key);
    }

    pub(super) fn remove(&self, keys: impl Iterator<Item = LockKey>) {
        let mut finishing = self.keys();
        keys.for_each(|key| _ = finishing.remove(&key));
    }

    /// Which of the claims are for such a key, by index.
    pub(super) fn among(&self, claims: &[Claim]) -> Vec<usize> {
        let finishing = self.keys();
        if finishing.is_empty() {
            return Vec::new();
        }
        let found =
            |(index, claim): (usize, &Claim)| finishing.contains(&claim.key).then_some(index);
        claims.iter().enumerate().filter_map(found).collect()
    }

    fn keys(&self) -> MutexGuard<'_, HashSet<LockKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the cache will say of the keys at these indexes, as far as it knows of an attempt.
pub(super) fn finish(replies: &mut [LockReply], finishing: &[usize]) {
    for index in finishing {
        if let Some(LockReply::Held(record)) = replies.get_mut(*index) {
            *record = done(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::cache::Fingerprint;
    use pulsestream_shared::event::{ClientId, EventId};
    use uuid::Uuid;

    use super::super::locks::Age;
    use super::*;
    use crate::idempotency::{Verdict, first_attempt, judge};

    const SAID: Fingerprint = Fingerprint([1; 16]);

    fn claim(id: u128) -> Claim {
        let key = LockKey { client: ClientId(7), id: EventId(Uuid::from_u128(id)) };
        Claim { key, fingerprint: SAID, age: Age::Fine }
    }

    #[test]
    fn a_key_is_done_from_its_answer_on_although_the_cache_has_it_in_flight() {
        let finishing = Finishing::default();
        let (claims, in_flight) = ([claim(1), claim(2)], first_attempt(SAID, 1_000, 15_000));
        let judged = |found: &[usize], said| {
            let mut replies = [LockReply::Held(in_flight), LockReply::Held(in_flight)];
            finish(&mut replies, found);
            replies.map(|reply| match reply {
                LockReply::Held(record) => judge(&record, said, 1_001),
                other => panic!("{other:?}"),
            })
        };
        finishing.add(claims[1].key);
        let found = finishing.among(&claims);
        assert!(matches!(judged(&found, SAID), [Verdict::InProgress, Verdict::Replay]));
        let other = Fingerprint([2; 16]);
        assert!(matches!(judged(&found, other), [Verdict::Mismatch, Verdict::Mismatch]));
        finishing.remove([claims[1].key].into_iter());
        assert!(finishing.among(&claims).is_empty());
    }
}
