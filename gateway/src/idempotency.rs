//! What a key that is already known means for a request: pure functions of the record, the event and the
//! time.
//!
//! ```text
//! other fingerprint        -> refused, lease over or not: the first body keeps the key
//! done, same fingerprint   -> the stored outcome again
//! in flight, lease running -> wait and retry
//! in flight, lease over    -> taken over: appended again under the same id (the store keeps one)
//! open                     -> taken over at once: whoever had it has given up
//! ```

use pulsestream_shared::cache::{Fingerprint, LockRecord, LockState, Owner};
use pulsestream_shared::event::Event;
use pulsestream_shared::metadata::Metadata;

/// What to do with a request whose key is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Answer what was answered before.
    Replay,
    /// Another body was sent under this key.
    Mismatch,
    /// Another attempt is at work.
    InProgress,
    /// The attempt that had the key is gone; replace its record by one's own.
    TakeOver,
}

/// Of what an event says, its id apart: neither the spelling of its JSON, nor fields that are ignored, nor
/// the route it came by make another event of it.
pub(crate) fn fingerprint(event: &Event) -> Fingerprint {
    let metadata = event.metadata.as_ref().map_or("", Metadata::as_json);
    let mut said = Vec::with_capacity(40 + event.event_type.len() + metadata.len());
    said.extend_from_slice(event.device_id.0.as_bytes());
    // Adding 0 makes -0 what it is stored as.
    said.extend_from_slice(&(event.value + 0.0).to_le_bytes());
    said.extend_from_slice(&event.timestamp_ms.to_le_bytes());
    said.extend_from_slice(&(event.event_type.len() as u64).to_le_bytes());
    said.extend_from_slice(event.event_type.as_bytes());
    said.extend_from_slice(metadata.as_bytes());
    Fingerprint(xxhash_rust::xxh3::xxh3_128(&said).to_be_bytes())
}

/// Judges a known key.
pub(crate) fn judge(seen: &LockRecord, fingerprint: Fingerprint, now_ms: i64) -> Verdict {
    if seen.fingerprint != fingerprint {
        return Verdict::Mismatch;
    }
    match seen.state {
        LockState::Done => Verdict::Replay,
        LockState::InFlight if now_ms < seen.lease_until_ms => Verdict::InProgress,
        LockState::InFlight | LockState::Open => Verdict::TakeOver,
    }
}

/// The record of a first attempt.
pub(crate) fn first_attempt(fingerprint: Fingerprint, now_ms: i64, lease_ms: i64) -> LockRecord {
    LockRecord {
        state: LockState::InFlight,
        fingerprint,
        owner: Owner(rand::random()),
        first_at_ms: now_ms,
        lease_until_ms: now_ms + lease_ms,
    }
}

/// The record of an attempt that takes over from `seen`; the first attempt's time stays.
pub(crate) fn next_attempt(seen: &LockRecord, now_ms: i64, lease_ms: i64) -> LockRecord {
    LockRecord {
        state: LockState::InFlight,
        owner: Owner(rand::random()),
        lease_until_ms: now_ms + lease_ms,
        ..*seen
    }
}

/// What the key becomes when the log certainly did not take the record.
///
/// A first attempt forgets the key, so that a corrected body may use it. After a takeover the earlier
/// attempt may still be in the log: the fingerprint must stay.
pub(crate) fn after_refusal(own: &LockRecord, taken_over: bool) -> Option<LockRecord> {
    taken_over.then(|| after_doubt(own))
}

/// What the key becomes when the log may have taken the record and its owner waits no longer.
///
/// The lease is for an owner that may be at work; this one has given up. Were it kept, every retry would be
/// told to wait for nobody, and the probes of a log that is back would be spent on them.
pub(crate) fn after_doubt(own: &LockRecord) -> LockRecord {
    LockRecord { state: LockState::Open, ..*own }
}

/// The record of a key whose event is in the log.
pub(crate) fn done(own: &LockRecord) -> LockRecord {
    LockRecord { state: LockState::Done, lease_until_ms: own.first_at_ms, ..*own }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: Fingerprint = Fingerprint([1; 16]);
    const OTHER: Fingerprint = Fingerprint([2; 16]);

    #[test]
    fn another_body_is_refused_in_every_state_and_at_any_time() {
        let first = first_attempt(BODY, 1_000, 15_000);
        let open = after_refusal(&first, true).unwrap();
        for seen in [first, done(&first), open] {
            for now in [0, 1_000, 15_999, 16_000, i64::MAX] {
                assert_eq!(judge(&seen, OTHER, now), Verdict::Mismatch);
            }
        }
    }

    #[test]
    fn the_same_body_waits_for_the_lease_and_then_takes_over() {
        let first = first_attempt(BODY, 1_000, 15_000);
        assert_eq!(judge(&first, BODY, 15_999), Verdict::InProgress);
        assert_eq!(judge(&first, BODY, 16_000), Verdict::TakeOver);
        let second = next_attempt(&first, 16_000, 15_000);
        assert_eq!(second.first_at_ms, 1_000);
        assert_ne!(second.owner, first.owner);
        assert_eq!(judge(&second, BODY, 16_001), Verdict::InProgress);
    }

    #[test]
    fn a_done_key_replays_and_a_refused_first_attempt_is_forgotten() {
        let first = first_attempt(BODY, 1_000, 15_000);
        assert_eq!(judge(&done(&first), BODY, i64::MAX), Verdict::Replay);
        assert_eq!(after_refusal(&first, false), None);
    }

    #[test]
    fn an_attempt_in_doubt_frees_the_lease_and_keeps_the_fingerprint() {
        let first = first_attempt(BODY, 1_000, 15_000);
        assert_eq!(judge(&after_doubt(&first), BODY, 1_001), Verdict::TakeOver);
        assert_eq!(judge(&after_doubt(&first), OTHER, 1_001), Verdict::Mismatch);
    }

    #[test]
    fn a_refusal_after_a_takeover_keeps_the_fingerprint_and_frees_the_lease() {
        let second = next_attempt(&first_attempt(BODY, 1_000, 15_000), 16_000, 15_000);
        let open = after_refusal(&second, true).unwrap();
        assert_eq!(judge(&open, BODY, 16_001), Verdict::TakeOver);
        assert_eq!(judge(&open, OTHER, 16_001), Verdict::Mismatch);
    }
}
