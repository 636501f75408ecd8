//! The suite through the fault wrapper: every call fails before it works, and rules of answers that are
//! lost.
//!
//! A call is first told to fail *before* it happens, then, where a repeat gives the same answer, *after*
//! it happened; the last one goes through. A rule that knows nothing of this must hold all the same. The
//! three calls whose repeat answers otherwise have rules of their own here.
#![expect(missing_docs, reason = "the names of rules are sentences")]

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use super::{
    BuriedRecord, Copies, DAY_MS, Fixture, Inspect, NOW_MS, StoredEvent, TestedStore, batch, keys,
    rows, stored,
};
use crate::event::ClientId;
use crate::store::{
    DeadLetterSink, DeadLetterStore, EventStore, KeyChange, KeyError, KeyHash, KeyRecord, KeyStore,
    Letter, LetterFilter, LetterPlace, Maintenance, NewKey, Progress, StoreBatch, StoreError,
    Written,
};
use crate::testing::faults::{Fault, FaultKeyStore, FaultLetters, FaultStore, Faults, Method};

/// For a call whose repeat answers as the first one did.
const BEFORE_AND_AFTER: &[Fault] = &[Fault::Before, Fault::After];
/// For a call that finds its own work done when it is repeated.
const BEFORE: &[Fault] = &[Fault::Before];

/// Tables behind the fault wrapper, and a caller that repeats each call its script made fail.
struct Failing {
    events: FaultStore,
    keys: FaultKeyStore,
    letters: FaultLetters,
    tables: Arc<dyn TestedStore>,
    faults: Faults,
}

impl Fixture {
    /// The same tables, each call of both ports failing first.
    #[must_use]
    pub fn failing(self) -> Self {
        let Self { store, other, poison, query } = self;
        Self { store: Failing::over(store), other: Failing::over(other), poison, query }
    }
}

impl Failing {
    fn over(tables: Arc<dyn TestedStore>) -> Arc<dyn TestedStore> {
        let faults = Faults::default();
        Arc::new(Self {
            events: FaultStore::new(tables.clone(), faults.clone()),
            keys: FaultKeyStore::new(tables.clone(), faults.clone()),
            letters: FaultLetters::new(tables.clone(), faults.clone()),
            tables,
            faults,
        })
    }

    /// Makes the call once for each failure, then once more.
    async fn insist<T, E: Debug, Fut>(
        &self,
        method: Method,
        failures: &[Fault],
        call: impl Fn() -> Fut,
    ) -> Result<T, E>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        for failure in failures {
            self.faults.next(method, 1, failure.clone());
            let error = format!("{:?}", call().await.err());
            assert!(error.contains("injected"), "{method:?} was told to fail: {error}");
        }
        call().await
    }
}

#[async_trait]
impl EventStore for Failing {
    async fn write(
        &self,
        batch: &StoreBatch<'_>,
        dead_letters: &dyn DeadLetterSink,
    ) -> Result<Written, StoreError> {
        self.insist(Method::Write, BEFORE, || self.events.write(batch, dead_letters)).await
    }

    fn writes_in_parallel(&self) -> bool {
        self.events.writes_in_parallel()
    }

    async fn progress(&self, group: &str) -> Result<Vec<Progress>, StoreError> {
        self.insist(Method::Progress, BEFORE_AND_AFTER, || self.events.progress(group)).await
    }

    async fn place(
        &self,
        group: &str,
        seen: Option<Progress>,
        new: Progress,
    ) -> Result<Progress, StoreError> {
        let call = || self.events.place(group, seen, new);
        self.insist(Method::Place, BEFORE_AND_AFTER, call).await
    }

    async fn maintain(&self, now_ms: i64) -> Result<Maintenance, StoreError> {
        self.insist(Method::Maintain, BEFORE, || self.events.maintain(now_ms)).await
    }
}

#[async_trait]
impl DeadLetterStore for Failing {
    async fn newest(&self, filter: &LetterFilter, limit: usize) -> Result<Vec<Letter>, StoreError> {
        let call = || self.letters.newest(filter, limit);
        self.insist(Method::NewestLetters, BEFORE_AND_AFTER, call).await
    }

    async fn walk(
        &self,
        filter: &LetterFilter,
        after: Option<LetterPlace>,
        limit: usize,
    ) -> Result<Vec<Letter>, StoreError> {
        let call = || self.letters.walk(filter, after, limit);
        self.insist(Method::WalkLetters, BEFORE_AND_AFTER, call).await
    }

    async fn count(&self, filter: &LetterFilter) -> Result<Vec<(String, u64)>, StoreError> {
        self.insist(Method::CountLetters, BEFORE_AND_AFTER, || self.letters.count(filter)).await
    }

    async fn mark_replayed(&self, marks: &[(LetterPlace, LetterPlace)]) -> Result<(), StoreError> {
        let call = || self.letters.mark_replayed(marks);
        self.insist(Method::MarkReplayed, BEFORE_AND_AFTER, call).await
    }

