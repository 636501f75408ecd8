//! Dead letters under a script. A failed call is always [`StoreError::Transient`].

use std::sync::Arc;

use async_trait::async_trait;

use super::store::fail;
use super::{Faults, Method};
use crate::store::{DeadLetterStore, Letter, LetterFilter, LetterPlace, StoreError};

/// [`DeadLetterStore`] that fails as told.
pub struct FaultLetters {
    inner: Arc<dyn DeadLetterStore>,
    faults: Faults,
}

impl FaultLetters {
    /// Wraps a store's letters.
    pub fn new(inner: Arc<dyn DeadLetterStore>, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl DeadLetterStore for FaultLetters {
    async fn newest(&self, filter: &LetterFilter, limit: usize) -> Result<Vec<Letter>, StoreError> {
        self.faults.around(Method::NewestLetters, self.inner.newest(filter, limit), fail).await
    }

    async fn walk(
        &self,
        filter: &LetterFilter,
        after: Option<LetterPlace>,
        limit: usize,
    ) -> Result<Vec<Letter>, StoreError> {
        let call = self.inner.walk(filter, after, limit);
        self.faults.around(Method::WalkLetters, call, fail).await
    }

    async fn count(&self, filter: &LetterFilter) -> Result<Vec<(String, u64)>, StoreError> {
        self.faults.around(Method::CountLetters, self.inner.count(filter), fail).await
    }

    async fn mark_replayed(&self, marks: &[(LetterPlace, LetterPlace)]) -> Result<(), StoreError> {
        self.faults.around(Method::MarkReplayed, self.inner.mark_replayed(marks), fail).await
    }

    async fn purge(&self, letters: &[Letter]) -> Result<u64, StoreError> {
        self.faults.around(Method::Purge, self.inner.purge(letters), fail).await
    }
}
