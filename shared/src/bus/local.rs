//! The bus within one process. Nothing is ever cut here; a slow subscriber still lags.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use bytes::Bytes;

use super::queue::Queue;
use super::{Bus, BusError, BusEvent, Channel, Subscription};

/// [`Bus`] for an all-in-one process. Subscriptions end when the last handle to the bus is dropped.
#[derive(Default)]
pub struct LocalBus {
    subscribers: Mutex<Vec<Subscriber>>,
}

struct Subscriber {
    channels: Vec<Channel>,
    /// Dead once the subscription is dropped.
    queue: Weak<Queue>,
}

struct LocalSubscription(Arc<Queue>);

impl LocalBus {
    /// A bus without subscribers.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl Bus for LocalBus {
    async fn publish(&self, messages: &[(Channel, Bytes)]) -> Result<(), BusError> {
        // The lock is kept over the hand-out: two messages of one publisher, or of two, reach every
        // subscriber in one order.
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| {
            let Some(queue) = subscriber.queue.upgrade() else { return false };
            for (channel, message) in messages {
                if subscriber.channels.contains(channel) {
                    queue.message(0, *channel, message.clone());
                }
            }
            true
        });
        Ok(())
    }

    async fn subscribe(&self, channels: &[Channel]) -> Box<dyn Subscription> {
        let queue = Arc::new(Queue::default());
        queue.restored(0);
        let subscriber = Subscriber { channels: channels.to_vec(), queue: Arc::downgrade(&queue) };
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(subscriber);
        Box::new(LocalSubscription(queue))
    }
}

impl Drop for LocalBus {
    fn drop(&mut self) {
        let subscribers = self.subscribers.get_mut().unwrap_or_else(PoisonError::into_inner);
        for queue in subscribers.iter().filter_map(|subscriber| subscriber.queue.upgrade()) {
            queue.close();
        }
    }
}

#[async_trait]
impl Subscription for LocalSubscription {
    async fn next(&mut self) -> Option<BusEvent> {
        self.0.next().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bus::BusUnderTest;

    async fn open() -> BusUnderTest {
        BusUnderTest::new(Arc::new(LocalBus::new()))
    }

    crate::bus_conformance!(local, super::open().await);

    #[tokio::test]
    async fn a_dropped_subscription_is_forgotten_by_the_next_publish() {
        let bus = LocalBus::new();
        drop(bus.subscribe(&[Channel::Keys]).await);
        bus.publish(&[(Channel::Keys, Bytes::new())]).await.unwrap();
        assert!(bus.subscribers.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_subscription_ends_with_its_bus_after_what_was_published() {
        let bus = LocalBus::new();
        let mut subscription = bus.subscribe(&[Channel::Keys]).await;
        bus.publish(&[(Channel::Keys, Bytes::from_static(b"last"))]).await.unwrap();
        drop(bus);
        assert_eq!(subscription.next().await, Some(BusEvent::Restored));
        let last = BusEvent::Message(Channel::Keys, Bytes::from_static(b"last"));
        assert_eq!(subscription.next().await, Some(last));
        assert_eq!(subscription.next().await, None);
    }
}
