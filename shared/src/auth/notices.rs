//! How a process hears that an API key changed.
//!
//! Servers: its hash is published on the bus. Embedded, and wherever processes share no bus: the store is
//! asked for changes ten times a second. Either way a change is heard in well under 250 ms; whatever
//! fails, `keys.process_ttl` bounds how long an old record is used.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::bus::{Bus, BusError, BusEvent, Channel, Subscription};
use crate::store::{CHANGES_AT_ONCE, KeyHash, KeyStore};

/// How often a store is asked: with the look itself, well within the 250 ms that are promised.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What is heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyNotice {
    /// These keys were created, revoked or given an end.
    Changed(Vec<KeyHash>),
    /// An unknown number of notices is gone.
    Missed,
}

/// Where a process hears of changed keys.
pub enum KeyNotices {
    /// From the bus that all processes share.
    Bus(Box<dyn Subscription>),
    /// From the store.
    Store(StoreLooks),
}

/// Looks at the store.
pub struct StoreLooks {
    keys: Arc<dyn KeyStore>,
    /// Number of the last change that was told.
    seen: i64,
    ticks: Interval,
    /// The last look brought as much as one can: there is more.
    more: bool,
    failing: bool,
}

impl KeyNotices {
    /// Subscribes to the bus.
    pub async fn of_bus(bus: &dyn Bus) -> Self {
        Self::Bus(bus.subscribe(&[Channel::Keys]).await)
    }

    /// Looks at the store; what is in it is told first.
    pub fn of_store(keys: Arc<dyn KeyStore>) -> Self {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self::Store(StoreLooks { keys, seen: 0, ticks, more: false, failing: false })
    }

    /// Waits for the next notice; `None` when the bus is gone for good. Cancel safe.
    pub async fn next(&mut self) -> Option<KeyNotice> {
        match self {
            Self::Bus(subscription) => heard(subscription.as_mut()).await,
            Self::Store(looks) => Some(looks.next().await),
        }
    }
}

/// Tells every process that a key changed. The message is its hash.
///
/// # Errors
/// [`BusError`]: some may hear of it only when they next ask for the key.
pub async fn announce(bus: &dyn Bus, hash: &KeyHash) -> Result<(), BusError> {
    bus.publish(&[(Channel::Keys, Bytes::copy_from_slice(&hash.0))]).await
}

async fn heard(subscription: &mut dyn Subscription) -> Option<KeyNotice> {
    loop {
        return Some(match subscription.next().await? {
            BusEvent::Message(_, message) => match <[u8; 32]>::try_from(&message[..]) {
                Ok(hash) => KeyNotice::Changed(vec![KeyHash(hash)]),
                // A newer version's: it says that something changed, not what.
                Err(_) => KeyNotice::Missed,
            },
            BusEvent::Lagged | BusEvent::Restored => KeyNotice::Missed,
            // What is missed from here on is told by the `Restored` to come. To forget the keys now would
            // send every gateway to the database at the moment Redis fails.
            BusEvent::Cut => continue,
        });
    }
}

impl StoreLooks {
    async fn next(&mut self) -> KeyNotice {
        loop {
            if !self.more {
                self.ticks.tick().await;
            }
            match self.keys.changes(self.seen).await {
                Ok(changes) => {
                    self.failing = false;
                    self.more = changes.len() == usize::from(CHANGES_AT_ONCE);
                    if let Some(last) = changes.last() {
                        self.seen = last.number;
                        let hashes = changes.iter().map(|change| change.hash).collect();
                        return KeyNotice::Changed(hashes);
                    }
                }
                Err(error) => {
                    self.more = false;
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(%error, "changes of API keys are not heard");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
