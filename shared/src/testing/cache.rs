//! What every [`Cache`] must do, engine or wrapper: one test for each sentence of the port.
//!
//! [`cache_conformance!`](crate::cache_conformance) turns the rules into tests of an engine.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::bucket::{Debt, Rate};
use crate::cache::{
    Cache, CachedKey, Charge, Fingerprint, LockChange, LockKey, LockRecord, LockReply, LockRequest,
    LockState, Owner,
};
use crate::clock::unix_ms;
use crate::event::{ClientId, EventId};
use crate::store::KeyHash;
use crate::testing::wait_for;

const LIFE: Duration = Duration::from_secs(60);

/// A cache, and whatever must live as long as it does (a server, a folder).
pub struct CacheUnderTest {
    /// Nobody else uses its keys.
    pub cache: Arc<dyn Cache>,
    /// Dropped after the test.
    pub keep: Box<dyn Any + Send>,
}

impl CacheUnderTest {
    /// A cache that needs nothing else.
    pub fn new(cache: Arc<dyn Cache>) -> Self {
        Self { cache, keep: Box::new(()) }
    }
}

/// Makes a module `$engine` with a test for every rule; `$open` gives a fresh [`CacheUnderTest`] and may
/// await. It is evaluated inside the module: name what it uses by `super::`.
#[macro_export]
macro_rules! cache_conformance {
    ($engine:ident, $open:expr) => {
        $crate::cache_conformance! { @rules $engine, $open;
            the_first_attempt_acquires_and_the_second_is_shown_its_record,
            a_batch_mixes_both_and_answers_in_order,
            of_a_key_repeated_within_a_batch_exactly_one_acquires,
            an_empty_batch_is_answered_by_nothing,
            a_look_shows_the_record_and_acquires_nothing,
            finish_overwrites_whoever_holds_the_key,
            finish_writes_a_key_that_was_lost,
            finish_may_be_repeated,
            swap_replaces_only_what_the_caller_saw,
            swap_to_none_frees_the_key,
            changes_of_one_call_are_applied_in_order,
            of_many_concurrent_attempts_exactly_one_acquires,
            two_clients_may_use_one_uuid,
            the_entry_of_a_key_comes_back_as_it_was_put,
            the_entry_of_a_key_is_replaced_by_a_later_one,
            the_entry_of_a_key_dies_with_its_life,
            a_revoke_mark_beats_a_late_put,
            a_revoke_mark_dies_with_its_life,
            what_gateways_charge_adds_up_and_drains_at_the_rate,
            a_charge_of_nothing_tells_the_debt,
            a_limit_owes_no_more_than_the_most,
            charges_of_one_call_are_added_in_order_and_limits_are_apart,
        }
    };
    (@rules $engine:ident, $open:expr; $($rule:ident),* $(,)?) => {
        mod $engine {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $rule() {
                    $crate::testing::cache::$rule($open).await;
                }
            )*
        }
    };
}

fn some_key() -> LockKey {
    LockKey { client: ClientId(rand::random()), id: EventId(Uuid::new_v4()) }
}

/// A fresh attempt of now, by a random owner.
fn attempt() -> LockRecord {
    let now_ms = unix_ms();
    LockRecord {
        state: LockState::InFlight,
        fingerprint: Fingerprint(rand::random()),
        owner: Owner(rand::random()),
        first_at_ms: now_ms,
        lease_until_ms: now_ms + 15_000,
    }
}

fn done(record: LockRecord) -> LockRecord {
    LockRecord { state: LockState::Done, ..record }
}

async fn lock_one(cache: &dyn Cache, key: LockKey, record: LockRecord) -> LockReply {
    cache.lock(&[LockRequest { key, record: Some(record) }]).await.expect("lock").replies.remove(0)
}

async fn settle_one(cache: &dyn Cache, change: LockChange) -> bool {
    cache.settle(&[change]).await.expect("settle").remove(0)
}

fn swap(key: LockKey, expected: LockRecord, record: Option<LockRecord>) -> LockChange {
    LockChange::Swap { key, expected, record }
}

/// "Nobody had the key; the caller's record is written." "Somebody has, or had, it."
pub async fn the_first_attempt_acquires_and_the_second_is_shown_its_record(it: CacheUnderTest) {
    let (key, first) = (some_key(), attempt());
    assert_eq!(lock_one(&*it.cache, key, first).await, LockReply::Acquired);
    assert_eq!(lock_one(&*it.cache, key, attempt()).await, LockReply::Held(first));
    assert_eq!(lock_one(&*it.cache, key, first).await, LockReply::Held(first));
}

