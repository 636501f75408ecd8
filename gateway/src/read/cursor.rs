//! The cursor of a list: where to go on, bound to the list it came from. Opaque to clients.
//!
//! ```text
//! base64url without padding of
//! 0      version (1)
//! 1..9   first half of a 128-bit hash over list and key
//! 9..    key: of an event timestamp, place (8 bytes each, big-endian) and id; of a device its id;
//!        of a dead letter the time of its death, partition, offset (8, 4, 8 bytes) and epoch
//! ```
//!
//! The list is the client, the route, every filter and the order, as they were written. The hash finds
//! mistakes (another list's cursor, a cut or changed one), not forgers: whoever makes up a cursor gets
//! another page of what is their own, because the client of a query comes from the API key alone.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use pulsestream_shared::event::{ClientId, DeviceId, EventId};
use pulsestream_shared::store::LetterPlace;
use pulsestream_shared::store::query::{LetterKey, SortKey};
use serde::Serialize;

const VERSION: u8 = 1;

/// What one looks like.
pub(super) const EXAMPLE: &str = "Ae_hZkhvc6qaAAABohfnAegAAAAAAAAAAV8jlr-gOEakqzwINJGx1Zs";

/// A key as bytes and back.
pub(super) trait Key: Sized {
    fn to_bytes(&self) -> Vec<u8>;
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

impl Key for SortKey {
    fn to_bytes(&self) -> Vec<u8> {
        let (time, pos) = (self.timestamp_ms.to_be_bytes(), self.pos.to_be_bytes());
        [&time[..], &pos[..], &self.id.0.as_bytes()[..]].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (timestamp_ms, rest) = bytes.split_first_chunk()?;
        let (pos, id) = rest.split_first_chunk()?;
        Some(Self {
            timestamp_ms: i64::from_be_bytes(*timestamp_ms),
            pos: i64::from_be_bytes(*pos),
            id: EventId(uuid::Uuid::from_bytes(id.try_into().ok()?)),
        })
    }
}

impl Key for DeviceId {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.as_bytes().to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(uuid::Uuid::from_bytes(bytes.try_into().ok()?)))
    }
}

impl Key for LetterKey {
    fn to_bytes(&self) -> Vec<u8> {
        let LetterPlace { partition, epoch, offset } = self.place;
        let (time, partition) = (self.died_at_us.to_be_bytes(), partition.to_be_bytes());
        [&time[..], &partition[..], &offset.to_be_bytes()[..], &epoch.as_bytes()[..]].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (died_at_us, rest) = bytes.split_first_chunk()?;
        let (partition, rest) = rest.split_first_chunk()?;
        let (offset, epoch) = rest.split_first_chunk()?;
        let place = LetterPlace {
            partition: i32::from_be_bytes(*partition),
            epoch: uuid::Uuid::from_bytes(epoch.try_into().ok()?),
            offset: i64::from_be_bytes(*offset),
        };
        Some(Self { died_at_us: i64::from_be_bytes(*died_at_us), place })
    }
}

/// What a cursor belongs to.
pub(super) struct Binding(Vec<u8>);

impl Binding {
    /// Of a client's list on a route, with everything that decides what is in it and in what order.
    pub(super) fn new(client: ClientId, route: &str, filters: &impl Serialize) -> Self {
        // JSON: no two lists are written alike, whatever characters a filter holds.
        Self(serde_json::to_vec(&(client, route, filters)).unwrap_or_default())
    }

    pub(super) fn seal(&self, key: &impl Key) -> String {
        let key = key.to_bytes();
        let bytes = [&[VERSION][..], &self.hash(&key)[..], &key[..]].concat();
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The key, or what to tell the client.
    pub(super) fn open<K: Key>(&self, text: &str) -> Result<K, String> {
        let read = || {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
            let (version, rest) = bytes.split_first()?;
            let (hash, key) = rest.split_first_chunk()?;
            let ours = *version == VERSION && *hash == self.hash(key);
            K::from_bytes(key).filter(|_| ours)
        };
        read().ok_or_else(|| {
            "is not a nextCursor of this list: send the same filters and order again".to_owned()
        })
    }

    fn hash(&self, key: &[u8]) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] =
            xxhash_rust::xxh3::xxh3_128(&[&self.0[..], key].concat()).to_be_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn binding(client: i32, event_type: &str) -> Binding {
        Binding::new(ClientId(client), "events", &(event_type, 5))
    }

    fn sort_key() -> impl Strategy<Value = SortKey> {
        any::<(i64, i64, u128)>().prop_map(|(timestamp_ms, pos, id)| SortKey {
            timestamp_ms,
            pos,
            id: EventId(uuid::Uuid::from_u128(id)),
        })
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back_in_its_own_list_and_in_no_other(key in sort_key(), name: String) {
            let list = binding(1, &name);
            let cursor = list.seal(&key);
            prop_assert_eq!(list.open::<SortKey>(&cursor), Ok(key));
            prop_assert!(list.open::<DeviceId>(&cursor).is_err());
            prop_assert!(binding(2, &name).open::<SortKey>(&cursor).is_err());
            let other = binding(1, &(name + "x"));
            prop_assert!(other.open::<SortKey>(&cursor).is_err());
        }

        #[test]
        fn a_changed_cursor_is_refused(key in sort_key(), place: prop::sample::Index, with in "[A-Za-z0-9_-]") {
            let list = binding(1, "cpu");
            let cursor = list.seal(&key);
            let at = place.index(cursor.len());
            let (before, rest) = cursor.split_at(at);
            let changed = [before, with.as_str(), rest.split_at(1).1].concat();
            prop_assume!(changed != cursor);
            prop_assert!(list.open::<SortKey>(&changed).is_err());
            prop_assert!(list.open::<SortKey>(before).is_err());
        }

        #[test]
        fn what_was_never_a_cursor_is_refused(text: String, bytes: Vec<u8>) {
            let list = binding(1, "cpu");
            prop_assert!(list.open::<SortKey>(&text).is_err());
            prop_assert!(list.open::<SortKey>(&BASE64_URL_SAFE_NO_PAD.encode(bytes)).is_err());
        }
    }

    #[test]
    fn a_device_and_a_dead_letter_come_back_too() {
        let device = DeviceId(uuid::Uuid::from_u128(7));
        let list = binding(1, "");
        assert_eq!(list.open(&list.seal(&device)), Ok(device));
        let place = LetterPlace { partition: 3, epoch: uuid::Uuid::from_u128(9), offset: -1 };
        let letter = LetterKey { died_at_us: 1_795_194_569_018_001, place };
        assert_eq!(list.open(&list.seal(&letter)), Ok(letter));
        assert!(list.open::<SortKey>(&list.seal(&letter)).is_err());
    }
}
