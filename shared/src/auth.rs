//! Who is calling: API keys looked up in process, then in the cache, then in the store.
//!
//! A valid key is used for at most `keys.process_ttl` after it was read from the store, an unknown one is
//! remembered for `keys.negative_ttl` in a table of its own, so that random keys cannot push good ones
//! out. Requests that miss together cause one lookup. While neither cache nor store answers, a key that
//! was valid goes on for [`STALE`].

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use hmac::{Hmac, KeyInit as _, Mac as _};
use moka::Expiry;
use moka::future::Cache as Memo;
use prometheus::IntCounterVec;
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::sync::Semaphore;

use crate::cache::{Cache, CachedKey};
use crate::clock;
use crate::config;
use crate::engine::OpenError;
use crate::metrics::Metrics;
use crate::problem::{Code, Problem};
use crate::service::Context;
use crate::store::{KeyHash, KeyRecord, KeyStore, Scope, StoreError};

/// How long a key that was valid works while it cannot be asked for.
pub const STALE: Duration = Duration::from_secs(600);

const POSITIVE_ENTRIES: u64 = 100_000;
const NEGATIVE_ENTRIES: u64 = 10_000;
/// Lookups in the store at once; a flood of unknown keys must not take every connection.
const STORE_LOOKUPS: usize = 8;

/// Hashes keys under the server's pepper.
#[derive(Clone)]
pub struct Pepper(Vec<u8>);

impl Pepper {
    /// The configured pepper, else the one the store was made with.
    ///
    /// # Errors
    /// [`StoreError`] when the store is asked and does not answer.
    pub async fn load(config: &config::Keys, keys: &dyn KeyStore) -> Result<Self, StoreError> {
        if config.pepper.is_empty() {
            Ok(Self(keys.pepper().await?))
        } else {
            Ok(Self(config.pepper.expose().as_bytes().to_vec()))
        }
    }

    /// HMAC-SHA256 of the key.
    pub fn hash(&self, key: &str) -> KeyHash {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a secret of any length");
        mac.update(key.as_bytes());
        KeyHash(mac.finalize().into_bytes().into())
    }
}

/// A key as it lies in process and in the cache: with the time it was read from the store, which its
/// age counts from, in whatever tier it is found.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    record: KeyRecord,
    read_at_ms: i64,
}

impl Known {
    /// Time since the store was read; nothing for a clock that went back.
    fn age(&self) -> Duration {
        let age_ms = clock::unix_ms().saturating_sub(self.read_at_ms);
        Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
    }
}

/// Looks up and remembers API keys.
pub struct Keyring {
    pepper: Pepper,
    cache: Arc<dyn Cache>,
    store: Arc<dyn KeyStore>,
    config: config::Keys,
    known: Memo<KeyHash, Arc<Known>>,
    unknown: Memo<KeyHash, ()>,
    stale: Memo<KeyHash, Arc<Known>>,
    lookups: Semaphore,
    counts: IntCounterVec,
}

/// The store cannot say whether the key is good.
#[derive(Debug, Clone, thiserror::Error)]
enum Miss {
    #[error("unknown key")]
    Unknown,
    #[error("{0}")]
    Unavailable(String),
}

/// Random, so that keys read together are not asked for together.
struct Jittered(Duration);

impl Expiry<KeyHash, Arc<Known>> for Jittered {
    fn expire_after_create(
        &self,
        _: &KeyHash,
        known: &Arc<Known>,
        _: std::time::Instant,
    ) -> Option<Duration> {
        // The bound is a promise about revocation: never exceeded, and counted from the read of the
        // store, in whatever tier the key was found.
        let life = self.0.mul_f64(rand::rng().random_range(0.6..1.0));
        Some(life.saturating_sub(known.age()))
    }
}

impl Keyring {
    /// Starts with nothing known. One for all services of a process.
    ///
    /// # Errors
    /// [`OpenError`] when the store cannot tell the pepper.
    pub async fn open(context: &Context) -> Result<Arc<Self>, OpenError> {
        let engine = &context.engine;
        let config = context.config.keys.clone();
        let pepper = Pepper::load(&config, engine.keys.as_ref())
            .await
            .map_err(|error| OpenError(error.to_string()))?;
        let help = "Lookups of API keys by the tier that decided.";
        let labels = ["tier", "result"];
        Ok(Arc::new(Self {
            pepper,
            counts: Metrics(&context.registry).counters("key_lookups_total", help, &labels),
            cache: engine.cache.clone(),
            store: engine.keys.clone(),
            known: Memo::builder()
                .max_capacity(POSITIVE_ENTRIES)
                .expire_after(Jittered(config.process_ttl))
                .build(),
            unknown: Memo::builder()
                .max_capacity(NEGATIVE_ENTRIES)
                .time_to_live(config.negative_ttl)
                .build(),
            stale: Memo::builder().max_capacity(POSITIVE_ENTRIES).time_to_live(STALE).build(),
            config,
            lookups: Semaphore::new(STORE_LOOKUPS),
        }))
    }

    /// Decides whether a request may do what `scope` names.
    ///
    /// # Errors
    /// 401 without a key or with one that does not work, 403 without the scope, 503 when nobody can say.
    pub async fn authorize(&self, headers: &HeaderMap, scope: Scope) -> Result<KeyRecord, Problem> {
        let key = key_of(headers).ok_or(Code::MissingApiKey)?;
        let record = self.find(key).await?;
        if !record.is_valid_at(clock::unix_ms()) {
            return Err(Code::InvalidApiKey.into());
        }
        if !record.has(scope) {
            return Err(Problem::from(Code::Forbidden)
                .detail(format!("this API key lacks the scope {}", scope.as_str())));
        }
        Ok(record)
    }

