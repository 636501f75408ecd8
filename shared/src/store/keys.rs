//! API keys: what is stored of one, and the port to it.
//!
//! The key itself is never stored: its HMAC-SHA256 under the server's pepper is, beside a prefix for
//! people. Keys are 128 bits of randomness or more, so no slow hash is needed.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::event::ClientId;

/// HMAC-SHA256 of an API key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Send events.
    #[serde(rename = "events:write")]
    EventsWrite,
    /// Read stored events and the live stream.
    #[serde(rename = "events:read")]
    EventsRead,
    /// Administer.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    /// Every scope, in the order help texts show them.
    pub const ALL: [Self; 3] = [Self::EventsWrite, Self::EventsRead, Self::Admin];

    /// The word on the command line, in tables and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EventsWrite => "events:write",
            Self::EventsRead => "events:read",
            Self::Admin => "admin",
        }
    }

    /// Reads the word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

/// A stored key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// By which it is found.
    pub hash: KeyHash,
    /// First characters of the key, unique, for people and for `keys revoke`.
    pub prefix: String,
    /// Its client's number.
    pub client: ClientId,
    /// Its client's name.
    pub client_name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Events per second it may send; `None` = no limit of its own.
    pub rate: Option<u32>,
    /// Events it may send at once on top; `None` = as many as `rate`.
    pub burst: Option<u32>,
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// When it stops working by itself, unix milliseconds.
    pub expires_at_ms: Option<i64>,
    /// When it was revoked, unix milliseconds.
    pub revoked_at_ms: Option<i64>,
}

impl KeyRecord {
    /// True when the key works at that time.
    pub fn is_valid_at(&self, now_ms: i64) -> bool {
        self.revoked_at_ms.is_none() && self.expires_at_ms.is_none_or(|expires| now_ms < expires)
    }

    /// True when the key has the scope; `admin` has every scope.
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

/// A key to be created.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Of the key itself.
    pub hash: KeyHash,
    /// Its display prefix.
    pub prefix: String,
    /// The client's name; made, with a random number, if it is new.
    pub client_name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Events per second.
    pub rate: Option<u32>,
    /// Events at once on top.
    pub burst: Option<u32>,
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// Unix milliseconds.
    pub expires_at_ms: Option<i64>,
}

/// That a key was created, revoked or given an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyChange {
    /// Grows by one with each change in the store; a key carries that of its last one.
    pub number: i64,
    /// The key.
    pub hash: KeyHash,
}

/// What creating or revoking a key can fail with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The same key, or a key with the same prefix, is there already.
    #[error("a key with this value or prefix exists already")]
    Exists,
    /// No key has this prefix.
    #[error("no key with this prefix")]
    Unknown,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The tables of clients and keys.
///
/// **Durability.** As the store's. **Order, duplicates.** A prefix and a hash exist once.
/// **Cancellation.** A dropped call happened or did not.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// The key with that hash, valid or not.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError>;

    /// Creates a key, and its client when the name is new.
    ///
    /// # Errors
    /// [`KeyError::Exists`], [`KeyError::Store`].
    async fn create(&self, key: NewKey) -> Result<KeyRecord, KeyError>;

    /// Every key, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Revokes the key with that prefix, for good; again is harmless and keeps the first time.
    ///
    /// # Errors
    /// [`KeyError::Unknown`], [`KeyError::Store`].
    async fn revoke(&self, prefix: &str, now_ms: i64) -> Result<KeyRecord, KeyError>;

    /// Lets the key with that prefix stop working at that time; an earlier end stays.
    ///
    /// # Errors
    /// [`KeyError::Unknown`], [`KeyError::Store`].
    async fn expire(&self, prefix: &str, at_ms: i64) -> Result<KeyRecord, KeyError>;

    /// Keys whose last change has a number above that one, in order of their numbers, at most
    /// [`CHANGES_AT_ONCE`]. Asking on from the last number given misses no change: numbers become
    /// visible in their order. Cheap when there is nothing, and never behind other calls.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn changes(&self, after: i64) -> Result<Vec<KeyChange>, StoreError>;

    /// Those of the given client numbers that exist.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn known_clients(&self, clients: &[ClientId]) -> Result<Vec<ClientId>, StoreError>;

    /// The pepper made when the store was created; used unless the configuration names one.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn pepper(&self) -> Result<Vec<u8>, StoreError>;
}

/// The most one call of [`KeyStore::changes`] returns.
pub const CHANGES_AT_ONCE: u16 = 1_000;

/// A number for a new client: random and positive, so that a store that was restored or swapped does not
/// give one twice.
pub(super) fn random_number() -> i32 {
    rand::random_range(1..=i32::MAX)
}
