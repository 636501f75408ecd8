//! On a real Redis. What needs a server of its own, or one that misbehaves, goes through the proxy.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::*;
use crate::cache::{Fingerprint, LockState, Owner};
use crate::event::{ClientId, EventId};
use crate::testing::cache::CacheUnderTest;
use crate::testing::faults::{Fault, FaultCache, Faults, Method};
use crate::testing::proxy::{TcpProxy, Traffic};
use crate::testing::services::{namespace, redis_url};
use crate::testing::wait_for;

pub(super) const TIMEOUT: Duration = Duration::from_millis(100);
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn config(url: String) -> RedisConfig {
    RedisConfig { url, namespace: namespace(), connections: 2, timeout: TIMEOUT }
}

/// Patient, because a conformance suite on a busy machine is no test of timeouts.
async fn open() -> CacheUnderTest {
    let config = RedisConfig { timeout: PATIENCE, ..config(redis_url()) };
    CacheUnderTest::new(Arc::new(RedisCache::open(config).await.unwrap()))
}

async fn open_wrapped() -> CacheUnderTest {
    let CacheUnderTest { cache, keep } = open().await;
    CacheUnderTest { cache: Arc::new(FaultCache::new(cache, Faults::default())), keep }
}

crate::cache_conformance!(on_redis, super::open().await);
crate::cache_conformance!(fault_cache, super::open_wrapped().await);

pub(super) fn request() -> LockRequest {
    let now_ms = unix_ms();
    LockRequest {
        key: LockKey { client: ClientId(1), id: EventId(Uuid::new_v4()) },
        record: Some(LockRecord {
            state: LockState::InFlight,
            fingerprint: Fingerprint([1; 16]),
            owner: Owner(rand::random()),
            first_at_ms: now_ms,
            lease_until_ms: now_ms + 15_000,
        }),
    }
}

pub(super) async fn raw(url: &str, command: Cmd) -> Value {
    let link = Link::new(link::client(url).unwrap(), PATIENCE).unwrap();
    link.call_one(command).await.unwrap()
}

async fn remaining_ms(cache: &RedisCache, key: LockKey) -> i64 {
    let mut pttl = redis::cmd("PTTL");
    pttl.arg(cache.lock_key(key));
    match raw(&redis_url(), pttl).await {
        Value::Int(ms) => ms,
        other => panic!("{other:?}"),
    }
}

pub(super) async fn proxied() -> (TcpProxy, RedisConfig) {
    let url = redis_url();
    let target = url.trim_start_matches("redis://").trim_end_matches('/').to_owned();
    let proxy = TcpProxy::start(target).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    (proxy, config(url))
}

#[tokio::test]
async fn every_form_of_a_key_dies_a_day_after_its_first_attempt() {
    let cache = RedisCache::open(config(redis_url())).await.unwrap();
    let LockRequest { key, record } = request();
    let mut record = record.unwrap();
    let hour_ms = 3_600_000;
    let near = |ms: i64, hours: i64| (hours * hour_ms - 60_000..=hours * hour_ms).contains(&ms);
    cache.lock(&[LockRequest { key, record: Some(record) }]).await.unwrap();
    assert!(near(remaining_ms(&cache, key).await, 24));
    record.first_at_ms -= 20 * hour_ms;
    cache.settle(&[LockChange::Finish(key, record)]).await.unwrap();
    assert!(near(remaining_ms(&cache, key).await, 4));
    let taken = LockRecord { owner: Owner(5), ..record };
    let swap = LockChange::Swap { key, expected: record, record: Some(taken) };
    assert_eq!(cache.settle(&[swap]).await.unwrap(), [true]);
    assert!(near(remaining_ms(&cache, key).await, 4));
    record.first_at_ms -= 20 * hour_ms;
    cache.settle(&[LockChange::Finish(key, record)]).await.unwrap();
    wait_for("a key older than a day to go", PATIENCE, async || {
        remaining_ms(&cache, key).await == -2
    })
    .await;
}