    async fn find(&self, key: &str) -> Result<KeyRecord, Problem> {
        let hash = self.pepper.hash(key);
        if let Some(known) = self.known.get(&hash).await {
            self.count("process", "hit");
            return Ok(known.record.clone());
        }
        if self.unknown.contains_key(&hash) {
            self.count("process", "miss");
            return Err(Code::InvalidApiKey.into());
        }
        match self.known.try_get_with(hash, self.look_up(hash)).await {
            Ok(known) => Ok(known.record.clone()),
            Err(miss) => match &*miss {
                Miss::Unknown => Err(Code::InvalidApiKey.into()),
                Miss::Unavailable(reason) => self.find_stale(&hash, reason).await,
            },
        }
    }

    async fn look_up(&self, hash: KeyHash) -> Result<Arc<Known>, Miss> {
        if let Some(known) = self.find_in_cache(&hash).await {
            self.stale.insert(hash, known.clone()).await;
            return Ok(known);
        }
        let _place = self.lookups.acquire().await.map_err(|e| Miss::Unavailable(e.to_string()))?;
        let read_at_ms = clock::unix_ms();
        match self.store.find(&hash).await {
            Ok(Some(record)) => {
                self.count("store", "hit");
                let known = Arc::new(Known { record, read_at_ms });
                self.stale.insert(hash, known.clone()).await;
                self.put_in_cache(&hash, &known).await;
                Ok(known)
            }
            Ok(None) => {
                self.count("store", "miss");
                self.unknown.insert(hash, ()).await;
                self.stale.invalidate(&hash).await;
                Err(Miss::Unknown)
            }
            Err(error) => {
                self.count("store", "error");
                Err(Miss::Unavailable(error.to_string()))
            }
        }
    }

    async fn find_in_cache(&self, hash: &KeyHash) -> Option<Arc<Known>> {
        let entry = match self.cache.key(hash).await {
            Ok(Some(CachedKey::Entry(entry))) => entry,
            Ok(Some(CachedKey::Revoked) | None) => {
                self.count("cache", "miss");
                return None;
            }
            Err(_) => {
                self.count("cache", "error");
                return None;
            }
        };
        let known: Known = serde_json::from_slice(&entry).ok()?;
        let fresh = known.age() < self.config.process_ttl;
        self.count("cache", if fresh { "hit" } else { "miss" });
        fresh.then(|| Arc::new(known))
    }

    async fn put_in_cache(&self, hash: &KeyHash, known: &Known) {
        let Ok(entry) = serde_json::to_vec(known) else { return };
        if self.cache.put_key(hash, &entry, self.config.cache_ttl).await.is_err() {
            self.count("cache", "error");
        }
    }

    async fn find_stale(&self, hash: &KeyHash, reason: &str) -> Result<KeyRecord, Problem> {
        match self.stale.get(hash).await {
            Some(known) => {
                self.count("process", "stale");
                Ok(known.record.clone())
            }
            None => {
                tracing::warn!(%reason, "an API key could not be looked up");
                Err(Code::Unavailable.into())
            }
        }
    }

    fn count(&self, tier: &str, result: &str) {
        self.counts.with_label_values(&[tier, result]).inc();
    }
}

/// `x-api-key`, or `Authorization: Bearer`.
fn key_of(headers: &HeaderMap) -> Option<&str> {
    let direct = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    let bearer = || {
        let value = headers.get(axum::http::header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    };
    direct.or_else(bearer).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::event::ClientId;

    fn known(age: Duration) -> Arc<Known> {
        let record = KeyRecord {
            hash: KeyHash([0; 32]),
            prefix: "ps_test".into(),
            client: ClientId(1),
            client_name: "tenant".into(),
            scopes: vec![Scope::EventsWrite],
            rate: None,
            burst: None,
            created_at_ms: 0,
            expires_at_ms: None,
            revoked_at_ms: None,
        };
        let age_ms = i64::try_from(age.as_millis()).unwrap();
        Arc::new(Known { record, read_at_ms: clock::unix_ms() - age_ms })
    }

    #[test]
    fn a_key_found_in_a_tier_lives_no_longer_than_one_read_from_the_store() {
        let bound = Duration::from_secs(30);
        for age in [0, 10, 29, 30, 300].map(Duration::from_secs) {
            for _ in 0..100 {
                let hash = KeyHash([0; 32]);
                let life = Jittered(bound).expire_after_create(&hash, &known(age), Instant::now());
                assert!(age + life.unwrap() <= bound.max(age), "{age:?} {life:?}");
            }
        }
    }

    #[test]
    fn a_key_comes_in_its_own_header_or_as_a_bearer_token() {
        let header = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        let key = |headers: &HeaderMap| key_of(headers).map(str::to_owned);
        assert_eq!(key(&header("x-api-key", "k")), Some("k".to_owned()));
        assert_eq!(key(&header("authorization", "bearer k")), Some("k".to_owned()));
        assert_eq!(key(&header("authorization", "Basic k")), None);
        assert_eq!(key(&header("x-api-key", "")), None);
        assert_eq!(key(&HeaderMap::new()), None);
    }
}