/// "`None` writes nothing."
pub async fn a_look_shows_the_record_and_acquires_nothing(it: CacheUnderTest) {
    let (key, record) = (some_key(), attempt());
    let look = [LockRequest { key, record: None }];
    assert_eq!(it.cache.lock(&look).await.expect("lock").replies, [LockReply::Free]);
    assert_eq!(lock_one(&*it.cache, key, record).await, LockReply::Acquired);
    assert_eq!(it.cache.lock(&look).await.expect("lock").replies, [LockReply::Held(record)]);
}

/// "Tries to own each key; answers in order."
pub async fn a_batch_mixes_both_and_answers_in_order(it: CacheUnderTest) {
    let requests: Vec<_> =
        (0..500).map(|_| LockRequest { key: some_key(), record: Some(attempt()) }).collect();
    let odd: Vec<_> = requests.iter().skip(1).step_by(2).cloned().collect();
    let replies = it.cache.lock(&odd).await.expect("lock").replies;
    assert!(replies.iter().all(|reply| *reply == LockReply::Acquired));
    let again: Vec<_> = requests
        .iter()
        .map(|request| LockRequest { record: Some(attempt()), ..*request })
        .collect();
    let replies = it.cache.lock(&again).await.expect("lock").replies;
    assert_eq!(replies.len(), requests.len());
    for (number, (request, reply)) in requests.iter().zip(replies).enumerate() {
        let expected = if number % 2 == 1 {
            LockReply::Held(request.record.unwrap())
        } else {
            LockReply::Acquired
        };
        assert_eq!(reply, expected, "request {number}");
    }
}

/// A batch is no exception to "nobody had the key".
pub async fn of_a_key_repeated_within_a_batch_exactly_one_acquires(it: CacheUnderTest) {
    let key = some_key();
    let requests = [0; 3].map(|_| LockRequest { key, record: Some(attempt()) });
    let replies = it.cache.lock(&requests).await.expect("lock").replies;
    let held = LockReply::Held(requests[0].record.unwrap());
    assert_eq!(replies, [LockReply::Acquired, held.clone(), held]);
}

/// An answer for each, hence none for none.
pub async fn an_empty_batch_is_answered_by_nothing(it: CacheUnderTest) {
    assert!(it.cache.lock(&[]).await.expect("lock").replies.is_empty());
    assert!(it.cache.settle(&[]).await.expect("settle").is_empty());
}

/// "The attempt is over: write the outcome, whoever holds the key."
pub async fn finish_overwrites_whoever_holds_the_key(it: CacheUnderTest) {
    let (key, first) = (some_key(), attempt());
    lock_one(&*it.cache, key, first).await;
    let outcome = done(attempt());
    assert!(settle_one(&*it.cache, LockChange::Finish(key, outcome)).await);
    assert_eq!(lock_one(&*it.cache, key, attempt()).await, LockReply::Held(outcome));
}

/// "`Finish` always does" take place.
pub async fn finish_writes_a_key_that_was_lost(it: CacheUnderTest) {
    let (key, outcome) = (some_key(), done(attempt()));
    assert!(settle_one(&*it.cache, LockChange::Finish(key, outcome)).await);
    assert_eq!(lock_one(&*it.cache, key, attempt()).await, LockReply::Held(outcome));
}

/// "Every call may be repeated harmlessly."
pub async fn finish_may_be_repeated(it: CacheUnderTest) {
    let (key, outcome) = (some_key(), done(attempt()));
    for _ in 0..2 {
        assert!(settle_one(&*it.cache, LockChange::Finish(key, outcome)).await);
    }
    assert_eq!(lock_one(&*it.cache, key, attempt()).await, LockReply::Held(outcome));
}

/// "Replace `expected` by `record` … if it is still exactly that."
pub async fn swap_replaces_only_what_the_caller_saw(it: CacheUnderTest) {
    let (key, first, second) = (some_key(), attempt(), attempt());
    lock_one(&*it.cache, key, first).await;
    let nearly = LockRecord { owner: Owner(first.owner.0 ^ 1), ..first };
    assert!(!settle_one(&*it.cache, swap(key, nearly, Some(second))).await);
    assert_eq!(lock_one(&*it.cache, key, attempt()).await, LockReply::Held(first));
    assert!(settle_one(&*it.cache, swap(key, first, Some(second))).await);
    assert_eq!(lock_one(&*it.cache, key, attempt()).await, LockReply::Held(second));
    assert!(!settle_one(&*it.cache, swap(key, first, Some(second))).await);
    assert!(!settle_one(&*it.cache, swap(some_key(), first, Some(second))).await);
}

