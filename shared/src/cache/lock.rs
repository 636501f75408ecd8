//! The idempotency lock: its key, its record, and the record's bytes.
//!
//! Layout of a record, 36 bytes, little-endian; kept short because Redis holds one per event for a day:
//!
//! ```text
//! 0      version (1)
//! 1      state: 0 in flight, 1 done, 2 open (an earlier attempt may have appended, none is running)
//! 2..18  fingerprint of the request
//! 18..26 owner: who made the latest attempt
//! 26..32 first attempt, unix milliseconds, 48 bits
//! 32..36 end of the owner's lease, milliseconds after the first attempt
//! ```

use std::fmt;

use crate::event::{ClientId, EventId};

const VERSION: u8 = 1;
const LENGTH: usize = 36;

/// Client and event, whatever the route: 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LockKey {
    /// The tenant; two clients may use the same UUID.
    pub client: ClientId,
    /// The `Idempotency-Key`.
    pub id: EventId,
}

impl LockKey {
    /// The key's bytes.
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.client.0.to_be_bytes());
        bytes[4..].copy_from_slice(self.id.0.as_bytes());
        bytes
    }
}

/// 128-bit hash of what was sent: decoded body and content type.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A random token for one attempt.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner(pub u64);

/// How far the key's event got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockState {
    /// Its owner is at work, as long as the lease runs.
    InFlight,
    /// The event is in the log; a retry gets the same answer.
    Done,
    /// The last attempt ended without an answer from the log; the same body may try again at once.
    Open,
}

/// What is remembered under a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockRecord {
    /// How far the event got.
    pub state: LockState,
    /// Of the first body; another one is refused as long as the key is kept.
    pub fingerprint: Fingerprint,
    /// Who made the latest attempt.
    pub owner: Owner,
    /// First attempt, unix milliseconds. The age rule is judged at this time.
    pub first_at_ms: i64,
    /// When the owner's lease ends, unix milliseconds; meaningful while in flight.
    pub lease_until_ms: i64,
}

impl LockRecord {
    /// The record's bytes. Equal records have equal bytes, so engines compare bytes.
    pub fn to_bytes(&self) -> [u8; LENGTH] {
        let lease_ms = u32::try_from(self.lease_until_ms - self.first_at_ms).unwrap_or(0);
        let mut bytes = [0; LENGTH];
        bytes[0] = VERSION;
        bytes[1] = match self.state {
            LockState::InFlight => 0,
            LockState::Done => 1,
            LockState::Open => 2,
        };
        bytes[2..18].copy_from_slice(&self.fingerprint.0);
        bytes[18..26].copy_from_slice(&self.owner.0.to_le_bytes());
        bytes[26..32].copy_from_slice(&self.first_at_ms.to_le_bytes()[..6]);
        bytes[32..].copy_from_slice(&lease_ms.to_le_bytes());
        bytes
    }

    /// Reads what [`LockRecord::to_bytes`] wrote; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        if bytes[0] != VERSION {
            return None;
        }
        let state = match bytes[1] {
            0 => LockState::InFlight,
            1 => LockState::Done,
            2 => LockState::Open,
            _ => return None,
        };
        let mut first_at = [0; 8];
        first_at[..6].copy_from_slice(&bytes[26..32]);
        let first_at_ms = i64::from_le_bytes(first_at);
        let lease_ms = u32::from_le_bytes(bytes[32..].try_into().ok()?);
        Some(Self {
            state,
            fingerprint: Fingerprint(bytes[2..18].try_into().ok()?),
            owner: Owner(u64::from_le_bytes(bytes[18..26].try_into().ok()?)),
            first_at_ms,
            lease_until_ms: first_at_ms + i64::from(lease_ms),
        })
    }
}

/// A settled lock that travels with its event, for engines that write both in one commit.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Client and event.
    pub key: LockKey,
    /// In state [`LockState::Done`].
    pub record: LockRecord,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_from_its_bytes_and_nothing_else_does() {
        for state in [LockState::InFlight, LockState::Done, LockState::Open] {
            let record = LockRecord {
                state,
                fingerprint: Fingerprint([7; 16]),
                owner: Owner(u64::MAX - 3),
                first_at_ms: 1_795_194_569_018,
                lease_until_ms: 1_795_194_584_018,
            };
            let bytes = record.to_bytes();
            assert_eq!(LockRecord::from_bytes(&bytes), Some(record));
            for cut in 0..bytes.len() {
                assert_eq!(LockRecord::from_bytes(&bytes[..cut]), None);
            }
        }
        assert_eq!(LockRecord::from_bytes(&[9; 36]), None);
    }
}
