//! The cache under a script.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{Faults, Method, Struck};
use crate::bucket::Debt;
use crate::cache::{Cache, CacheError, CachedKey, Charge, LockChange, LockRequest, Locked};
use crate::store::KeyHash;

/// [`Cache`] that fails as told.
pub struct FaultCache {
    inner: Arc<dyn Cache>,
    faults: Faults,
}

impl FaultCache {
    /// Wraps a cache.
    pub fn new(inner: Arc<dyn Cache>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

fn fail<T>(struck: Struck) -> Result<T, CacheError> {
    Err(CacheError(struck.text()))
}

#[async_trait]
impl Cache for FaultCache {
    async fn lock(&self, requests: &[LockRequest]) -> Result<Locked, CacheError> {
        self.faults.around(Method::Lock, self.inner.lock(requests), fail).await
    }

    async fn settle(&self, changes: &[LockChange]) -> Result<Vec<bool>, CacheError> {
        self.faults.around(Method::Settle, self.inner.settle(changes), fail).await
    }

    async fn key(&self, hash: &KeyHash) -> Result<Option<CachedKey>, CacheError> {
        self.faults.around(Method::Key, self.inner.key(hash), fail).await
    }

    async fn put_key(
        &self,
        hash: &KeyHash,
        entry: &[u8],
        life: Duration,
    ) -> Result<(), CacheError> {
        self.faults.around(Method::PutKey, self.inner.put_key(hash, entry, life), fail).await
    }

    async fn revoke_key(&self, hash: &KeyHash, life: Duration) -> Result<(), CacheError> {
        self.faults.around(Method::RevokeKey, self.inner.revoke_key(hash, life), fail).await
    }

    async fn charge(&self, charges: &[Charge]) -> Result<Vec<Debt>, CacheError> {
        self.faults.around(Method::Charge, self.inner.charge(charges), fail).await
    }
}
