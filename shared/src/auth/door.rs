//! Who may ask the store for a key now. A flood of unknown keys must neither take every connection nor
//! stand in the way of keys that work, so strangers and acquaintances have places of their own.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Lookups in the store at once, strangers and acquaintances together.
pub(super) const STORE_LOOKUPS: usize = 8;
/// Lookups that may wait for a place at each door; one more is turned away at once.
pub(super) const WAITING: usize = 256;

/// One door for keys never seen, one for keys that were good a while ago.
#[derive(Default)]
pub(super) struct Doors {
    strangers: Door,
    known: Door,
}

struct Door {
    places: Semaphore,
    waiting: Semaphore,
}

impl Default for Door {
    fn default() -> Self {
        Self { places: Semaphore::new(STORE_LOOKUPS / 2), waiting: Semaphore::new(WAITING) }
    }
}

impl Doors {
    /// Waits for a place, in order of arrival; `None` when too many wait already.
    pub(super) async fn enter(&self, known: bool) -> Option<SemaphorePermit<'_>> {
        let door = if known { &self.known } else { &self.strangers };
        let _waiting = door.waiting.try_acquire().ok()?;
        door.places.acquire().await.ok()
    }
}
