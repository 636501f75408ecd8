//! What only this engine promises of idempotency: outcomes as durable as their events.

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::cache::{Fingerprint, LOCK_LIFE, LockKey, LockRecord, LockState, Outcome, Owner};
use crate::event::{ClientId, EventId};
use crate::log::embedded::EmbeddedConfig;
use crate::log::{EventLog, Headers, NewRecord, Topic};

const BOUNDS: EmbeddedCacheBounds = EmbeddedCacheBounds { locks: 50_000, keys: 4 };

async fn open(dir: &TempDir) -> (EmbeddedLog, EmbeddedCache) {
    let config = EmbeddedConfig {
        dir: dir.path().to_owned(),
        partitions: 4,
        retention: Duration::from_secs(3_600),
        max_bytes: u64::MAX,
        append_timeout: Duration::from_secs(30),
    };
    let log = EmbeddedLog::open(config).await.unwrap();
    let cache = EmbeddedCache::new(&log, BOUNDS);
    (log, cache)
}

fn request(id: u128, body: u8) -> LockRequest {
    let first_at_ms = unix_ms();
    let record = LockRecord {
        state: LockState::InFlight,
        fingerprint: Fingerprint([body; 16]),
        owner: Owner(id as u64),
        first_at_ms,
        lease_until_ms: first_at_ms + 15_000,
    };
    let key = LockKey { client: ClientId(7), id: EventId(Uuid::from_u128(id)) };
    LockRequest { key, record: Some(record) }
}

/// A request that only looks.
fn look(id: u128) -> LockRequest {
    LockRequest { record: None, ..request(id, 0) }
}

fn held(request: &LockRequest) -> LockRecord {
    request.record.unwrap()
}

fn done(request: &LockRequest) -> LockRecord {
    LockRecord { state: LockState::Done, ..held(request) }
}

/// The append of an event whose lock is held.
fn event(request: &LockRequest) -> NewRecord {
    NewRecord {
        partition: 1,
        key: None,
        value: "event".into(),
        headers: Headers::default(),
        outcomes: vec![Outcome { key: request.key, record: done(request) }],
    }
}

async fn append(log: &EmbeddedLog, records: Vec<NewRecord>) {
    for result in log.append(Topic::Raw, records).await {
        result.unwrap();
    }
}

async fn lock(cache: &EmbeddedCache, request: &LockRequest) -> LockReply {
    cache.lock(std::slice::from_ref(request)).await.unwrap().replies.remove(0)
}

#[tokio::test]
async fn after_a_restart_a_logged_event_is_done_and_an_unlogged_attempt_is_free() {
    let dir = TempDir::new().unwrap();
    let (logged, unlogged) = (request(1, 1), request(2, 1));
    let (log, cache) = open(&dir).await;
    assert_eq!(lock(&cache, &logged).await, LockReply::Acquired);
    assert_eq!(lock(&cache, &unlogged).await, LockReply::Acquired);
    // Appended, and killed before anybody could finish the lock.
    append(&log, vec![event(&logged)]).await;
    drop(cache);
    log.close().await;
    let (_log, cache) = open(&dir).await;
    let retry = request(1, 2);
    assert_eq!(lock(&cache, &retry).await, LockReply::Held(done(&logged)), "body 2 can be refused");
    assert_eq!(lock(&cache, &request(2, 2)).await, LockReply::Acquired);
}

#[tokio::test]
async fn an_append_turns_the_lock_into_its_outcome_without_a_finish() {
    let dir = TempDir::new().unwrap();
    let (log, cache) = open(&dir).await;
    let first = request(1, 1);
    assert_eq!(lock(&cache, &first).await, LockReply::Acquired);
    assert_eq!(lock(&cache, &request(1, 2)).await, LockReply::Held(held(&first)));
    append(&log, vec![event(&first)]).await;
    assert_eq!(lock(&cache, &request(1, 2)).await, LockReply::Held(done(&first)));
    let finish = LockChange::Finish(first.key, done(&first));
    let undo = LockChange::Swap { key: first.key, expected: done(&first), record: None };
    assert_eq!(cache.settle(&[finish, undo]).await.unwrap(), [true, false]);
    assert_eq!(lock(&cache, &request(1, 1)).await, LockReply::Held(done(&first)));
}

#[tokio::test]
async fn a_swap_changes_exactly_what_was_seen() {
    let dir = TempDir::new().unwrap();
    let (_log, cache) = open(&dir).await;
    let (mine, other) = (request(1, 1), request(1, 9));
    assert_eq!(lock(&cache, &mine).await, LockReply::Acquired);
    let swap = |expected: &LockRequest, record| {
        [LockChange::Swap { key: mine.key, expected: held(expected), record }]
    };
    assert_eq!(cache.settle(&swap(&other, None)).await.unwrap(), [false]);
    assert_eq!(cache.settle(&swap(&mine, Some(held(&other)))).await.unwrap(), [true]);
    assert_eq!(cache.settle(&swap(&mine, None)).await.unwrap(), [false]);
    assert_eq!(lock(&cache, &mine).await, LockReply::Held(held(&other)));
    assert_eq!(cache.settle(&swap(&other, None)).await.unwrap(), [true]);
    assert_eq!(lock(&cache, &mine).await, LockReply::Acquired);
}