/// "… or delete it when `None`."
pub async fn swap_to_none_frees_the_key(it: CacheUnderTest) {
    let (key, first) = (some_key(), attempt());
    lock_one(&*it.cache, key, first).await;
    assert!(!settle_one(&*it.cache, swap(key, attempt(), None)).await);
    assert!(settle_one(&*it.cache, swap(key, first, None)).await);
    assert_eq!(lock_one(&*it.cache, key, attempt()).await, LockReply::Acquired);
}

/// "Changes of one call are applied in order."
pub async fn changes_of_one_call_are_applied_in_order(it: CacheUnderTest) {
    let (key, first, second) = (some_key(), attempt(), attempt());
    lock_one(&*it.cache, key, first).await;
    let changes = [
        swap(key, first, Some(second)),
        swap(key, first, None),
        LockChange::Finish(key, done(second)),
        swap(key, done(second), None),
        swap(key, done(second), None),
    ];
    let took_place = it.cache.settle(&changes).await.expect("settle");
    assert_eq!(took_place, [true, false, true, true, false]);
    assert_eq!(lock_one(&*it.cache, key, attempt()).await, LockReply::Acquired);
}

/// One owner, whatever the interleaving; everybody else is shown that owner's record.
pub async fn of_many_concurrent_attempts_exactly_one_acquires(it: CacheUnderTest) {
    for _ in 0..10 {
        let key = some_key();
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                let (cache, record) = (Arc::clone(&it.cache), attempt());
                tokio::spawn(async move { (record, lock_one(&*cache, key, record).await) })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.expect("no panic"));
        }
        let owners: Vec<_> = answers
            .iter()
            .filter(|(_, reply)| *reply == LockReply::Acquired)
            .map(|(record, _)| *record)
            .collect();
        assert_eq!(owners.len(), 1);
        for (_, reply) in answers {
            assert!(reply == LockReply::Acquired || reply == LockReply::Held(owners[0]));
        }
    }
}

/// "The tenant; two clients may use the same UUID."
pub async fn two_clients_may_use_one_uuid(it: CacheUnderTest) {
    let one = some_key();
    let other = LockKey { client: ClientId(one.client.0 ^ 1), ..one };
    let (first, second) = (attempt(), attempt());
    assert_eq!(lock_one(&*it.cache, one, first).await, LockReply::Acquired);
    assert_eq!(lock_one(&*it.cache, other, second).await, LockReply::Acquired);
    settle_one(&*it.cache, swap(one, first, None)).await;
    assert_eq!(lock_one(&*it.cache, other, attempt()).await, LockReply::Held(second));
}

/// "The entry as it was put."
pub async fn the_entry_of_a_key_comes_back_as_it_was_put(it: CacheUnderTest) {
    let hash = KeyHash(rand::random());
    assert_eq!(it.cache.key(&hash).await.expect("key"), None);
    for entry in [&b"{}"[..], &[], &[0, b'R', 255], &[7; 4_096]] {
        it.cache.put_key(&hash, entry, LIFE).await.expect("put");
        let found = it.cache.key(&hash).await.expect("key");
        assert_eq!(found, Some(CachedKey::Entry(entry.to_vec())));
    }
    assert_eq!(it.cache.key(&KeyHash(rand::random())).await.expect("key"), None);
}

/// A put is an overwrite.
pub async fn the_entry_of_a_key_is_replaced_by_a_later_one(it: CacheUnderTest) {
    let hash = KeyHash(rand::random());
    it.cache.put_key(&hash, b"old", LIFE).await.expect("put");
    it.cache.put_key(&hash, b"new", LIFE).await.expect("put");
    let found = it.cache.key(&hash).await.expect("key");
    assert_eq!(found, Some(CachedKey::Entry(b"new".to_vec())));
}

/// "… for `life`."
pub async fn the_entry_of_a_key_dies_with_its_life(it: CacheUnderTest) {
    let hash = KeyHash(rand::random());
    it.cache.put_key(&hash, b"short", Duration::from_millis(50)).await.expect("put");
    wait_for("the entry to die", LIFE, async || it.cache.key(&hash).await.expect("key").is_none())
        .await;
}

