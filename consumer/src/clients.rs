//! Which client numbers exist. A record with another one is a dead letter: in a restored or swapped
//! database the number may belong to nobody, or to somebody else.

use std::collections::HashSet;
use std::sync::Arc;

use pulsestream_shared::event::ClientId;
use pulsestream_shared::store::{KeyStore, StoreError};

/// Remembers the numbers that exist; they never stop existing. Unknown ones are asked for again each
/// time, because they may be made in the meantime.
pub(crate) struct Clients {
    store: Arc<dyn KeyStore>,
    known: HashSet<ClientId>,
}

impl Clients {
    pub(crate) fn new(store: Arc<dyn KeyStore>) -> Self {
        Self { store, known: HashSet::new() }
    }

    /// Asks the store about those not yet known.
    pub(crate) async fn learn(
        &mut self,
        clients: impl Iterator<Item = ClientId>,
    ) -> Result<(), StoreError> {
        let unknown: HashSet<_> = clients.filter(|client| !self.known.contains(client)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let unknown: Vec<_> = unknown.into_iter().collect();
        self.known.extend(self.store.known_clients(&unknown).await?);
        Ok(())
    }

    /// True when the number exists, as far as was learned.
    pub(crate) fn contains(&self, client: ClientId) -> bool {
        self.known.contains(&client)
    }
}