#[tokio::test]
async fn outcomes_are_found_when_they_have_left_memory_and_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let (log, cache) = open(&dir).await;
    // More than two runs of this build's size, in groups as a gateway makes them.
    let requests: Vec<LockRequest> = (0..40_000).map(|id| request(id, 1)).collect();
    for part in requests.chunks(1_000) {
        assert!(
            cache.lock(part).await.unwrap().replies.iter().all(|it| *it == LockReply::Acquired)
        );
        append(&log, part.iter().map(event).collect()).await;
    }
    let all_done = async |cache: &EmbeddedCache| {
        for part in requests.chunks(4_000) {
            let again: Vec<_> = part
                .iter()
                .map(|it| LockRequest { key: it.key, record: request(0, 2).record })
                .collect();
            let replies = cache.lock(&again).await.unwrap().replies;
            let expected = part.iter().map(|it| LockReply::Held(done(it)));
            assert!(replies.into_iter().eq(expected));
        }
        assert_eq!(lock(cache, &look(39_999)).await, LockReply::Held(done(&requests[39_999])));
        assert_eq!(lock(cache, &look(0)).await, LockReply::Held(done(&requests[0])));
        assert_eq!(lock(cache, &look(1_000_000)).await, LockReply::Free);
    };
    all_done(&cache).await;
    crate::testing::wait_for("two runs in the file", Duration::from_secs(30), || async {
        log.shared().outcomes.runs() >= 2
    })
    .await;
    all_done(&cache).await;
    drop(cache);
    log.close().await;
    let (log, cache) = open(&dir).await;
    assert!(log.shared().outcomes.runs() >= 2);
    all_done(&cache).await;
}

#[tokio::test]
async fn a_key_is_forgotten_at_the_end_of_its_life_and_not_before() {
    let dir = TempDir::new().unwrap();
    let (log, cache) = open(&dir).await;
    let life_ms = i64::try_from(LOCK_LIFE.as_millis()).unwrap();
    let mut old = request(1, 1);
    old.record.as_mut().unwrap().first_at_ms -= life_ms + 1;
    let mut young = request(2, 1);
    young.record.as_mut().unwrap().first_at_ms -= life_ms - 60_000;
    append(&log, vec![event(&old), event(&young)]).await;
    assert_eq!(lock(&cache, &request(1, 2)).await, LockReply::Acquired);
    assert_eq!(lock(&cache, &request(2, 2)).await, LockReply::Held(done(&young)));
}

#[tokio::test]
async fn at_the_bound_no_lock_is_given_and_none_is_left_behind() {
    let dir = TempDir::new().unwrap();
    let (log, _) = open(&dir).await;
    let cache = EmbeddedCache::new(&log, EmbeddedCacheBounds { locks: 3, keys: 4 });
    let some: Vec<LockRequest> = (0..2).map(|id| request(id, 1)).collect();
    cache.lock(&some).await.unwrap();
    let more = [request(2, 1), request(3, 1), request(0, 5), look(3)];
    let replies = cache.lock(&more).await.unwrap().replies;
    let known = LockReply::Held(held(&some[0]));
    assert_eq!(replies, [LockReply::Acquired, LockReply::Full, known, LockReply::Free]);
    assert_eq!(lock(&cache, &request(3, 5)).await, LockReply::Full);
    let release = LockChange::Swap { key: more[0].key, expected: held(&more[0]), record: None };
    assert_eq!(cache.settle(&[release]).await.unwrap(), [true]);
    assert_eq!(lock(&cache, &request(3, 5)).await, LockReply::Acquired, "nothing was left behind");
}

#[tokio::test]
async fn one_key_twice_in_one_call_is_acquired_once() {
    let dir = TempDir::new().unwrap();
    let (_log, cache) = open(&dir).await;
    let (first, second) = (request(1, 1), request(1, 2));
    let replies = cache.lock(&[first.clone(), second]).await.unwrap().replies;
    assert_eq!(replies, [LockReply::Acquired, LockReply::Held(held(&first))]);
}

#[tokio::test]
async fn a_revoked_key_is_not_put_back_while_its_mark_lives() {
    let dir = TempDir::new().unwrap();
    let (_log, cache) = open(&dir).await;
    let (hash, minute) = (KeyHash([1; 32]), Duration::from_secs(60));
    cache.put_key(&hash, b"entry", minute).await.unwrap();
    assert_eq!(cache.key(&hash).await.unwrap(), Some(CachedKey::Entry(b"entry".to_vec())));
    cache.revoke_key(&hash, minute).await.unwrap();
    cache.put_key(&hash, b"stale", minute).await.unwrap();
    assert_eq!(cache.key(&hash).await.unwrap(), Some(CachedKey::Revoked));
    // Other keys come and go; the mark stays.
    for n in 2..20 {
        cache.put_key(&KeyHash([n; 32]), b"other", minute).await.unwrap();
    }
    assert_eq!(cache.key(&hash).await.unwrap(), Some(CachedKey::Revoked));
    assert!(cache.with_keys(|keys| keys.len()) <= BOUNDS.keys);
    cache.revoke_key(&hash, Duration::from_millis(20)).await.unwrap();
    crate::testing::wait_for("the mark to die", minute, || async {
        cache.key(&hash).await.unwrap().is_none()
    })
    .await;
    cache.put_key(&hash, b"entry", minute).await.unwrap();
    assert!(cache.key(&hash).await.unwrap().is_some());
}

crate::cache_conformance!(conformance, super::under_test().await);

async fn under_test() -> crate::testing::cache::CacheUnderTest {
    let dir = TempDir::new().unwrap();
    let (log, cache) = open(&dir).await;
    crate::testing::cache::CacheUnderTest { cache: Arc::new(cache), keep: Box::new((dir, log)) }
}
