use proptest::prelude::*;

use super::*;
use crate::cache::{Fingerprint, Owner};
use crate::event::{ClientId, EventId};

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

fn key(number: u8) -> LockKey {
    LockKey { client: ClientId(1), id: EventId(uuid::Uuid::from_u128(u128::from(number))) }
}

fn record(fingerprint: u8, owner: u64, state: LockState, now_ms: i64) -> LockRecord {
    LockRecord {
        state,
        fingerprint: Fingerprint([fingerprint; 16]),
        owner: Owner(owner),
        first_at_ms: now_ms,
        lease_until_ms: now_ms + 15_000,
    }
}

fn lock_one(locks: &MemoryLocks, number: u8, record: LockRecord, now_ms: i64) -> LockReply {
    locks.lock(&[LockRequest { key: key(number), record: Some(record) }], now_ms).remove(0)
}

fn finish(locks: &MemoryLocks, number: u8, now_ms: i64) {
    let done = record(number, 0, LockState::Done, now_ms);
    assert_eq!(locks.settle(&[LockChange::Finish(key(number), done)], now_ms), [true]);
}

#[test]
fn at_the_bound_the_oldest_settled_key_goes_and_one_in_flight_never() {
    let locks = MemoryLocks::new(3);
    for number in 0..3 {
        let mine = record(number, 0, LockState::InFlight, 0);
        assert_eq!(lock_one(&locks, number, mine, i64::from(number)), LockReply::Acquired);
    }
    let late = record(9, 0, LockState::InFlight, 10);
    assert_eq!(lock_one(&locks, 9, late, 10), LockReply::Full);
    finish(&locks, 2, 11);
    finish(&locks, 1, 12);
    assert_eq!(lock_one(&locks, 9, late, 13), LockReply::Acquired);
    assert_eq!(locks.len(), 3);
    // 1 was settled after 2, but is older.
    assert!(matches!(lock_one(&locks, 2, late, 13), LockReply::Held(_)));
    assert!(matches!(lock_one(&locks, 0, late, 13), LockReply::Held(_)));
    assert_eq!(lock_one(&locks, 1, late, 13), LockReply::Acquired);
}

#[test]
fn a_key_is_forgotten_a_day_after_its_first_attempt_and_not_before() {
    let locks = MemoryLocks::new(3);
    let mine = record(1, 0, LockState::InFlight, 0);
    assert_eq!(lock_one(&locks, 1, mine, 0), LockReply::Acquired);
    finish(&locks, 1, DAY_MS / 2);
    assert!(matches!(lock_one(&locks, 1, mine, DAY_MS - 1), LockReply::Held(_)));
    assert_eq!(lock_one(&locks, 1, mine, DAY_MS), LockReply::Acquired);
}

#[derive(Debug, Clone)]
enum Op {
    Lock(u8, u8),
    Finish(u8),
    Open(u8),
    Release(u8),
    TakeOver(u8),
    Wait(i64),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..8_u8;
    prop_oneof![
        4 => (key.clone(), 0..3_u8).prop_map(|(key, print)| Op::Lock(key, print)),
        2 => key.clone().prop_map(Op::Finish),
        1 => key.clone().prop_map(Op::Open),
        1 => key.clone().prop_map(Op::Release),
        1 => key.prop_map(Op::TakeOver),
        1 => (0..DAY_MS / 3).prop_map(Op::Wait),
    ]
}

/// What a table without a bound would hold: record and time of death.
type Model = HashMap<LockKey, (LockRecord, i64)>;

/// Compares one attempt with the model, which then follows the table.
fn check_lock(locks: &MemoryLocks, model: &mut Model, asked: LockRequest, now_ms: i64, full: bool) {
    let reply = locks.lock(std::slice::from_ref(&asked), now_ms).remove(0);
    let known = model.get(&asked.key).copied();
    match (reply, known) {
        (LockReply::Held(held), Some((record, _))) => assert_eq!(held, record),
        (LockReply::Acquired, known) => {
            if let Some((record, _)) = known {
                assert_ne!(record.state, LockState::InFlight, "two owners of one key");
                assert!(full, "forgotten although the bound was never reached");
            }
            model.insert(asked.key, (asked.record.unwrap(), now_ms + DAY_MS));
        }
        (LockReply::Free, _) => panic!("nobody only looked"),
        (LockReply::Full, _) => assert!(full, "full below the bound"),
        (LockReply::Held(held), None) => panic!("held by nobody: {held:?}"),
    }
}

proptest! {
    /// The model never forgets within a day. The table may forget a settled key, once the bound was
    /// reached; a key in flight has one owner, always.
    #[test]
    fn a_kept_key_has_one_owner_and_keeps_its_fingerprint(
        capacity in 1..10_usize,
        ops in proptest::collection::vec(op(), 1..200),
    ) {
        let locks = MemoryLocks::new(capacity);
        let mut model = Model::new();
        let (mut now_ms, mut owner, mut full) = (1_000, 0, false);
        for op in ops {
            owner += 1;
            model.retain(|_, (_, dies_at_ms)| *dies_at_ms > now_ms);
            let change = match op {
                Op::Wait(ms) => { now_ms += ms; continue }
                Op::Lock(number, print) => {
                    full |= model.len() >= capacity && !model.contains_key(&key(number));
                    let record = record(print, owner, LockState::InFlight, now_ms);
                    let asked = LockRequest { key: key(number), record: Some(record) };
                    check_lock(&locks, &mut model, asked, now_ms, full);
                    prop_assert!(locks.len() <= capacity);
                    continue;
                }
                Op::Finish(number) => (number, Some(LockState::Done)),
                Op::Open(number) => (number, Some(LockState::Open)),
                Op::TakeOver(number) => (number, Some(LockState::InFlight)),
                Op::Release(number) => (number, None),
            };
            let Some((expected, dies_at_ms)) = model.get(&key(change.0)).copied() else { continue };
            let next = change.1.map(|state| LockRecord { state, owner: Owner(owner), ..expected });
            let swap = LockChange::Swap { key: key(change.0), expected, record: next };
            let swapped = locks.settle(&[swap], now_ms) == [true];
            prop_assert!(swapped || full);
            prop_assert!(swapped || expected.state != LockState::InFlight);
            match next {
                Some(record) if swapped => { model.insert(key(change.0), (record, dies_at_ms)); }
                _ => { model.remove(&key(change.0)); }
            }
        }
    }
}
