//! The bus: live batches and short notices between instances.
//!
//! Two engines stand behind the port: [`redis`] (Pub/Sub) and [`local`] (within the process). Both pass
//! [`crate::testing::bus`]. What is lost here is never lost for good: the log has it, and the reader
//! finds the hole because batches are chained.

use async_trait::async_trait;
use bytes::Bytes;

pub mod local;
mod queue;
pub mod redis;

use crate::log::Partition;

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Live batches of one partition of the log.
    Live(Partition),
    /// Revoked API keys.
    Keys,
}

/// The bus did not take or give a message.
#[derive(Debug, thiserror::Error)]
#[error("bus unavailable: {0}")]
pub struct BusError(pub String);

/// What a subscriber hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusEvent {
    /// A message, as published.
    Message(Channel, Bytes),
    /// The subscriber was too slow, an unknown number of messages is gone.
    Lagged,
    /// The connection is gone; nothing is heard until `Restored`.
    Cut,
    /// Subscribed (again): what is published from now on is heard.
    Restored,
}

/// At-most-once delivery to whoever listens now.
///
/// **Durability.** None. **Order.** Messages of one publisher on one channel arrive in order.
/// **Duplicates.** None by the bus itself. **Cancellation.** A dropped `publish` may have happened.
#[async_trait]
pub trait Bus: Send + Sync {
    /// Sends messages, in order, each to everybody subscribed to its channel; the sender hears them too.
    /// One round trip for all of them.
    ///
    /// # Errors
    /// [`BusError`]: unknown which of them anybody heard. Answers within the engine's own timeout.
    async fn publish(&self, messages: &[(Channel, Bytes)]) -> Result<(), BusError>;

    /// Subscribes to channels. The first event is [`BusEvent::Restored`], once every channel is
    /// confirmed; an absent server is waited for, not an error. Dropping the subscription ends it.
    async fn subscribe(&self, channels: &[Channel]) -> Box<dyn Subscription>;
}

/// A running subscription. Its queue is bounded: a slow reader gets [`BusEvent::Lagged`].
#[async_trait]
pub trait Subscription: Send {
    /// Waits for the next event. Cancel safe. `None` when the bus itself is gone for good.
    async fn next(&mut self) -> Option<BusEvent>;
}
