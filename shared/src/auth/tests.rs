//! The keyring on a store and a cache that work, and fail as told.

use futures_util::future::join_all;
use prometheus::Registry;
use tempfile::TempDir;

use super::census::ABSENT_AT_ONCE;
use super::door::{STORE_LOOKUPS, WAITING};
use super::*;
use crate::cache::embedded::{EmbeddedCache, EmbeddedCacheBounds};
use crate::log::embedded::{EmbeddedConfig, EmbeddedLog};
use crate::store::NewKey;
use crate::store::sqlite::{self, SqliteConfig, SqliteStore};
use crate::testing::faults::{Fault, FaultCache, FaultKeyStore, Faults, Method};
use crate::testing::wait_for;

const PATIENCE: Duration = Duration::from_secs(10);

/// A keyring, and what stands behind it.
struct Desk {
    keyring: Arc<Keyring>,
    /// Behind the faults.
    store: Arc<SqliteStore>,
    cache: Arc<EmbeddedCache>,
    faults: Faults,
    log: EmbeddedLog,
    _folder: TempDir,
}

impl Desk {
    async fn open() -> Self {
        Self::open_with(|_| {}).await
    }

    async fn open_with(change: impl FnOnce(&mut config::Keys)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        sqlite::migrate(&path).await.unwrap();
        let store = Arc::new(SqliteStore::open(SqliteConfig::new(&path)).await.unwrap());
        let log = EmbeddedLog::open(EmbeddedConfig {
            dir: folder.path().to_owned(),
            partitions: 1,
            retention: PATIENCE,
            max_bytes: u64::MAX,
            append_timeout: PATIENCE,
        });
        let log = log.await.unwrap();
        let cache = Arc::new(EmbeddedCache::new(&log, EmbeddedCacheBounds::default()));
        let faults = Faults::default();
        let mut config = config::load(None, std::iter::empty(), &[]).unwrap().config.keys;
        change(&mut config);
        let keyring = Arc::new(Keyring {
            pepper: Pepper::new(b"pepper"),
            cache: Some(Arc::new(FaultCache::new(cache.clone(), faults.clone()))),
            store: Arc::new(FaultKeyStore::new(store.clone(), faults.clone())),
            memory: Memory::new(config.negative_ttl),
            config,
            census: Census::new(),
            doors: Doors::default(),
            counts: Counts::new(&Metrics(&Registry::new())),
            changed: broadcast::Sender::new(CHANGES_WAITING),
            lookups: TaskTracker::new(),
        });
        Self { keyring, store, cache, faults, log, _folder: folder }
    }

    /// Makes a key, its own prefix.
    async fn make(&self, key: &str) -> KeyHash {
        let new = NewKey {
            hash: self.keyring.pepper.hash(key),
            prefix: key.to_owned(),
            client_name: "tenant".to_owned(),
            scopes: vec![Scope::EventsWrite],
            rate: None,
            burst: None,
            created_at_ms: clock::unix_ms(),
            expires_at_ms: None,
        };
        self.store.create(new).await.unwrap().hash
    }

    /// As a gateway's answer to a request with that key.
    async fn status(&self, key: &str) -> u16 {
        let headers = HeaderMap::from_iter([("x-api-key".parse().unwrap(), key.parse().unwrap())]);
        match self.keyring.authorize(&headers, Scope::EventsWrite).await {
            Ok(_) => 200,
            Err(problem) => problem.code().status().as_u16(),
        }
    }

    fn hear_changed(&self, hash: KeyHash) {
        self.keyring.hear(&KeyNotice::Changed(vec![hash]));
    }

    async fn until_hanging(&self, count: usize) {
        wait_for("a call to hang", PATIENCE, async || self.faults.hanging() == count).await;
    }

    fn counted(&self, tier: &str, result: &str) -> u64 {
        self.keyring.counts.all.with_label_values(&[tier, result]).get()
    }

    async fn close(self) {
        self.faults.clear();
        self.keyring.lookups.close();
        self.keyring.lookups.wait().await;
        self.store.close().await;
        self.log.close().await;
    }
}

#[tokio::test]
async fn two_thousand_requests_with_one_cold_key_make_one_lookup() {
    let desk = Desk::open().await;
    desk.make("good").await;
    desk.faults.next(Method::FindKey, 1, Fault::HangAfter);
    let requests = join_all((0..2_000).map(|_| desk.status("good")));
    let release = async {
        desk.until_hanging(1).await;
        desk.faults.release();
    };
    let (statuses, ()) = tokio::join!(requests, release);
    assert!(statuses.iter().all(|status| *status == 200));
    assert_eq!(desk.status("good").await, 200);
    assert_eq!((desk.faults.calls(Method::FindKey), desk.faults.calls(Method::Key)), (1, 1));
    desk.close().await;
}

