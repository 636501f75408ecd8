use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::IntoResponse as _;
use prometheus::Registry;
use pulsestream_shared::bucket::Debt;
use pulsestream_shared::cache::Charge;
use pulsestream_shared::cache::embedded::{EmbeddedCache, EmbeddedCacheBounds};
use pulsestream_shared::cache::redis::{RedisCache, RedisConfig};
use pulsestream_shared::log::embedded::{EmbeddedConfig, EmbeddedLog};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::KeyHash;
use pulsestream_shared::testing::faults::{Fault, FaultCache, Faults, Method};
use pulsestream_shared::testing::services::{namespace, redis_url};
use pulsestream_shared::testing::wait_for;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn config() -> config::Limits {
    config::Limits {
        key_rate: 0,
        key_burst: 0,
        device_rate: 0,
        device_burst: 0,
        report_interval: Duration::from_millis(50),
    }
}

fn key(rate: Option<u32>, burst: Option<u32>) -> KeyRecord {
    KeyRecord {
        hash: KeyHash([0; 32]),
        prefix: format!("ps_test_{}", Uuid::new_v4()),
        client: ClientId(1),
        client_name: "tenant".to_owned(),
        scopes: Vec::new(),
        rate,
        burst,
        created_at_ms: 0,
        expires_at_ms: None,
        revoked_at_ms: None,
    }
}

fn device() -> DeviceId {
    DeviceId(Uuid::new_v4())
}

/// An embedded cache, and the folder that must outlive it.
async fn embedded() -> (tempfile::TempDir, Arc<dyn Cache>) {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig {
        dir: folder.path().to_owned(),
        partitions: 1,
        retention: Duration::from_secs(3_600),
        max_bytes: u64::MAX,
        append_timeout: PATIENCE,
    };
    let log = EmbeddedLog::open(config).await.unwrap();
    (folder, Arc::new(EmbeddedCache::new(&log, EmbeddedCacheBounds::default())))
}

async fn redis() -> Arc<dyn Cache> {
    let (url, namespace) = (redis_url(), namespace());
    let config = RedisConfig { url, namespace, connections: 2, timeout: Duration::from_secs(1) };
    Arc::new(RedisCache::open(config).await.unwrap())
}

/// Limits whose reports run until the guard is dropped.
fn start(config: &config::Limits, cache: &Arc<dyn Cache>) -> (Limits, tokio_util::sync::DropGuard) {
    let (limits, reports) = Limits::new(config, cache.clone(), &Metrics(&Registry::new()));
    let stop = CancellationToken::new();
    tokio::spawn(reports.run(stop.clone()));
    (limits, stop.drop_guard())
}

/// Limits that tell nobody.
async fn alone(config: &config::Limits) -> (tempfile::TempDir, Limits) {
    let (folder, cache) = embedded().await;
    (folder, Limits::new(config, cache, &Metrics(&Registry::new())).0)
}

fn answer(refusal: Refusal) -> (u16, Vec<(String, String)>) {
    let response = Problem::from(refusal).into_response();
    let told = |name: &str| name.starts_with("ratelimit") || name == "retry-after";
    let headers = response.headers().iter().filter(|(name, _)| told(name.as_str()));
    let text = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.to_string(), value.to_str().unwrap().to_owned())
    };
    let mut headers: Vec<_> = headers.map(text).collect();
    headers.sort();
    (response.status().as_u16(), headers)
}

#[tokio::test]
async fn a_key_sends_its_burst_then_its_rate_and_is_told() {
    let (_folder, limits) = alone(&config()).await;
    let (key, now) = (key(Some(2), Some(3)), Instant::now());
    for left in [2, 1, 0] {
        let quota = limits.admit(&key, &[(device(), 1)], now).unwrap().unwrap();
        let mut headers = HeaderMap::new();
        quota.put(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"key\";q=2;w=1");
        assert_eq!(headers["ratelimit"], format!("\"key\";r={left};t=1"));
    }
    let refusal = limits.admit(&key, &[(device(), 3)], now).unwrap_err();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let told = vec![
        pair("ratelimit", "\"key\";r=0;t=2"),
        pair("ratelimit-policy", "\"key\";q=2;w=1"),
        pair("retry-after", "2"),
    ];
    assert_eq!(answer(refusal), (429, told));
    let later = now + Duration::from_millis(1_500);
    assert!(limits.admit(&key, &[(device(), 3)], later).is_ok());
}

#[tokio::test]
async fn a_batch_over_the_burst_is_told_to_be_smaller_not_to_wait() {
    let (_folder, limits) = alone(&config::Limits { device_rate: 5, ..config() }).await;
    let now = Instant::now();
    for (key, events) in [(key(Some(3), None), 4), (key(None, None), 6)] {
        let refusal = limits.admit(&key, &[(device(), events)], now).unwrap_err();
        assert_eq!(answer(refusal), (413, Vec::new()));
    }
}

