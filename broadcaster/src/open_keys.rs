//! API keys with open streams: a stream ends with its key, whether that was revoked or came to its end.
//!
//! A change is looked at when it is heard. Because a notice may be lost, and the end of a key is told by
//! nobody, every key is looked at each second too; that costs a look into the keyring's memory, and a
//! lookup when its record is due.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::store::KeyHash;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Lookups at once of one look over all keys.
const LOOKS_AT_ONCE: usize = 64;

/// The keys by which streams of this process were opened.
pub(crate) struct OpenKeys {
    keyring: Arc<Keyring>,
    /// An entry is dead once its last stream is gone; each look removes those.
    open: Mutex<HashMap<KeyHash, Weak<OpenKey>>>,
}

/// A key with open streams; each holds it.
pub(crate) struct OpenKey {
    hash: KeyHash,
    /// Cancelled once the key works no more.
    pub(crate) ended: CancellationToken,
}

impl OpenKeys {
    pub(crate) fn new(keyring: Arc<Keyring>) -> Arc<Self> {
        Arc::new(Self { keyring, open: Mutex::default() })
    }

    /// Enters a key that was authorized; `None` when it has ended since.
    pub(crate) async fn enter(&self, hash: KeyHash) -> Option<Arc<OpenKey>> {
        let key = self.entry(hash);
        // Entered first: a change before that was not looked at for this key.
        self.keyring.still_works(&hash).await.then_some(key)
    }

    fn entry(&self, hash: KeyHash) -> Arc<OpenKey> {
        let mut open = self.open();
        let there = open.get(&hash).and_then(Weak::upgrade);
        // One that has ended serves no new stream: its hash may be that of a key made anew.
        if let Some(key) = there.filter(|key| !key.ended.is_cancelled()) {
            return key;
        }
        let key = Arc::new(OpenKey { hash, ended: CancellationToken::new() });
        open.insert(hash, Arc::downgrade(&key));
        key
    }

    /// Looks at keys until the process ends. Two loops, so that a slow look over all of them, while
    /// nobody answers, does not delay what is heard of one.
    pub(crate) async fn run(self: Arc<Self>) {
        tokio::join!(self.look_at_changed(), self.look_at_all());
    }

    async fn look_at_changed(&self) {
        let mut changed = self.keyring.changed();
        loop {
            match changed.recv().await {
                Ok(hash) => {
                    let key = self.open().get(&hash).and_then(Weak::upgrade);
                    if let Some(key) = key {
                        self.look_at(key).await;
                    }
                }
                Err(RecvError::Lagged(_)) => {} // the next look over all finds them
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn look_at_all(&self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let keys = self.living();
            stream::iter(keys).for_each_concurrent(LOOKS_AT_ONCE, |key| self.look_at(key)).await;
        }
    }

    async fn look_at(&self, key: Arc<OpenKey>) {
        if !self.keyring.still_works(&key.hash).await {
            key.ended.cancel();
        }
    }

    fn living(&self) -> Vec<Arc<OpenKey>> {
        let mut living = Vec::new();
        self.open().retain(|_, key| {
            let key = key.upgrade();
            let lives = key.is_some();
            living.extend(key);
            lives
        });
        living
    }

    fn open(&self) -> MutexGuard<'_, HashMap<KeyHash, Weak<OpenKey>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
