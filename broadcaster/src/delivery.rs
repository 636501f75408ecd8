//! When a subscription's events are sent: at once, or with one write a window.
//!
//! Windows of equal length end together, whoever asked for them and when: so their frames hold the same
//! and are encoded once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cursor::Cursor;
use crate::parcel::Parcel;
use crate::subscription::{GapReason, Pulled, Subscription};
use crate::wish::Mode;

/// Bytes of events after which a write takes no more.
const MOST_BYTES: usize = 128 * 1_024;

/// What is to be sent now.
pub(crate) enum Outgoing {
    /// With one write; never empty.
    Events(Vec<Arc<Parcel>>),
    /// Events before the subscription's place will not come.
    Gap(GapReason),
}

/// A subscription and its rhythm.
pub(crate) struct Delivery {
    pub(crate) subscription: Subscription,
    mode: Mode,
    begun_at: Instant,
    /// Found together with events that are sent first.
    gap: Option<GapReason>,
    /// The place the client was told last.
    told: Arc<Cursor>,
}

impl Delivery {
    /// `begun_at`: the moment from which windows are counted.
    pub(crate) fn new(subscription: Subscription, mode: Mode, begun_at: Instant) -> Self {
        let told = subscription.place().clone();
        Self { subscription, mode, begun_at, gap: None, told }
    }

    /// When something that waits is to be sent; `None` while nothing waits.
    pub(crate) fn due(&self) -> Option<Instant> {
        let came_at = self.subscription.waiting_since()?;
        Some(match self.window() {
            None => came_at,
            Some(window) => self.last_end(came_at, window) + window,
        })
    }

    /// What is to be sent now; `None` when nothing is.
    pub(crate) fn pull(&mut self, now: Instant) -> Option<Outgoing> {
        if let Some(reason) = self.gap.take() {
            return Some(self.tell_gap(reason));
        }
        let before = self.window().map(|window| self.last_end(now, window));
        let (mut parcels, mut bytes) = (Vec::new(), 0);
        while bytes < MOST_BYTES {
            match self.subscription.pull(before) {
                None => break,
                Some(Pulled::Gap(reason)) if parcels.is_empty() => {
                    return Some(self.tell_gap(reason));
                }
                Some(Pulled::Gap(reason)) => {
                    self.gap = Some(reason);
                    break;
                }
                Some(Pulled::Events(parcel)) => {
                    bytes += parcel.bytes();
                    parcels.push(parcel);
                }
            }
            // Live, each parcel is a write: what is sent to many is then the same.
            if before.is_none() {
                break;
            }
        }
        self.told = parcels.last()?.place.clone();
        Some(Outgoing::Events(parcels))
    }

    /// The place, when it moved since the client was told one and nothing is to be sent.
    pub(crate) fn moved(&mut self) -> Option<Arc<Cursor>> {
        self.subscription.settle();
        let place = self.subscription.place();
        if *place == self.told || self.gap.is_some() {
            return None;
        }
        self.told = place.clone();
        Some(place.clone())
    }

    /// The place up to which the client has everything.
    pub(crate) fn place(&self) -> &Arc<Cursor> {
        &self.told
    }

    fn tell_gap(&mut self, reason: GapReason) -> Outgoing {
        self.told = self.subscription.place().clone();
        Outgoing::Gap(reason)
    }

    fn window(&self) -> Option<Duration> {
        match self.mode {
            Mode::Window(window) if !window.is_zero() => Some(window),
            Mode::Window(_) | Mode::Live => None,
        }
    }

    /// When the last window at that moment ended.
    fn last_end(&self, now: Instant, window: Duration) -> Instant {
        let since = now.saturating_duration_since(self.begun_at).as_micros();
        let into = since % window.as_micros().max(1);
        now - Duration::from_micros(u64::try_from(into).unwrap_or(0))
    }
}
