//! Who is calling: API keys looked up in process, then in the cache, then in the store.
//!
//! A valid key is used for at most `keys.process_ttl` after it was read from the store, an unknown one is
//! remembered for `keys.negative_ttl`. A change of a key is heard (`notices`) and takes effect at once:
//! nothing read before it is remembered (`memory`). Requests that miss together cause one lookup, which
//! goes on without them. Keys that were never made are looked up at a bounded rate (`census`). While neither cache nor store answers, a key that was valid goes on for
//! [`STALE`].

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use hmac::{Hmac, KeyInit as _, Mac as _};
use prometheus::{IntCounter, IntCounterVec};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, CachedKey};
use crate::clock;
use crate::config;
use crate::engine::OpenError;
use crate::metrics::Metrics;
use crate::problem::{Code, Problem};
use crate::service::Context;
use crate::store::{KeyHash, KeyRecord, KeyStore, Scope, StoreError};

mod census;
mod door;
mod memory;
mod notices;
mod seal;
#[cfg(test)]
mod tests;

use census::Census;
use door::Doors;
use memory::{Answer, Found, Joined, Lookup, Memory, Recall, Refusal};
pub use notices::{KeyNotice, KeyNotices, announce};
pub use seal::Seal;

/// How long a key that was valid works while it cannot be asked for.
pub const STALE: Duration = Duration::from_secs(600);

/// Changed keys that may wait for one listener; a slower one is told that it lagged.
const CHANGES_WAITING: usize = 1_024;

/// Hashes keys under the server's pepper.
#[derive(Clone)]
pub struct Pepper(Hmac<Sha256>);

impl Pepper {
    /// The configured pepper, else the one the store was made with.
    ///
    /// # Errors
    /// [`StoreError`] when the store is asked and does not answer.
    pub async fn load(config: &config::Keys, keys: &dyn KeyStore) -> Result<Self, StoreError> {
        if config.pepper.is_empty() {
            Ok(Self::new(&keys.pepper().await?))
        } else {
            Ok(Self::new(config.pepper.expose().as_bytes()))
        }
    }

    fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes a secret of any length"))
    }

    /// HMAC-SHA256 of the key.
    pub fn hash(&self, key: &str) -> KeyHash {
        // The copy has the pepper worked in already: two of four rounds of SHA-256 are saved.
        let mut mac = self.0.clone();
        mac.update(key.as_bytes());
        KeyHash(mac.finalize().into_bytes().into())
    }
}

/// A key as it lies in the cache: with the time it was read from the store, which its age counts from,
/// in whatever tier it is found.
#[derive(Debug, Serialize, Deserialize)]
struct Entry<R> {
    record: R,
    read_at_ms: i64,
}

impl<R> Entry<R> {
    /// Time since the store was read; nothing for a clock that went back.
    fn age(&self) -> Duration {
        let age_ms = clock::unix_ms().saturating_sub(self.read_at_ms);
        Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
    }
}

/// Lookups by the tier that decided and what it said.
struct Counts {
    all: IntCounterVec,
    /// Touched by every request.
    hit: IntCounter,
    stale: IntCounter,
}

/// Every pair of labels of `key_lookups_total`.
const COUNTED: [(&str, &str); 12] = [
    ("process", "hit"),
    ("process", "stale"),
    ("process", "miss"),
    ("cache", "hit"),
    ("cache", "miss"),
    ("cache", "revoked"),
    ("cache", "error"),
    ("store", "hit"),
    ("store", "miss"),
    ("store", "busy"),
    ("store", "late"),
    ("store", "error"),
];

impl Counts {
    fn new(metrics: &Metrics<'_>) -> Self {
        let help = "Lookups of API keys by the tier that decided.";
        let all = metrics.counters("key_lookups_total", help, &["tier", "result"]);
        let counter = |tier, result| all.with_label_values(&[tier, result]);
        for (tier, result) in COUNTED {
            counter(tier, result);
        }
        Self { hit: counter("process", "hit"), stale: counter("process", "stale"), all }
    }

    fn count(&self, tier: &str, result: &str) {
        debug_assert!(COUNTED.contains(&(tier, result)));
        self.all.with_label_values(&[tier, result]).inc();
    }
}

/// Looks up and remembers API keys.
pub struct Keyring {
    pepper: Pepper,
    /// `None`: the process has the store to itself.
    cache: Option<Arc<dyn Cache>>,
    store: Arc<dyn KeyStore>,
    config: config::Keys,
    memory: Arc<Memory>,
    census: Census,
    doors: Doors,
    counts: Counts,
    changed: broadcast::Sender<KeyHash>,
    lookups: TaskTracker,
}

