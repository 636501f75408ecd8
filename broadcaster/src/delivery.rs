//! When a subscription's events are sent, and which: each at once, all with one write a window, or the
//! newest of each device and type with one write a window.
//!
//! Windows of equal length end together, whoever asked for them and when: so their frames hold the same
//! and are encoded once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::conflate::conflate;
use crate::cursor::Cursor;
use crate::group::Bell;
use crate::parcel::Parcel;
use crate::snapshot::Values;
use crate::subscription::{self, Gap, Pulled, Subscription};
use crate::wish::Mode;

/// Bytes of events after which a write takes no more.
const MOST_BYTES: usize = 128 * 1_024;
/// Bytes of events looked through for the newest of one write. The more, the less is sent to a slow client,
/// and the longer others on its thread wait.
const MOST_LOOKED_THROUGH: usize = 512 * 1_024;

/// What is to be sent now.
pub(crate) enum Outgoing {
    /// With one write; never empty.
    Events(Vec<Arc<Parcel>>),
    /// Newest values the store has, as the JSON of their events, and after the last of them the place.
    Values(Vec<Bytes>, Option<Arc<Cursor>>),
    /// Events before the subscription's place will not come.
    Gap(Gap),
}

/// A subscription and its rhythm.
pub(crate) struct Delivery {
    pub(crate) subscription: Subscription,
    pub(crate) mode: Mode,
    begun_at: Instant,
    /// Sent first.
    values: Option<Values>,
    /// Found together with events that are sent first.
    gap: Option<Gap>,
    /// The place the client was told last; `None` until it has the values that come first.
    told: Option<Arc<Cursor>>,
}

/// Where a delivery stands.
#[derive(Clone)]
pub(crate) struct Stand {
    subscription: subscription::Stand,
    mode: Mode,
    begun_at: Instant,
    told: Option<Arc<Cursor>>,
}

impl Delivery {
    /// `begun_at`: the moment from which windows are counted.
    pub(crate) fn new(subscription: Subscription, mode: Mode, begun_at: Instant) -> Self {
        let subscription = match mode {
            Mode::Latest(_) => subscription.patient(),
            Mode::Live | Mode::Window(_) => subscription,
        };
        let told = Some(subscription.place().clone());
        Self { subscription, mode, begun_at, values: None, gap: None, told }
    }

    /// The same for a client that is sent these values first.
    pub(crate) fn after(self, values: Values) -> Self {
        Self { values: Some(values), told: None, ..self }
    }

    /// One that goes on from there.
    pub(crate) fn at(stand: Stand, bell: Bell) -> Self {
        let Stand { subscription, mode, begun_at, told } = stand;
        let subscription = Subscription::at(subscription, bell);
        Self { subscription, mode, begun_at, values: None, gap: None, told }
    }

    pub(crate) fn stand(&self) -> Stand {
        let (subscription, told) = (self.subscription.stand(), self.told.clone());
        Stand { subscription, mode: self.mode, begun_at: self.begun_at, told }
    }

    /// True when what is sent next depends on nothing of its own.
    pub(crate) fn may_be_shared(&self) -> bool {
        self.values.is_none() && self.gap.is_none() && self.subscription.may_be_shared()
    }

    /// True when both send the same from now on.
    pub(crate) fn stands_with(&self, other: &Self) -> bool {
        self.may_be_shared()
            && other.may_be_shared()
            && self.mode == other.mode
            && self.subscription.stands_with(&other.subscription)
    }

    /// When something that waits is to be sent; `None` while nothing waits.
    pub(crate) fn due(&self) -> Option<Instant> {
        if self.values.is_some() {
            return Some(self.begun_at);
        }
        let came_at = self.subscription.waiting_since()?;
        Some(match self.window() {
            None => came_at,
            Some(window) => self.last_end(came_at, window) + window,
        })
    }

    /// What is to be sent now; `None` when nothing is.
    pub(crate) fn pull(&mut self, now: Instant) -> Option<Outgoing> {
        if let Some(values) = self.values.take() {
            return Some(self.send_values(values));
        }
        if let Some(gap) = self.gap.take() {
            return Some(self.tell_gap(gap));
        }
        let parcels = match self.gather(now) {
            Ok(parcels) => parcels,
            Err(gap) => return Some(self.tell_gap(gap)),
        };
        self.told = Some(parcels.last()?.place.clone());
        Some(Outgoing::Events(match self.mode {
            Mode::Live | Mode::Window(_) => parcels,
            Mode::Latest(_) => conflate(&parcels).into_iter().collect(),
        }))
    }

    /// What one write takes in; a gap when that is all there is.
    fn gather(&mut self, now: Instant) -> Result<Vec<Arc<Parcel>>, Gap> {
        let before = self.window().map(|window| self.last_end(now, window));
        let most_bytes = match self.mode {
            // Each parcel is a write: what is sent to many is then the same.
            Mode::Live => 1,
            Mode::Window(window) if window.is_zero() => 1,
            Mode::Window(_) => MOST_BYTES,
            Mode::Latest(_) => MOST_LOOKED_THROUGH,
        };
        let (mut parcels, mut bytes) = (Vec::new(), 0);
        while bytes < most_bytes {
            match self.subscription.pull(before) {
                None => break,
                Some(Pulled::Gap(gap)) if parcels.is_empty() => return Err(gap),
                Some(Pulled::Gap(gap)) => {
                    self.gap = Some(gap);
                    break;
                }
                Some(Pulled::Events(parcel)) => {
                    bytes += parcel.bytes();
                    parcels.push(parcel);
                }
            }
        }
        Ok(parcels)
    }

    fn send_values(&mut self, mut values: Values) -> Outgoing {
        let next = values.next(MOST_BYTES);
        if values.is_empty() {
            self.told = Some(self.subscription.place().clone());
        } else {
            self.values = Some(values);
        }
        Outgoing::Values(next, self.told.clone())
    }

    /// The place, when it moved since the client was told one and nothing is to be sent.
    pub(crate) fn moved(&mut self) -> Option<Arc<Cursor>> {
        if self.values.is_some() {
            return None;
        }
        self.subscription.settle();
        let place = self.subscription.place();
        if self.told.as_ref() == Some(place) || self.gap.is_some() {
            return None;
        }
        self.told = Some(place.clone());
        self.told.clone()
    }

    /// The place up to which the client has everything; `None` while it does not have the values that come
    /// first.
    pub(crate) fn place(&self) -> Option<&Arc<Cursor>> {
        self.told.as_ref()
    }

    fn tell_gap(&mut self, gap: Gap) -> Outgoing {
        self.told = Some(self.subscription.place().clone());
        Outgoing::Gap(gap)
    }

    fn window(&self) -> Option<Duration> {
        match self.mode {
            Mode::Window(window) | Mode::Latest(window) if !window.is_zero() => Some(window),
            Mode::Window(_) | Mode::Latest(_) | Mode::Live => None,
        }
    }

    /// When the last window at that moment ended.
    fn last_end(&self, now: Instant, window: Duration) -> Instant {
        let since = now.saturating_duration_since(self.begun_at).as_micros();
        let into = since % window.as_micros().max(1);
        now - Duration::from_micros(u64::try_from(into).unwrap_or(0))
    }
}
