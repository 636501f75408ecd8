//! Who listens: the subscribers of this process, by tenant.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::ws::Utf8Bytes;
use pulsestream_shared::event::ClientId;
use pulsestream_shared::log::Partition;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::ends::Floor;
use crate::filter::{Audience, Filter};
use crate::range::LiveEvent;

/// Frames a subscriber may have queued, whatever their size.
pub(crate) const QUEUE_FRAMES: usize = 4_096;

/// One subscriber as the hub sees it.
pub(crate) struct Subscriber {
    filter: Filter,
    /// Nothing below is shown: it was logged before the subscriber came.
    from: Floor,
    frames: mpsc::Sender<Utf8Bytes>,
    /// Bytes handed over and not yet written to the socket.
    queued: Arc<AtomicUsize>,
    queue_bytes: usize,
    /// Cancelled when the subscriber missed an event: it must be closed, for a plain socket cannot be
    /// told of a gap.
    missed: CancellationToken,
}

/// The receiving end of a [`Subscriber`].
pub(crate) struct Inbox {
    pub(crate) frames: mpsc::Receiver<Utf8Bytes>,
    pub(crate) queued: Arc<AtomicUsize>,
    pub(crate) missed: CancellationToken,
}

impl Subscriber {
    pub(crate) fn new(filter: Filter, from: Floor, queue_bytes: usize) -> (Self, Inbox) {
        let (sender, frames) = mpsc::channel(QUEUE_FRAMES);
        let queued = Arc::new(AtomicUsize::new(0));
        let missed = CancellationToken::new();
        let inbox = Inbox { frames, queued: queued.clone(), missed: missed.clone() };
        (Self { filter, from, frames: sender, queued, queue_bytes, missed }, inbox)
    }

    /// Queues the frame if it is wanted and there is room; a full queue marks the subscriber, which
    /// then gets nothing more.
    fn offer(&self, partition: Partition, event: &LiveEvent, frame: &Utf8Bytes) -> Offered {
        if self.missed.is_cancelled() || self.is_past(partition, event) || !self.filter.wants(event)
        {
            return Offered::Unwanted;
        }
        let size = frame.len();
        let fits = self.queued.fetch_add(size, Ordering::Relaxed) + size <= self.queue_bytes;
        if fits && self.frames.try_send(frame.clone()).is_ok() {
            return Offered::Queued;
        }
        self.missed.cancel();
        Offered::Missed
    }

    fn is_past(&self, partition: Partition, event: &LiveEvent) -> bool {
        let from = usize::try_from(partition).ok().and_then(|index| self.from.get(index));
        from.is_some_and(|from| event.offset < *from)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Offered {
    Unwanted,
    Queued,
    Missed,
}

/// What became of a delivery.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) queued: u64,
    pub(crate) missed: u64,
}

#[derive(Default)]
struct Subscribers {
    by_client: HashMap<ClientId, HashMap<u64, Subscriber>>,
    everybody: HashMap<u64, Subscriber>,
    next_id: u64,
}

/// The subscribers of this process.
#[derive(Default)]
pub(crate) struct Registry(RwLock<Subscribers>);

/// Ends the subscription when dropped.
pub(crate) struct Registration {
    registry: Arc<Registry>,
    audience: Audience,
    id: u64,
}

impl Registry {
    /// Adds a subscriber; it gets every event delivered from now on that is not below its floor.
    pub(crate) fn add(self: &Arc<Self>, subscriber: Subscriber) -> Registration {
        let mut subscribers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let id = subscribers.next_id;
        subscribers.next_id += 1;
        let audience = subscriber.filter.audience;
        match audience {
            Audience::Client(client) => {
                subscribers.by_client.entry(client).or_default().insert(id, subscriber);
            }
            Audience::Everybody => {
                subscribers.everybody.insert(id, subscriber);
            }
        }
        Registration { registry: self.clone(), audience, id }
    }