impl Keyring {
    /// Starts with nothing known, and listens for changes from now on. One for all services of a process.
    ///
    /// # Errors
    /// [`OpenError`] when the store cannot tell the pepper.
    pub async fn open(context: &Context) -> Result<Arc<Self>, OpenError> {
        let engine = &context.engine;
        let config = context.config.keys.clone();
        let pepper = Pepper::load(&config, engine.keys.as_ref())
            .await
            .map_err(|error| OpenError(error.to_string()))?;
        let notices = engine.key_notices().await;
        let keyring = Arc::new(Self {
            pepper,
            cache: engine.key_cache(),
            store: engine.keys.clone(),
            memory: Memory::new(config.negative_ttl),
            config,
            census: Census::new(),
            doors: Doors::default(),
            counts: Counts::new(&Metrics(&context.registry)),
            changed: broadcast::Sender::new(CHANGES_WAITING),
            lookups: context.tasks.clone(),
        });
        let stop = context.shutdown.stop.clone();
        let listening = keyring.clone().listen(notices);
        context.spawn("key notices", async move {
            stop.run_until_cancelled(listening).await;
        });
        let (stop, taker) = (context.shutdown.stop.clone(), keyring.clone());
        context.spawn("key census", async move {
            stop.run_until_cancelled(taker.census.follow(taker.store.as_ref())).await;
        });
        Ok(keyring)
    }

    /// Decides whether a request may do what `scope` names.
    ///
    /// # Errors
    /// 401 without a key or with one that does not work, 403 without the scope, 503 when nobody can say.
    pub async fn authorize(
        self: &Arc<Self>,
        headers: &HeaderMap,
        scope: Scope,
    ) -> Result<Arc<KeyRecord>, Problem> {
        let key = key_of(headers).ok_or(Code::MissingApiKey)?;
        self.authorize_hash(self.pepper.hash(key), scope).await
    }

    /// The same for whoever shows something that was handed out to the key of that hash.
    ///
    /// # Errors
    /// As [`Keyring::authorize`].
    pub async fn authorize_hash(
        self: &Arc<Self>,
        hash: KeyHash,
        scope: Scope,
    ) -> Result<Arc<KeyRecord>, Problem> {
        let record = self.find(hash).await.map_err(|refusal| match refusal {
            Refusal::Unknown => Code::InvalidApiKey,
            Refusal::Unavailable => Code::Unavailable,
        })?;
        if !works(&record) {
            return Err(Code::InvalidApiKey.into());
        }
        if !record.has(scope) {
            return Err(Problem::from(Code::Forbidden)
                .detail(format!("this API key lacks the scope {}", scope.as_str())));
        }
        Ok(record)
    }

    /// Signs what is handed out for one purpose; every process of this pipeline knows it again.
    pub fn seal(&self, purpose: &str) -> Seal {
        self.pepper.seal(purpose)
    }

    /// False once a key that was authorized works no more; true while nobody can say.
    pub async fn still_works(self: &Arc<Self>, hash: &KeyHash) -> bool {
        match self.find(*hash).await {
            Ok(record) => works(&record),
            Err(Refusal::Unknown) => false,
            Err(Refusal::Unavailable) => true,
        }
    }

    /// Keys that changed, as this process hears of them; [`Keyring::still_works`] says what it means.
    /// Not every change is heard: ask for each key now and then too.
    pub fn changed(&self) -> broadcast::Receiver<KeyHash> {
        self.changed.subscribe()
    }

    async fn listen(self: Arc<Self>, mut notices: KeyNotices) {
        while let Some(notice) = notices.next().await {
            self.hear(&notice);
        }
    }

    fn hear(&self, notice: &KeyNotice) {
        match notice {
            KeyNotice::Changed(hashes) => {
                self.census.add(hashes);
                for hash in hashes {
                    self.memory.changed(hash);
                    // Nobody listens in a process without streams.
                    drop(self.changed.send(*hash));
                }
            }
            KeyNotice::Missed => self.memory.missed(),
        }
    }

    async fn find(self: &Arc<Self>, hash: KeyHash) -> Answer {
        let now = Instant::now();
        if let Some(recalled) = self.memory.recall(&hash, now) {
            return self.recalled(recalled);
        }
        if !self.census.admits(&hash, now) {
            self.counts.count("store", "busy");
            return Err(Refusal::Unavailable);
        }
        let answer = match self.memory.join(hash, now) {
            Joined::Recalled(recalled) => return self.recalled(recalled),
            Joined::Follow(answer) => answer,
            Joined::Lead(lookup, answer) => {
                // A task of its own: the followers' answer does not depend on the leader's patience.
                self.lookups.spawn(self.clone().look_up(hash, lookup));
                answer
            }
        };
        // An error: the lookup died, which only the end of the process does.
        answer.await.unwrap_or(Err(Refusal::Unavailable))
    }