#[tokio::test]
async fn a_value_that_is_no_lock_record_is_an_error_that_names_the_event() {
    let cache = RedisCache::open(config(redis_url())).await.unwrap();
    let request = request();
    let mut set = redis::cmd("SET");
    set.arg(cache.lock_key(request.key)).arg("nonsense").arg("PX").arg(60_000);
    raw(&redis_url(), set).await;
    let error = cache.lock(std::slice::from_ref(&request)).await.unwrap_err().to_string();
    assert!(error.contains(&request.key.id.to_string()), "{error}");
}

#[tokio::test]
async fn a_silent_server_is_an_error_within_the_timeout_and_answers_again_at_once() {
    let (proxy, config) = proxied().await;
    let cache = RedisCache::open(config).await.unwrap();
    cache.lock(&[request()]).await.unwrap();
    proxy.set(Traffic::Pause);
    for _ in 0..20 {
        let start = Instant::now();
        assert!(cache.lock(&[request()]).await.is_err());
        assert!(start.elapsed() < TIMEOUT * 3, "{:?}", start.elapsed());
    }
    proxy.restore();
    let start = Instant::now();
    wait_for("recovery", PATIENCE, async || cache.lock(&[request()]).await.is_ok()).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_socket_that_stays_silent_for_ever_is_given_up() {
    let (proxy, config) = proxied().await;
    let cache = RedisCache::open(config).await.unwrap();
    for _ in 0..4 {
        cache.lock(&[request()]).await.unwrap();
    }
    // New connections pass, what the old ones say waits for an hour.
    proxy.set(Traffic::Delay(Duration::from_secs(3_600)));
    wait_for("the old sockets to swallow a call", PATIENCE, async || {
        cache.lock(&[request()]).await.is_err()
    })
    .await;
    proxy.restore();
    wait_for("both connections to be replaced", PATIENCE, async || {
        let mut all_well = true;
        for _ in 0..4 {
            all_well &= cache.lock(&[request()]).await.is_ok();
        }
        all_well
    })
    .await;
}

#[tokio::test]
async fn a_server_that_is_gone_refuses_at_once_and_the_first_call_finds_it_back() {
    let (proxy, config) = proxied().await;
    let cache = RedisCache::open(config).await.unwrap();
    cache.lock(&[request()]).await.unwrap();
    proxy.kill();
    let refused = async || {
        let answer = cache.lock(&[request()]).await;
        answer.is_err_and(|error| error.to_string().contains("refused"))
    };
    wait_for("both connections to be refused", PATIENCE, async || {
        refused().await && refused().await
    })
    .await;
    let start = Instant::now();
    for _ in 0..20 {
        assert!(refused().await);
    }
    assert!(start.elapsed() < TIMEOUT * 10, "refusals took {:?}", start.elapsed());
    proxy.restore();
    wait_for("the port", PATIENCE, async || {
        tokio::net::TcpStream::connect(proxy.addr()).await.is_ok()
    })
    .await;
    for _ in 0..2 {
        cache.lock(&[request()]).await.expect("the first call after the return is answered");
    }
}

#[tokio::test]
async fn a_cache_opens_without_its_server_and_works_once_that_is_there() {
    let (proxy, config) = proxied().await;
    proxy.kill();
    let cache = RedisCache::open(config).await.unwrap();
    assert!(cache.lock(&[request()]).await.is_err());
    proxy.restore();
    wait_for("the server", PATIENCE, async || cache.lock(&[request()]).await.is_ok()).await;
}

#[tokio::test]
async fn an_url_of_another_kind_is_refused() {
    let refused = RedisCache::open(config("http://127.0.0.1".to_owned())).await;
    assert!(matches!(refused, Err(CacheOpenError::Url(_))));
}

#[tokio::test]
async fn a_lock_whose_answer_got_lost_is_held_by_its_own_record() {
    let faults = Faults::default();
    let cache = FaultCache::new(open().await.cache, faults.clone());
    let request = request();
    faults.next(Method::Lock, 1, Fault::After);
    assert!(cache.lock(std::slice::from_ref(&request)).await.is_err());
    let again = cache.lock(std::slice::from_ref(&request)).await.unwrap();
    assert_eq!(again.replies, [LockReply::Held(request.record.unwrap())]);
}