#[tokio::test]
async fn a_lookup_goes_on_when_the_request_that_began_it_is_gone() {
    let desk = Desk::open().await;
    desk.make("good").await;
    desk.faults.next(Method::FindKey, 1, Fault::HangAfter);
    tokio::select! {
        status = desk.status("good") => panic!("{status}"),
        () = desk.until_hanging(1) => {}
    }
    desk.faults.release();
    assert_eq!(desk.status("good").await, 200);
    assert_eq!(desk.faults.calls(Method::FindKey), 1);
    desk.close().await;
}

#[tokio::test]
async fn a_flood_of_unknown_keys_pushes_no_good_key_out() {
    let desk = Desk::open().await;
    let good: Vec<String> = (0..50).map(|number| format!("good{number}")).collect();
    for key in &good {
        desk.make(key).await;
        assert_eq!(desk.status(key).await, 200);
    }
    // More than the table of unknown keys holds.
    let mut unknown = 0;
    for wave in 0..60 {
        let flood: Vec<_> = (0..200).map(|number| format!("bad{wave}x{number}")).collect();
        let statuses = join_all(flood.iter().map(|key| desk.status(key))).await;
        unknown += statuses.iter().filter(|status| **status == 401).count();
    }
    assert_eq!(unknown, 12_000);
    let before = desk.faults.calls(Method::FindKey);
    for key in &good {
        assert_eq!(desk.status(key).await, 200);
    }
    assert_eq!(desk.faults.calls(Method::FindKey), before, "they were remembered");
    desk.close().await;
}

#[tokio::test]
async fn a_flood_of_unknown_keys_has_half_the_places_and_the_rest_is_refused_at_once() {
    let desk = Desk::open_with(|keys| keys.lookup_timeout = PATIENCE).await;
    desk.make("good").await;
    assert_eq!(desk.status("good").await, 200);
    desk.keyring.hear(&KeyNotice::Missed);

    desk.faults.next(Method::FindKey, STORE_LOOKUPS, Fault::HangBefore);
    let flood: Vec<_> = (0..1_000).map(|number| format!("bad{number}")).collect();
    let flood = join_all(flood.iter().map(|key| desk.status(key)));
    let beside = async {
        let refused = 1_000 - STORE_LOOKUPS / 2 - WAITING;
        wait_for("the rest to be refused", PATIENCE, async || {
            desk.counted("store", "busy") == refused as u64
        })
        .await;
        assert_eq!(desk.faults.hanging(), STORE_LOOKUPS / 2);
        // A key that was good passes by the other door.
        desk.faults.next(Method::Key, 1, Fault::Before);
        let (status, ()) = tokio::join!(desk.status("good"), async {
            desk.until_hanging(STORE_LOOKUPS / 2 + 1).await;
            desk.faults.clear();
        });
        assert_eq!(status, 200);
    };
    let (statuses, ()) = tokio::join!(flood, beside);
    assert!(statuses.iter().all(|status| matches!(status, 401 | 503)));
    desk.close().await;
}

#[tokio::test]
async fn a_flood_of_keys_that_were_never_made_is_not_looked_up_and_keys_never_used_are() {
    let desk = Desk::open().await;
    desk.make("old").await;
    let mut seen = 0;
    desk.keyring.census.look(desk.store.as_ref(), &mut seen).await.unwrap();
    let mut flooded = 0;
    for wave in 0..40 {
        let flood: Vec<_> = (0..200).map(|number| format!("bad{wave}x{number}")).collect();
        let statuses = join_all(flood.iter().map(|key| desk.status(key))).await;
        assert!(statuses.iter().all(|status| matches!(status, 401 | 503)));
        flooded += statuses.iter().filter(|status| **status == 503).count();
    }
    assert!(flooded > 0 && desk.counted("store", "miss") >= u64::from(ABSENT_AT_ONCE));
    assert_eq!(desk.counted("store", "busy"), flooded as u64);
    assert_eq!(desk.status("old").await, 200);
    // Of a key made meanwhile this process has heard, or reads of it in the store.
    let heard = desk.make("heard").await;
    desk.hear_changed(heard);
    assert_eq!(desk.status("heard").await, 200);
    desk.make("read").await;
    desk.keyring.census.look(desk.store.as_ref(), &mut seen).await.unwrap();
    assert_eq!(desk.status("read").await, 200);
    desk.close().await;
}

#[tokio::test]
async fn a_store_that_hangs_is_answered_503_in_time_and_loses_nothing() {
    let desk = Desk::open().await;
    desk.make("cold").await;
    desk.faults.next(Method::FindKey, 1, Fault::HangBefore);
    let asked = Instant::now();
    assert_eq!(desk.status("cold").await, 503);
    let timeout = desk.keyring.config.lookup_timeout;
    assert!(asked.elapsed() >= timeout && asked.elapsed() < timeout * 3, "{:?}", asked.elapsed());
    assert_eq!(desk.counted("store", "late"), 1);
    assert_eq!(desk.status("cold").await, 200);
    desk.close().await;
}