/// "… unless the key is marked revoked."
pub async fn a_revoke_mark_beats_a_late_put(it: CacheUnderTest) {
    let hash = KeyHash(rand::random());
    it.cache.put_key(&hash, b"early", LIFE).await.expect("put");
    it.cache.revoke_key(&hash, LIFE).await.expect("revoke");
    assert_eq!(it.cache.key(&hash).await.expect("key"), Some(CachedKey::Revoked));
    it.cache.put_key(&hash, b"late", LIFE).await.expect("put");
    assert_eq!(it.cache.key(&hash).await.expect("key"), Some(CachedKey::Revoked));
}

/// "Marks an API key revoked for `life`": then it may be put again.
pub async fn a_revoke_mark_dies_with_its_life(it: CacheUnderTest) {
    let hash = KeyHash(rand::random());
    it.cache.revoke_key(&hash, Duration::from_millis(50)).await.expect("revoke");
    wait_for("the mark to die", LIFE, async || it.cache.key(&hash).await.expect("key").is_none())
        .await;
    it.cache.put_key(&hash, b"again", LIFE).await.expect("put");
    let found = it.cache.key(&hash).await.expect("key");
    assert_eq!(found, Some(CachedKey::Entry(b"again".to_vec())));
}

/// A limit nobody else uses; drains by one event a second, so hardly within a test.
fn some_limit() -> Charge {
    let rate = Rate::new(1, Some(1_000)).expect("a rate");
    Charge { limit: Uuid::new_v4().to_string().into(), rate, events: 0 }
}

async fn charge(cache: &dyn Cache, limit: &Charge, events: u32) -> Debt {
    cache.charge(&[Charge { events, ..limit.clone() }]).await.expect("charge").remove(0)
}

/// Between the charges before and now, less than this much time passed.
#[track_caller]
fn assert_owes(debt: Debt, events: u32) {
    let least = Debt::of(events.saturating_sub(10));
    assert!((least..=Debt::of(events)).contains(&debt), "{debt:?}, not {events} events");
}

/// "Adds each to the debt of its limit": whoever adds. And it drains.
pub async fn what_gateways_charge_adds_up_and_drains_at_the_rate(it: CacheUnderTest) {
    let slow = some_limit();
    for sum in [100, 200, 300] {
        assert_owes(charge(&*it.cache, &slow, 100).await, sum);
    }
    let quick = Charge { rate: Rate::new(1_000, Some(1_000)).expect("a rate"), ..some_limit() };
    assert!(charge(&*it.cache, &quick, 300).await > Debt::of(0));
    let start = tokio::time::Instant::now();
    wait_for("the debt to drain", LIFE, async || {
        charge(&*it.cache, &quick, 0).await == Debt::of(0)
    })
    .await;
    assert!(start.elapsed() > Duration::from_millis(200), "{:?}", start.elapsed());
}

/// "What all gateways together now owe."
pub async fn a_charge_of_nothing_tells_the_debt(it: CacheUnderTest) {
    let limit = some_limit();
    assert_eq!(charge(&*it.cache, &limit, 0).await, Debt::of(0));
    charge(&*it.cache, &limit, 50).await;
    assert_owes(charge(&*it.cache, &limit, 0).await, 50);
}

/// "At most [`Rate::most_debt`]."
pub async fn a_limit_owes_no_more_than_the_most(it: CacheUnderTest) {
    let limit = some_limit();
    for _ in 0..3 {
        let debt = charge(&*it.cache, &limit, u32::MAX).await;
        assert_eq!(debt, limit.rate.most_debt());
    }
    let largest = Charge { rate: Rate::new(u32::MAX, None).expect("a rate"), ..some_limit() };
    assert!(charge(&*it.cache, &largest, u32::MAX).await <= Debt::of(u32::MAX));
}

/// "Answers in order."
pub async fn charges_of_one_call_are_added_in_order_and_limits_are_apart(it: CacheUnderTest) {
    let (one, other) = (some_limit(), some_limit());
    let charges = [(&one, 100), (&other, 500), (&one, 100)];
    let charges = charges.map(|(limit, events)| Charge { events, ..limit.clone() });
    let debts = it.cache.charge(&charges).await.expect("charge");
    for (debt, events) in debts.into_iter().zip([100, 500, 200]) {
        assert_owes(debt, events);
    }
    assert!(it.cache.charge(&[]).await.expect("charge").is_empty());
}