    fn recalled(&self, recalled: Recall) -> Answer {
        match recalled {
            Recall::Fresh(record) => {
                self.counts.hit.inc();
                Ok(record)
            }
            Recall::Stale(record) => {
                self.counts.stale.inc();
                Ok(record)
            }
            Recall::Unknown => {
                self.counts.count("process", "miss");
                Err(Refusal::Unknown)
            }
        }
    }

    async fn look_up(self: Arc<Self>, hash: KeyHash, lookup: Lookup) {
        if let Some(found) = self.ask_cache(&hash).await {
            lookup.finish(&found, Instant::now());
            return;
        }
        let read_at_ms = clock::unix_ms();
        let found = self.ask_store(&hash, lookup.known).await;
        match (lookup.finish(&found, Instant::now()), found) {
            // The cache is told after the requests, and only what is still true: the mark of a revoked
            // key guards the cache as `memory` guards the process.
            (Some(_), Found::Key { record, .. }) => {
                self.tell_cache(&hash, &Entry { record: record.as_ref(), read_at_ms }).await;
            }
            (Some(Ok(_)), Found::Unavailable) => self.counts.stale.inc(),
            _ => {}
        }
    }

    /// `None`: ask the store.
    async fn ask_cache(&self, hash: &KeyHash) -> Option<Found> {
        let entry = match self.cache.as_ref()?.key(hash).await {
            Ok(Some(CachedKey::Entry(entry))) => {
                serde_json::from_slice::<Entry<KeyRecord>>(&entry).ok()
            }
            Ok(Some(CachedKey::Revoked)) => {
                self.counts.count("cache", "revoked");
                return Some(Found::Unknown);
            }
            Ok(None) => None,
            Err(_) => {
                self.counts.count("cache", "error");
                return None;
            }
        };
        let found = entry.and_then(|entry| {
            let age = entry.age();
            let life = self.life(age);
            (!life.is_zero()).then_some(Found::Key { record: Arc::new(entry.record), age, life })
        });
        self.counts.count("cache", if found.is_some() { "hit" } else { "miss" });
        found
    }

    /// How long a record of that age is used without asking again. Random, so that keys read together are
    /// not asked for together; never beyond `process_ttl` from the read, which is a promise about
    /// revocation.
    fn life(&self, age: Duration) -> Duration {
        let whole = self.config.process_ttl.mul_f64(rand::rng().random_range(0.6..1.0));
        whole.saturating_sub(age)
    }

    async fn ask_store(&self, hash: &KeyHash, known: bool) -> Found {
        let started = Instant::now();
        let ask = async {
            let Some(_place) = self.doors.enter(known).await else { return Ok(None) };
            self.store.find(hash).await.map(Some)
        };
        let (result, found) = match timeout(self.config.lookup_timeout, ask).await {
            Ok(Ok(Some(Some(record)))) => {
                let age = started.elapsed();
                let found = Found::Key { record: Arc::new(record), age, life: self.life(age) };
                ("hit", found)
            }
            Ok(Ok(Some(None))) => ("miss", Found::Unknown),
            Ok(Ok(None)) => ("busy", Found::Unavailable),
            Ok(Err(error)) => {
                tracing::debug!(%error, "an API key could not be looked up");
                ("error", Found::Unavailable)
            }
            Err(_) => ("late", Found::Unavailable),
        };
        self.counts.count("store", result);
        found
    }

    async fn tell_cache(&self, hash: &KeyHash, entry: &Entry<&KeyRecord>) {
        let Some(cache) = &self.cache else { return };
        let Ok(entry) = serde_json::to_vec(entry) else { return };
        if cache.put_key(hash, &entry, self.config.cache_ttl).await.is_err() {
            self.counts.count("cache", "error");
        }
    }
}

fn works(record: &KeyRecord) -> bool {
    // Most keys have no end: then the clock is not read.
    let now_ms = if record.expires_at_ms.is_some() { clock::unix_ms() } else { 0 };
    record.is_valid_at(now_ms)
}

/// `x-api-key`, or `Authorization: Bearer`.
fn key_of(headers: &HeaderMap) -> Option<&str> {
    let direct = headers.get("x-api-key").and_then(|value| value.to_str().ok());
    direct.or_else(|| bearer(headers)).filter(|key| !key.is_empty())
}

/// What follows `Bearer` in `Authorization`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(axum::http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, shown) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| shown.trim())
}