#[tokio::test]
async fn a_device_over_its_limit_stops_the_whole_request_and_nothing_is_counted() {
    let config = config::Limits { device_rate: 10, ..config() };
    let (_folder, limits) = alone(&config).await;
    let (key, now) = (key(Some(1_000), Some(1_000)), Instant::now());
    let (calm, wild) = (device(), device());
    limits.admit(&key, &[(wild, 10)], now).unwrap();
    for _ in 0..100 {
        let refusal = limits.admit(&key, &[(calm, 10), (wild, 1)], now).unwrap_err();
        assert_eq!(Problem::from(refusal).code(), Code::QuotaExceeded);
    }
    let quota = limits.admit(&key, &[(calm, 10)], now).unwrap().unwrap();
    assert_eq!(quota.left, 980);
    let other = KeyRecord { client: ClientId(2), ..key };
    assert!(limits.admit(&other, &[(wild, 10)], now).is_ok(), "another client's device");
}

#[tokio::test]
async fn a_key_without_a_rate_has_the_default_and_a_rate_of_nothing_is_unlimited() {
    let (_folder, limits) = alone(&config::Limits { key_rate: 1, ..config() }).await;
    let now = Instant::now();
    let of_default = key(None, None);
    assert!(limits.admit(&of_default, &[(device(), 1)], now).unwrap().is_some());
    assert!(limits.admit(&of_default, &[(device(), 1)], now).is_err());
    let unlimited = key(Some(0), None);
    assert_eq!(limits.admit(&unlimited, &[(device(), u32::MAX)], now), Ok(None));
}

/// Sends as fast as both let through for a while; how many passed, and what one gateway alone lets.
async fn hammer(cache: Arc<dyn Cache>) -> (f64, f64) {
    let (one, _running) = start(&config(), &cache);
    let (other, _running_too) = start(&config(), &cache);
    let (rate, burst) = (2_000, 400);
    let key = key(Some(rate), Some(burst));
    let (begin, time, mut passed) = (Instant::now(), Duration::from_secs(3), 0.0);
    while begin.elapsed() < time {
        for limits in [&one, &other] {
            for _ in 0..20 {
                let admitted = limits.admit(&key, &[(device(), 1)], Instant::now());
                passed += f64::from(u8::from(admitted.is_ok()));
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (passed, begin.elapsed().as_secs_f64() * f64::from(rate) + f64::from(burst))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_share_one_rate_through_redis() {
    let (passed, allowed) = hammer(redis().await).await;
    assert!((0.9..1.1).contains(&(passed / allowed)), "{passed} of {allowed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_share_one_rate_through_the_embedded_cache() {
    let (_folder, cache) = embedded().await;
    let (passed, allowed) = hammer(cache).await;
    assert!((0.9..1.1).contains(&(passed / allowed)), "{passed} of {allowed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cache_each_gateway_keeps_the_limit_by_itself_and_says_so() {
    let faults = Faults::default();
    let (_folder, cache) = embedded().await;
    let cache: Arc<dyn Cache> = Arc::new(FaultCache::new(cache, faults.clone()));
    faults.next(Method::Charge, usize::MAX, Fault::Before);
    let gateways = [start(&config(), &cache), start(&config(), &cache)];
    let key = key(Some(1), Some(50));
    for (limits, _) in &gateways {
        let now = Instant::now();
        let passed = (0..100).filter(|_| limits.admit(&key, &[(device(), 1)], now).is_ok());
        assert_eq!(passed.count(), 50);
        wait_for("the loss to be counted", PATIENCE, async || limits.unreported.get() == 50).await;
    }
    faults.clear();
    let (limits, _) = &gateways[0];
    wait_for("the debt to drain", PATIENCE, async || {
        limits.admit(&key, &[(device(), 1)], Instant::now()).is_ok()
    })
    .await;
    wait_for("a report", PATIENCE, async || {
        let limit =
            Charge { limit: (*key.prefix).into(), rate: limits.key_rate(&key).unwrap(), events: 0 };
        cache.charge(&[limit]).await.unwrap() != [Debt::of(0)]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_gateway_let_through_is_owed_here() {
    let (_folder, cache) = embedded().await;
    let (one, _running) = start(&config(), &cache);
    let (other, _running_too) = start(&config(), &cache);
    let key = key(Some(1), Some(10_000));
    one.admit(&key, &[(device(), 10_000)], Instant::now()).unwrap();
    wait_for("the other to learn of it", PATIENCE, async || {
        other.admit(&key, &[(device(), 1)], Instant::now()).is_err()
    })
    .await;
}