    /// Hands an event to everybody who wants it. Never waits.
    pub(crate) fn deliver(&self, partition: Partition, event: &LiveEvent) -> Delivered {
        let subscribers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let own = subscribers.by_client.get(&event.client);
        let mut interested = own
            .into_iter()
            .flat_map(HashMap::values)
            .chain(subscribers.everybody.values())
            .peekable();
        let mut delivered = Delivered::default();
        if interested.peek().is_none() {
            return delivered;
        }
        // One frame shared by all: cloning it counts a reference.
        let Ok(frame) = Utf8Bytes::try_from(event.json.clone()) else { return delivered };
        for subscriber in interested {
            match subscriber.offer(partition, event, &frame) {
                Offered::Queued => delivered.queued += 1,
                Offered::Missed => delivered.missed += 1,
                Offered::Unwanted => {}
            }
        }
        delivered
    }

    /// How many subscribers there are, and the bytes queued for them.
    pub(crate) fn load(&self) -> (usize, usize) {
        let subscribers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let own = subscribers.by_client.values().flat_map(HashMap::values);
        let all = own.chain(subscribers.everybody.values());
        all.fold((0, 0), |(count, bytes), subscriber| {
            (count + 1, bytes + subscriber.queued.load(Ordering::Relaxed))
        })
    }

    /// Marks every subscriber as having missed something: the log cannot give back what is gone.
    pub(crate) fn tell_gap(&self) {
        let subscribers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let own = subscribers.by_client.values().flat_map(HashMap::values);
        own.chain(subscribers.everybody.values()).for_each(|subscriber| subscriber.missed.cancel());
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut subscribers = self.registry.0.write().unwrap_or_else(PoisonError::into_inner);
        match self.audience {
            Audience::Everybody => {
                subscribers.everybody.remove(&self.id);
            }
            Audience::Client(client) => {
                if let Some(own) = subscribers.by_client.get_mut(&client) {
                    own.remove(&self.id);
                    if own.is_empty() {
                        subscribers.by_client.remove(&client);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::range::tests::event;

    fn subscribe(registry: &Arc<Registry>, client: i32, bytes: usize) -> (Registration, Inbox) {
        let filter = Filter::parse(Audience::Client(ClientId(client)), "").unwrap();
        let (subscriber, inbox) = Subscriber::new(filter, Floor::default(), bytes);
        (registry.add(subscriber), inbox)
    }

    #[test]
    fn an_event_reaches_its_tenant_and_nobody_else() {
        let registry = Arc::new(Registry::default());
        let (_mine, mut mine) = subscribe(&registry, 7, 1_000);
        let (_other, mut other) = subscribe(&registry, 8, 1_000);
        assert_eq!(registry.deliver(0, &event(1, 1)), Delivered { queued: 1, missed: 0 });
        assert!(mine.frames.try_recv().is_ok());
        assert!(other.frames.try_recv().is_err());
    }

    #[test]
    fn a_full_queue_marks_its_own_subscriber_alone() {
        let registry = Arc::new(Registry::default());
        let (_slow, slow) = subscribe(&registry, 7, 15);
        let (_quick, quick) = subscribe(&registry, 7, 1_000);
        registry.deliver(0, &event(1, 1));
        assert_eq!(registry.deliver(0, &event(2, 2)), Delivered { queued: 1, missed: 1 });
        assert!(slow.missed.is_cancelled() && !quick.missed.is_cancelled());
        assert_eq!(registry.deliver(0, &event(3, 3)), Delivered { queued: 1, missed: 0 });
    }

    #[test]
    fn what_was_logged_before_a_subscriber_came_is_not_shown_to_it() {
        let registry = Arc::new(Registry::default());
        let filter = Filter::parse(Audience::Client(ClientId(7)), "").unwrap();
        let (subscriber, mut inbox) = Subscriber::new(filter, Floor::from([0, 5]), 1_000);
        let _registration = registry.add(subscriber);
        for (partition, offset, shown) in [(1, 4, 0), (1, 5, 1), (0, 4, 1), (2, 0, 1)] {
            let delivered = registry.deliver(partition, &event(offset, 1));
            assert_eq!(delivered, Delivered { queued: shown, missed: 0 }, "{partition} {offset}");
        }
        assert_eq!(std::iter::from_fn(|| inbox.frames.try_recv().ok()).count(), 3);
    }

    #[test]
    fn a_dropped_registration_leaves_nothing_behind() {
        let registry = Arc::new(Registry::default());
        let (registration, _inbox) = subscribe(&registry, 7, 1_000);
        drop(registration);
        assert_eq!(registry.deliver(0, &event(1, 1)), Delivered::default());
        assert!(registry.0.read().unwrap().by_client.is_empty());
    }
}
