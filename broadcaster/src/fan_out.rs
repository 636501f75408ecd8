//! WebSockets that are shown the same at the same time: one task writes to all of them.
//!
//! A socket joins once it has everything the others have. From then on nothing of its own happens for an
//! event but the write: no wake, no look into a queue. One that does not take all it is given falls out, and
//! goes on alone from the place up to which it has everything, so a slow client delays nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::task::{unconstrained, yield_now};
use tokio::time::{Instant, sleep_until};

use crate::cursor::Cursor;
use crate::delivery::{Delivery, Stand};
use crate::dialect::Dialect;
use crate::filter::Filter;
use crate::group::Bell;
use crate::metrics::Sent;
use crate::wire::{Offered, Outlet};
use crate::wish::Mode;

/// Sockets of one fan-out; more make another, beside it on another thread. It is locked while it writes to
/// all of them, some 2 us each.
const LISTENERS: usize = 256;

/// A socket's subscription as its fan-out sees it.
pub(crate) struct Listener {
    pub(crate) outlet: Arc<dyn Outlet>,
    pub(crate) dialect: Dialect,
    /// Rings when it fell out.
    pub(crate) bell: Bell,
}

/// How a socket goes on that fell out or left.
pub(crate) enum Fallen {
    /// Alone, from there.
    At(Stand),
    /// Not at all: events are missing, and it cannot be told.
    Missed,
    /// Not at all: nobody is there any more.
    Gone,
}

/// Every fan-out of this process.
pub(crate) struct FanOuts {
    all: Mutex<ByWish>,
    pub(crate) sent: Sent,
}

type ByWish = HashMap<(Filter, Mode), Vec<Arc<FanOut>>>;

struct FanOut {
    key: (Filter, Mode),
    bell: Bell,
    sent: Sent,
    inner: Mutex<Inner>,
}

struct Inner {
    /// What all of them are shown; `None` when it is over.
    delivery: Option<Box<Delivery>>,
    listeners: HashMap<u64, Listening>,
    next_id: u64,
    /// How often all were written to.
    turns: u64,
    /// Those who fell out and have not asked yet.
    fallen: HashMap<u64, Fallen>,
    /// Who came while something was due: it may try again after that.
    early: Vec<Bell>,
}

struct Listening {
    listener: Listener,
    /// After that turn it was told this place, which the others need not have been.
    told: (u64, Option<Arc<Cursor>>),
}

/// A socket's part in a fan-out; it leaves when this is dropped.
pub(crate) struct Joined {
    fan_out: Arc<FanOut>,
    id: u64,
}

impl FanOuts {
    /// None yet; what is sent is counted.
    pub(crate) fn new(sent: Sent) -> Self {
        Self { all: Mutex::default(), sent }
    }

    /// Lets a subscription join those it stands with; gives it back where it stands alone.
    pub(crate) fn join(
        self: &Arc<Self>,
        mut delivery: Box<Delivery>,
        listener: Listener,
    ) -> Result<Joined, Box<Delivery>> {
        if !delivery.may_be_shared() || !delivery.subscription.has_company() {
            return Err(delivery);
        }
        let key = (delivery.subscription.filter().clone(), delivery.mode);
        for fan_out in self.all().get(&key).cloned().unwrap_or_default() {
            let mut inner = fan_out.inner();
            match inner.look(&delivery) {
                Look::NoRoom => {}
                Look::Elsewhere => return Err(delivery),
                Look::Early => {
                    inner.early.push(listener.bell);
                    return Err(delivery);
                }
                Look::Together => {
                    let id = inner.add(listener, delivery.place().cloned());
                    drop(inner);
                    return Ok(Joined { fan_out, id });
                }
            }
        }
        let told = delivery.place().cloned();
        let bell = Bell::default();
        delivery.subscription.rehang(bell.clone());
        let mut inner = Inner::new(delivery);
        let id = inner.add(listener, told);
        let (sent, inner) = (self.sent.clone(), Mutex::new(inner));
        let fan_out = Arc::new(FanOut { key: key.clone(), bell, sent, inner });
        self.all().entry(key).or_default().push(fan_out.clone());
        // Without a bound on its steps: a write to a socket counts as one, and what is not written because
        // the bound was met would look like a client that does not read.
        tokio::spawn(unconstrained(Running(fan_out.clone()).run(self.clone())));
        Ok(Joined { fan_out, id })
    }

    /// How many subscriptions have joined, and in how many fan-outs.
    pub(crate) fn load(&self) -> (usize, usize) {
        let all: Vec<_> = self.all().values().flatten().cloned().collect();
        (all.iter().map(|fan_out| fan_out.inner().listeners.len()).sum(), all.len())
    }

    /// Ends a fan-out to which nobody listens; false while somebody does.
    fn end(&self, fan_out: &Arc<FanOut>) -> bool {
        let mut all = self.all();
        let mut inner = fan_out.inner();
        if !inner.listeners.is_empty() {
            return false;
        }
        inner.delivery = None;
        if let Some(alike) = all.get_mut(&fan_out.key) {
            alike.retain(|other| !Arc::ptr_eq(other, fan_out));
            if alike.is_empty() {
                all.remove(&fan_out.key);
            }
        }
        true
    }

