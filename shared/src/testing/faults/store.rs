//! The store, its queries and the keys under a script. A failed call is always
//! [`StoreError::Transient`]: use [`Fault::Run`](super::Fault::Run) to do anything worse first.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Faults, Method, Struck};
use crate::event::{ClientId, DeviceId, EventId};
use crate::store::keys::KeyError;
use crate::store::query::{
    Bucket, DeviceState, EventsQuery, Found, LetterKey, LettersQuery, Page, QueryError,
    SeriesQuery, Snapshot, SnapshotQuery, SortKey,
};
use crate::store::{
    DeadLetterSink, EventQuery, EventStore, KeyChange, KeyHash, KeyRecord, KeyStore, Letter,
    LetterState, Maintenance, NewKey, Progress, StoreBatch, StoreError, StoredEvent, Stretch,
    Written,
};

/// [`EventStore`] that fails as told.
pub struct FaultStore {
    inner: Arc<dyn EventStore>,
    faults: Faults,
}

impl FaultStore {
    /// Wraps a store.
    pub fn new(inner: Arc<dyn EventStore>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

pub(super) fn fail<T>(struck: Struck) -> Result<T, StoreError> {
    Err(StoreError::Transient(struck.text()))
}

#[async_trait]
impl EventStore for FaultStore {
    async fn write(
        &self,
        batch: &StoreBatch<'_>,
        dead_letters: &dyn DeadLetterSink,
    ) -> Result<Written, StoreError> {
        let call = self.inner.write(batch, dead_letters);
        self.faults.around(Method::Write, call, fail).await
    }

    fn writes_in_parallel(&self) -> bool {
        self.inner.writes_in_parallel()
    }

    async fn progress(&self, group: &str) -> Result<Vec<Progress>, StoreError> {
        self.faults.around(Method::Progress, self.inner.progress(group), fail).await
    }

    async fn place(
        &self,
        group: &str,
        seen: Option<Progress>,
        new: Progress,
    ) -> Result<Progress, StoreError> {
        self.faults.around(Method::Place, self.inner.place(group, seen, new), fail).await
    }

    async fn maintain(&self, now_ms: i64) -> Result<Maintenance, StoreError> {
        self.faults.around(Method::Maintain, self.inner.maintain(now_ms), fail).await
    }

    fn stretch(&self) -> Stretch {
        self.inner.stretch()
    }
}

/// [`EventQuery`] that fails as told.
pub struct FaultQuery {
    inner: Arc<dyn EventQuery>,
    faults: Faults,
}

impl FaultQuery {
    /// Wraps a store's queries.
    pub fn new(inner: Arc<dyn EventQuery>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

/// A query that was made and has no answer took too long.
fn fail_query<T>(struck: Struck) -> Result<T, QueryError> {
    Err(match struck {
        Struck::Before => StoreError::Transient(struck.text()).into(),
        Struck::After => QueryError::TooSlow,
    })
}

#[async_trait]
impl EventQuery for FaultQuery {
    async fn events(&self, query: &EventsQuery) -> Result<Page<StoredEvent, SortKey>, QueryError> {
        self.faults.around(Method::QueryEvents, self.inner.events(query), fail_query).await
    }

    async fn event(&self, client: ClientId, id: EventId) -> Result<Option<Found>, QueryError> {
        self.faults.around(Method::QueryEvent, self.inner.event(client, id), fail_query).await
    }

    async fn devices(
        &self,
        client: ClientId,
        since_ms: i64,
        after: Option<DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceState, DeviceId>, QueryError> {
        let call = self.inner.devices(client, since_ms, after, limit);
        self.faults.around(Method::QueryDevices, call, fail_query).await
    }

    async fn device(
        &self,
        client: ClientId,
        device: DeviceId,
        since_ms: i64,
    ) -> Result<Option<DeviceState>, QueryError> {
        let call = self.inner.device(client, device, since_ms);
        self.faults.around(Method::QueryDevice, call, fail_query).await
    }

    async fn series(&self, query: &SeriesQuery) -> Result<Vec<Bucket>, QueryError> {
        self.faults.around(Method::QuerySeries, self.inner.series(query), fail_query).await
    }

    async fn letters(
        &self,
        query: &LettersQuery,
    ) -> Result<Page<(Letter, LetterState), LetterKey>, QueryError> {
        self.faults.around(Method::QueryLetters, self.inner.letters(query), fail_query).await
    }

    async fn snapshot(&self, query: &SnapshotQuery) -> Result<Snapshot, QueryError> {
        self.faults.around(Method::QuerySnapshot, self.inner.snapshot(query), fail_query).await
    }
}

/// [`KeyStore`] that fails as told.
pub struct FaultKeyStore {
    inner: Arc<dyn KeyStore>,
    faults: Faults,
}

impl FaultKeyStore {
    /// Wraps a key store.
    pub fn new(inner: Arc<dyn KeyStore>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

fn fail_key<T>(struck: Struck) -> Result<T, KeyError> {
    Err(KeyError::Store(StoreError::Transient(struck.text())))
}

#[async_trait]
impl KeyStore for FaultKeyStore {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.faults.around(Method::FindKey, self.inner.find(hash), fail).await
    }

    async fn create(&self, key: NewKey) -> Result<KeyRecord, KeyError> {
        self.faults.around(Method::CreateKey, self.inner.create(key), fail_key).await
    }

    async fn list(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.faults.around(Method::ListKeys, self.inner.list(), fail).await
    }

    async fn revoke(&self, prefix: &str, now_ms: i64) -> Result<KeyRecord, KeyError> {
        let call = self.inner.revoke(prefix, now_ms);
        self.faults.around(Method::RevokeStoredKey, call, fail_key).await
    }

    async fn expire(&self, prefix: &str, at_ms: i64) -> Result<KeyRecord, KeyError> {
        self.faults.around(Method::ExpireKey, self.inner.expire(prefix, at_ms), fail_key).await
    }

    async fn changes(&self, after: i64) -> Result<Vec<KeyChange>, StoreError> {
        self.faults.around(Method::KeyChanges, self.inner.changes(after), fail).await
    }

    async fn known_clients(&self, clients: &[ClientId]) -> Result<Vec<ClientId>, StoreError> {
        self.faults.around(Method::KnownClients, self.inner.known_clients(clients), fail).await
    }

    async fn pepper(&self) -> Result<Vec<u8>, StoreError> {
        self.faults.around(Method::Pepper, self.inner.pepper(), fail).await
    }
}