/// Interleaving 15: the loader reads *valid*; the revocation is stored, marked and announced; then the
/// loader comes to write.
#[tokio::test]
async fn a_loader_that_read_before_a_revocation_puts_the_key_back_nowhere() {
    for slow_tier in [Method::FindKey, Method::Key] {
        let desk = Desk::open().await;
        let hash = desk.make("revoked").await;
        if slow_tier == Method::Key {
            assert_eq!(desk.status("revoked").await, 200);
            wait_for("the cache to know it", PATIENCE, async || {
                desk.cache.key(&hash).await.unwrap().is_some()
            })
            .await;
            desk.keyring.hear(&KeyNotice::Missed);
        }
        desk.faults.next(slow_tier, 1, Fault::HangAfter);
        let revoke = async {
            desk.until_hanging(1).await;
            desk.store.revoke("revoked", clock::unix_ms()).await.unwrap();
            desk.cache.revoke_key(&hash, PATIENCE).await.unwrap();
            desk.hear_changed(hash);
            desk.faults.release();
        };
        let (status, ()) = tokio::join!(desk.status("revoked"), revoke);
        assert_eq!(status, 200, "asked before the revocation was complete");
        assert_eq!(desk.status("revoked").await, 401, "{slow_tier:?}");
        assert_eq!(desk.cache.key(&hash).await.unwrap(), Some(CachedKey::Revoked));
        // Nor does it come back while nobody can be asked.
        desk.hear_changed(hash);
        desk.faults.next(Method::Key, 1, Fault::Before);
        desk.faults.next(Method::FindKey, 1, Fault::Before);
        assert_eq!(desk.status("revoked").await, 503);
        desk.close().await;
    }
}

/// The same without a mark in the cache, whose place is taken by the loader's own check.
#[tokio::test]
async fn a_loader_overtaken_by_a_revocation_does_not_tell_the_cache() {
    let desk = Desk::open().await;
    let hash = desk.make("revoked").await;
    desk.faults.next(Method::FindKey, 1, Fault::HangAfter);
    let revoke = async {
        desk.until_hanging(1).await;
        desk.store.revoke("revoked", clock::unix_ms()).await.unwrap();
        desk.hear_changed(hash);
        desk.faults.release();
    };
    tokio::join!(desk.status("revoked"), revoke);
    assert_eq!(desk.status("revoked").await, 401);
    assert_eq!(desk.faults.calls(Method::FindKey), 2);
    desk.close().await;
}

#[tokio::test]
async fn the_mark_of_a_revoked_key_is_enough_when_the_store_is_away() {
    let desk = Desk::open().await;
    let hash = desk.make("revoked").await;
    assert_eq!(desk.status("revoked").await, 200);
    desk.cache.revoke_key(&hash, PATIENCE).await.unwrap();
    // The notice itself was missed.
    desk.keyring.hear(&KeyNotice::Missed);
    desk.faults.next(Method::FindKey, 1, Fault::Before);
    assert_eq!(desk.status("revoked").await, 401);
    assert_eq!(desk.counted("cache", "revoked"), 1);
    desk.close().await;
}

#[tokio::test]
async fn a_key_created_after_it_was_refused_works_at_once() {
    let desk = Desk::open().await;
    assert_eq!(desk.status("new").await, 401);
    let hash = desk.make("new").await;
    assert_eq!(desk.status("new").await, 401, "remembered as unknown");
    desk.hear_changed(hash);
    assert_eq!(desk.status("new").await, 200);
    desk.close().await;
}

#[tokio::test]
async fn while_nobody_answers_known_keys_go_on_and_others_are_not_called_wrong() {
    let desk = Desk::open().await;
    for key in ["warm", "cold"] {
        desk.make(key).await;
    }
    assert_eq!(desk.status("warm").await, 200);
    desk.keyring.hear(&KeyNotice::Missed);
    let away = |times| {
        desk.faults.next(Method::Key, times, Fault::Before);
        desk.faults.next(Method::FindKey, times, Fault::Before);
    };
    away(2);
    for _ in 0..10 {
        assert_eq!(desk.status("warm").await, 200);
    }
    assert_eq!(desk.counted("process", "stale"), 10);
    assert_eq!(desk.status("cold").await, 503);
    assert_eq!(desk.status("cold").await, 200);
    desk.close().await;
}

#[tokio::test]
async fn the_life_of_a_key_counts_from_the_store_in_whatever_tier_it_is_found() {
    let desk = Desk::open().await;
    let bound = desk.keyring.config.process_ttl;
    for age in [0, 10, 29, 30, 300].map(Duration::from_secs) {
        for _ in 0..100 {
            assert!(age + desk.keyring.life(age) <= bound.max(age));
        }
    }
    desk.close().await;
}

#[tokio::test]
async fn a_key_that_changed_is_told_to_whoever_listens() {
    let desk = Desk::open().await;
    let hash = desk.make("revoked").await;
    let mut changed = desk.keyring.changed();
    assert!(desk.keyring.still_works(&hash).await);
    desk.store.revoke("revoked", clock::unix_ms()).await.unwrap();
    desk.cache.revoke_key(&hash, PATIENCE).await.unwrap();
    desk.hear_changed(hash);
    assert_eq!(changed.recv().await.unwrap(), hash);
    assert!(!desk.keyring.still_works(&hash).await);
    desk.close().await;
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