    fn all(&self) -> MutexGuard<'_, ByWish> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fan-out whose task runs. Whoever listens when that ends is let go: nobody would write to it.
struct Running(Arc<FanOut>);

impl Running {
    async fn run(self, all: Arc<FanOuts>) {
        let Self(fan_out) = &self;
        loop {
            let nobody = fan_out.inner().listeners.is_empty();
            if nobody && all.end(fan_out) {
                return;
            }
            if fan_out.inner().turn(&fan_out.sent) {
                yield_now().await;
                continue;
            }
            let due = fan_out.inner().next_due();
            match due {
                // What comes until its window ends changes nothing: a burst need not wake this for each event.
                Some(due) => sleep_until(due).await,
                None => fan_out.bell.notified().await,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut guard = self.0.inner();
        let inner = &mut *guard;
        inner.delivery = None;
        for (id, Listening { listener, .. }) in inner.listeners.drain() {
            inner.fallen.insert(id, Fallen::Gone);
            listener.bell.notify_one();
        }
    }
}

impl FanOut {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a subscription stands to a fan-out.
enum Look {
    Together,
    NoRoom,
    Elsewhere,
    /// The fan-out has not sent yet what is due.
    Early,
}

impl Inner {
    fn new(delivery: Box<Delivery>) -> Self {
        let (listeners, fallen, early) = (HashMap::new(), HashMap::new(), Vec::new());
        Self { delivery: Some(delivery), listeners, next_id: 0, turns: 0, fallen, early }
    }

    fn look(&self, other: &Delivery) -> Look {
        match &self.delivery {
            Some(delivery) if self.listeners.len() < LISTENERS => {
                if delivery.due().is_some_and(|due| due <= Instant::now()) {
                    Look::Early
                } else if delivery.stands_with(other) {
                    Look::Together
                } else {
                    Look::Elsewhere
                }
            }
            _ => Look::NoRoom,
        }
    }

    fn add(&mut self, listener: Listener, told: Option<Arc<Cursor>>) -> u64 {
        self.next_id += 1;
        self.listeners.insert(self.next_id, Listening { listener, told: (self.turns, told) });
        self.next_id
    }

    fn turn(&mut self, sent: &Sent) -> bool {
        let Some(delivery) = &mut self.delivery else { return false };
        let before = delivery.stand();
        let Some(outgoing) = delivery.pull(Instant::now()) else { return false };
        self.turns += 1;
        let mut made: Vec<(Dialect, Option<Bytes>)> = Vec::new();
        let (mut reached, fallen) = (0, &mut self.fallen);
        self.listeners.retain(|id, Listening { listener, .. }| {
            let known = made.iter().position(|(dialect, _)| *dialect == listener.dialect);
            let at = known.unwrap_or_else(|| {
                let frames = listener.dialect.frames(&outgoing, delivery.place());
                made.push((listener.dialect.clone(), frames));
                made.len() - 1
            });
            let frames = made.get(at).and_then(|(_, frames)| frames.as_ref());
            let offered = frames.map(|frames| listener.outlet.offer(frames));
            reached += u64::from(matches!(offered, Some(Offered::Written | Offered::Kept)));
            let fell = match offered {
                Some(Offered::Written) => return true,
                Some(Offered::Kept) => Fallen::At(delivery.stand()),
                Some(Offered::Refused) => Fallen::At(before.clone()),
                Some(Offered::Gone) => Fallen::Gone,
                None => Fallen::Missed,
            };
            fallen.insert(*id, fell);
            listener.bell.notify_one();
            false
        });
        sent.count(&outgoing, reached);
        true
    }

    /// Tells one of them the place, when it moved since that was told one and nothing is to be sent.
    fn tell_moved(&mut self, id: u64) {
        let Some(delivery) = &mut self.delivery else { return };
        let Some(listening) = self.listeners.get_mut(&id) else { return };
        delivery.subscription.settle();
        let place = delivery.subscription.place();
        let told = match &listening.told {
            (turn, told) if *turn == self.turns => told.as_ref(),
            _ => delivery.place(),
        };
        if told == Some(place) {
            return;
        }
        let Some(frame) = listening.listener.dialect.moved(place) else { return };
        let fell = match listening.listener.outlet.offer(&frame) {
            // Something is being written: it is told next time.
            Offered::Refused => return,
            Offered::Written => {
                listening.told = (self.turns, Some(place.clone()));
                return;
            }
            Offered::Kept => Fallen::At(delivery.stand()),
            Offered::Gone => Fallen::Gone,
        };
        listening.listener.bell.notify_one();
        self.listeners.remove(&id);
        self.fallen.insert(id, fell);
    }

    /// When something is to be sent. Nothing is now, so who came early may try again.
    fn next_due(&mut self) -> Option<Instant> {
        self.early.drain(..).for_each(|bell| bell.notify_one());
        self.delivery.as_ref()?.due()
    }
}

impl Joined {
    /// What it asks for.
    pub(crate) fn filter(&self) -> &Filter {
        &self.fan_out.key.0
    }

    /// How the socket goes on when it fell out; it is told once.
    pub(crate) fn fallen(&self) -> Option<Fallen> {
        self.fan_out.inner().fallen.remove(&self.id)
    }

    /// Takes the socket out.
    pub(crate) fn leave(&self) -> Fallen {
        let mut inner = self.fan_out.inner();
        if let Some(fallen) = inner.fallen.remove(&self.id) {
            return fallen;
        }
        inner.listeners.remove(&self.id);
        let stand = inner.delivery.as_ref().map(|delivery| delivery.stand());
        stand.map_or(Fallen::Gone, Fallen::At)
    }

    /// Tells the client the place, when it moved since it was told one and nothing is to be sent.
    pub(crate) fn tell_moved(&self) {
        self.fan_out.inner().tell_moved(self.id);
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut inner = self.fan_out.inner();
        inner.listeners.remove(&self.id);
        inner.fallen.remove(&self.id);
        if inner.listeners.is_empty() {
            self.fan_out.bell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
