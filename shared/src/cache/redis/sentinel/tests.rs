//! On the shared Redis, of which each test empties its own namespace. What needs another process (a restart
//! with old data) is a test of the whole, with a Redis of its own.

use std::sync::Arc;

use redis::Value;
use tokio::task::JoinSet;

use super::*;
use crate::cache::redis::tests::{PATIENCE, config, proxied, raw, request};
use crate::cache::redis::{RedisCache, RedisConfig};
use crate::cache::{Cache as _, LockKey, LockReply, LockRequest, Locked};
use crate::testing::services::redis_url;
use crate::testing::wait_for;

/// A cache that has forgotten nothing, and another on the same keys.
async fn two_whole() -> [Arc<RedisCache>; 2] {
    let config = RedisConfig { timeout: PATIENCE, ..config(redis_url()) };
    let one = Arc::new(RedisCache::open(config.clone()).await.unwrap());
    let at_ms = one.forgot_at_ms().await.unwrap().expect("a new namespace is like an emptied one");
    one.absolve(at_ms).await.unwrap();
    [one, Arc::new(RedisCache::open(config).await.unwrap())]
}

/// What `FLUSHALL` does, to one namespace and in one command.
async fn empty(cache: &RedisCache, keys: &[LockKey]) {
    let mut del = redis::cmd("DEL");
    del.arg(&cache.sentinel.sentinel).arg(&cache.sentinel.mark);
    del.arg(keys.iter().map(|key| cache.lock_key(*key)).collect::<Vec<_>>());
    raw(&redis_url(), del).await;
}

async fn lock(cache: &RedisCache) -> Locked {
    cache.lock(&[request()]).await.unwrap()
}

#[tokio::test]
async fn a_loss_is_told_to_everybody_with_one_time_for_as_long_as_keys_live() {
    let caches = two_whole().await;
    for cache in caches.iter().chain(&caches) {
        assert_eq!(lock(cache).await.forgot_at_ms, None);
    }
    empty(&caches[0], &[]).await;
    let lost = lock(&caches[1]).await;
    assert_eq!(lost.replies, [LockReply::Acquired]);
    let at_ms = lost.forgot_at_ms.expect("a loss");
    assert!((at_ms - crate::clock::unix_ms()).abs() < 60_000, "{at_ms}");
    for cache in caches.iter().chain(&caches).chain(&caches) {
        assert_eq!(lock(cache).await.forgot_at_ms, Some(at_ms));
    }
    let mut life = redis::cmd("PTTL");
    life.arg(&caches[0].sentinel.mark);
    let Value::Int(left_ms) = raw(&redis_url(), life).await else { panic!("no life") };
    assert!((1..=millis(LOCK_LIFE)).contains(&left_ms));
    assert!(left_ms > millis(LOCK_LIFE) - 60_000, "{left_ms}");
}

#[tokio::test]
async fn only_the_loss_that_was_meant_is_taken_back() {
    let caches = two_whole().await;
    empty(&caches[0], &[]).await;
    let first = lock(&caches[0]).await.forgot_at_ms.expect("a loss");
    caches[1].absolve(first + 1).await.unwrap();
    assert_eq!(lock(&caches[0]).await.forgot_at_ms, Some(first));
    caches[1].absolve(first).await.unwrap();
    assert_eq!(lock(&caches[0]).await.forgot_at_ms, None);
}

/// Whoever gets a key that somebody had must learn of the loss with the very answer that gives it. The key
/// stands behind so many looks that the server takes the pipeline in parts and empties itself between two.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_lock_slips_in_between_a_loss_and_its_discovery() {
    let caches = two_whole().await;
    for round in 0..50 {
        let LockRequest { key, record } = request();
        caches[0].lock(&[LockRequest { key, record }]).await.unwrap();
        let mut tasks = JoinSet::new();
        for cache in caches.iter().cycle().take(8) {
            let cache = Arc::clone(cache);
            tasks.spawn(async move {
                let look = LockRequest { record: None, ..request() };
                let mut requests = vec![look; 2_000];
                requests.push(LockRequest { key, ..request() });
                loop {
                    let locked = cache.lock(&requests).await.unwrap();
                    if locked.replies.last() == Some(&LockReply::Acquired) {
                        return locked.forgot_at_ms;
                    }
                }
            });
        }
        empty(&caches[0], &[key]).await;
        let told = tasks.join_next().await.unwrap().unwrap();
        assert!(told.is_some(), "round {round}: a sure lock on a key that somebody had");
        tasks.shutdown().await;
        let at_ms = caches[1].forgot_at_ms().await.unwrap().expect("a loss");
        caches[1].absolve(at_ms).await.unwrap();
    }
}

#[tokio::test]
async fn a_new_connection_to_the_same_process_is_no_loss_and_another_process_is_one() {
    let (proxy, config) = proxied().await;
    let cache = RedisCache::open(config).await.unwrap();
    let at_ms = cache.forgot_at_ms().await.unwrap().expect("new");
    cache.absolve(at_ms).await.unwrap();
    let back = async || {
        wait_for("the server", PATIENCE, async || cache.lock(&[request()]).await.is_ok()).await;
        cache.lock(&[request()]).await.unwrap().forgot_at_ms
    };
    for _ in 0..3 {
        proxy.kill();
        let gone = async || cache.lock(&[request()]).await.is_err();
        wait_for("the connection to end", PATIENCE, gone).await;
        proxy.restore();
        assert_eq!(back().await, None);
    }
    let mut set = redis::cmd("SET");
    set.arg(&cache.sentinel.sentinel).arg("5eed");
    raw(&redis_url(), set).await;
    assert!(back().await.is_some(), "these data are another process's");
}

#[tokio::test]
async fn a_look_costs_two_commands_for_any_number_of_locks() {
    let sentinel = Sentinel::new(b"s".to_vec(), b"f".to_vec());
    let mut pipeline = Pipeline::new();
    sentinel.look(&mut pipeline);
    assert_eq!(pipeline.len(), LOOK_COMMANDS);
    let [cache, _] = two_whole().await;
    let requests: Vec<_> = (0..1_000).map(|_| request()).collect();
    assert_eq!(cache.lock(&requests).await.unwrap().replies.len(), 1_000);
    assert_eq!(cache.lock(&[]).await.unwrap(), Locked { replies: vec![], forgot_at_ms: None });
}
