//! Which client numbers exist. A record with another one is a dead letter: in a restored or swapped
//! database the number may belong to nobody, or to somebody else.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use pulsestream_shared::event::ClientId;
use pulsestream_shared::store::{KeyStore, StoreError};

/// Remembers the numbers that exist; they never stop existing. Unknown ones are asked for again each
/// time, because they may be made in the meantime.
pub(crate) struct Clients {
    store: Arc<dyn KeyStore>,
    known: RwLock<HashSet<ClientId>>,
}

impl Clients {
    pub(crate) fn new(store: Arc<dyn KeyStore>) -> Self {
        Self { store, known: RwLock::default() }
    }

    /// Asks the store about those not yet known.
    pub(crate) async fn learn(&self, clients: &[ClientId]) -> Result<(), StoreError> {
        let unknown = clients.iter().copied().filter(|client| !self.contains(*client));
        let unknown: Vec<_> = unknown.collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let found = self.store.known_clients(&unknown).await?;
        self.known.write().unwrap_or_else(PoisonError::into_inner).extend(found);
        Ok(())
    }

    /// True when the number exists, as far as was learned.
    pub(crate) fn contains(&self, client: ClientId) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains(&client)
    }
}