    async fn purge(&self, letters: &[Letter]) -> Result<u64, StoreError> {
        self.insist(Method::Purge, BEFORE, || self.letters.purge(letters)).await
    }
}

#[async_trait]
impl KeyStore for Failing {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.insist(Method::FindKey, BEFORE_AND_AFTER, || self.keys.find(hash)).await
    }

    async fn create(&self, key: NewKey) -> Result<KeyRecord, KeyError> {
        self.insist(Method::CreateKey, BEFORE, || self.keys.create(key.clone())).await
    }

    async fn list(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.insist(Method::ListKeys, BEFORE_AND_AFTER, || self.keys.list()).await
    }

    async fn revoke(&self, prefix: &str, now_ms: i64) -> Result<KeyRecord, KeyError> {
        let call = || self.keys.revoke(prefix, now_ms);
        self.insist(Method::RevokeStoredKey, BEFORE_AND_AFTER, call).await
    }

    async fn expire(&self, prefix: &str, at_ms: i64) -> Result<KeyRecord, KeyError> {
        let call = || self.keys.expire(prefix, at_ms);
        self.insist(Method::ExpireKey, BEFORE_AND_AFTER, call).await
    }

    async fn changes(&self, after: i64) -> Result<Vec<KeyChange>, StoreError> {
        self.insist(Method::KeyChanges, BEFORE_AND_AFTER, || self.keys.changes(after)).await
    }

    async fn known_clients(&self, clients: &[ClientId]) -> Result<Vec<ClientId>, StoreError> {
        let call = || self.keys.known_clients(clients);
        self.insist(Method::KnownClients, BEFORE_AND_AFTER, call).await
    }

    async fn pepper(&self) -> Result<Vec<u8>, StoreError> {
        self.insist(Method::Pepper, BEFORE_AND_AFTER, || self.keys.pepper()).await
    }
}

#[async_trait]
impl Inspect for Failing {
    async fn count_events(&self) -> Result<u64, StoreError> {
        self.tables.count_events().await
    }

    async fn stored_events(&self) -> Result<Vec<StoredEvent>, StoreError> {
        self.tables.stored_events().await
    }

    async fn buried_records(&self) -> Result<Vec<BuriedRecord>, StoreError> {
        self.tables.buried_records().await
    }

    async fn client_names(&self) -> Result<Vec<String>, StoreError> {
        self.tables.client_names().await
    }

    async fn restore_client(&self, number: ClientId, name: &str) -> Result<(), StoreError> {
        self.tables.restore_client(number, name).await
    }
}

pub async fn a_batch_whose_answer_was_lost_is_fenced_and_stored_once(fixture: Fixture) {
    fixture.begin(1).await;
    let (faults, sink) = (Faults::default(), Copies::default());
    let store = FaultStore::new(fixture.store.clone(), faults.clone());
    let sent = batch(0, 3, rows(0, 1..=3));
    faults.next(Method::Write, 1, Fault::After);
    let error = store.write(&sent, &sink).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!((fixture.count().await, fixture.next().await), (3, 3), "it was stored");
    assert_eq!(store.write(&sent, &sink).await.unwrap(), Written::Fenced);
    assert_eq!(store.write(&batch(3, 4, rows(3, [4])), &sink).await.unwrap(), stored(1, 0));
    assert_eq!(fixture.count().await, 4);
}

pub async fn a_key_whose_answer_was_lost_exists(fixture: Fixture) {
    let faults = Faults::default();
    let store = FaultKeyStore::new(fixture.store.clone(), faults.clone());
    let key = keys::key(1, "a");
    faults.next(Method::CreateKey, 1, Fault::After);
    assert!(matches!(store.create(key.clone()).await, Err(KeyError::Store(_))));
    assert!(matches!(store.create(key.clone()).await, Err(KeyError::Exists)));
    assert!(fixture.other.find(&key.hash).await.unwrap().is_some());
}

pub async fn days_dropped_without_an_answer_are_not_dropped_again(fixture: Fixture) {
    fixture.begin(1).await;
    let mut sent = rows(0, [1]);
    sent[0].event.timestamp_ms -= 5 * DAY_MS;
    sent[0].received_at_us -= 5 * DAY_MS * 1_000;
    fixture.write(&batch(0, 1, sent)).await;
    let faults = Faults::default();
    let store = FaultStore::new(fixture.store.clone(), faults.clone());
    let later_ms = NOW_MS + 4 * DAY_MS;
    faults.next(Method::Maintain, 1, Fault::After);
    store.maintain(later_ms).await.unwrap_err();
    assert_eq!(fixture.count().await, 0, "the day was dropped");
    assert_eq!(store.maintain(later_ms).await.unwrap().dropped_days, 0);
}
