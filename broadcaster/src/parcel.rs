//! What a subscription is shown at once: events of one partition in offset order, and the place after
//! them; or, of several such, the newest of each device and type, and the place after all.
//!
//! Parcels of a group are shared by all its subscriptions, and so is what they look like on the wire:
//! it is encoded by whoever sends it first.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use pulsestream_shared::log::Partition;
use tokio::time::Instant;

use crate::cursor::Cursor;
use crate::range::LiveEvent;

/// Encoded forms kept of one parcel, and conflations that end with it: names of subscriptions are the
/// clients' own, and many of them must not make one parcel large.
const FORMS: usize = 4;

/// The form of a parcel on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Form {
    /// One frame of the framed WebSocket, holding the parcels from the one of that number to this one.
    Frame { sub: Arc<str>, from: u64 },
    /// A frame of the plain WebSocket for each event.
    Plain,
    /// Messages of server-sent events.
    Sse,
}

/// Events of one partition, and the place after them.
pub(crate) struct Parcel {
    /// The number of the hub's step it was cut from; 0 when it was read from the log.
    pub(crate) seq: u64,
    /// When the hub had it.
    pub(crate) at: Instant,
    pub(crate) partition: Partition,
    pub(crate) events: Vec<LiveEvent>,
    pub(crate) place: Arc<Cursor>,
    /// Something before `place` is gone for good.
    pub(crate) lost: bool,
    /// It stands in a group's queue as it is: every subscription there is shown the same.
    pub(crate) shared: bool,
    /// Of the newest of several parcels: how many events were left out for them.
    pub(crate) left_out: Option<usize>,
    forms: Mutex<Vec<(Form, Bytes)>>,
    /// The newest of the parcels from the one of that number to this one.
    conflated: Mutex<Vec<(u64, Arc<Parcel>)>>,
}

impl Parcel {
    pub(crate) fn new(
        (seq, at): (u64, Instant),
        partition: Partition,
        events: Vec<LiveEvent>,
        place: Arc<Cursor>,
    ) -> Self {
        let (lost, shared, left_out) = (false, false, None);
        let (forms, conflated) = (Mutex::default(), Mutex::default());
        Self { seq, at, partition, events, place, lost, shared, left_out, forms, conflated }
    }

    /// One for a group's queue.
    pub(crate) fn shared(self) -> Self {
        Self { shared: true, ..self }
    }

    /// The mark of a hole in a partition.
    pub(crate) fn lost(at: (u64, Instant), partition: Partition, place: Arc<Cursor>) -> Self {
        Self { lost: true, ..Self::new(at, partition, Vec::new(), place) }
    }

    /// The same step with these of its events, and another place after them.
    pub(crate) fn cut(&self, events: Vec<LiveEvent>, place: Arc<Cursor>) -> Self {
        let cut = Self::new((self.seq, self.at), self.partition, events, place);
        Self { lost: self.lost, ..cut }
    }

    /// These events are the newest of this parcel and others before it.
    pub(crate) fn newest(&self, events: Vec<LiveEvent>, left_out: usize) -> Self {
        let newest = self.cut(events, self.place.clone());
        Self { left_out: Some(left_out), ..newest }
    }

    /// The place after one of its events; `None` where there is none because a newer one of another
    /// device may still follow.
    pub(crate) fn place_after(&self, index: usize) -> Option<Cursor> {
        match self.events.get(index) {
            Some(event) if index + 1 < self.events.len() => {
                let place = || self.place.with(self.partition, event.offset + 1);
                self.left_out.is_none().then(place)
            }
            _ => Some(Cursor::clone(&self.place)),
        }
    }

    /// Bytes of its events.
    pub(crate) fn bytes(&self) -> usize {
        self.events.iter().map(|event| event.json.len()).sum()
    }

    /// The parcel in that form; made by `encode` the first time.
    pub(crate) fn encoded(&self, form: &Form, encode: impl FnOnce() -> Bytes) -> Bytes {
        let mut forms = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = forms.iter().find(|(known, _)| known == form) {
            return known.clone();
        }
        let bytes = encode();
        if forms.len() < FORMS {
            forms.push((form.clone(), bytes.clone()));
        }
        bytes
    }

    /// What these parcels look like, one after the other.
    pub(crate) fn in_a_row(parcels: &[Arc<Self>], encoded: impl Fn(&Self) -> Bytes) -> Bytes {
        match parcels {
            [parcel] => encoded(parcel),
            parcels => {
                let each: Vec<_> = parcels.iter().map(|parcel| encoded(parcel)).collect();
                each.concat().into()
            }
        }
    }

    /// The newest of the parcels from the one of number `from` to this one; made by `conflate` the first
    /// time.
    pub(crate) fn conflated(&self, from: u64, conflate: impl FnOnce() -> Self) -> Arc<Self> {
        let mut conflated = self.conflated.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = conflated.iter().find(|(known, _)| *known == from) {
            return known.clone();
        }
        let newest = Arc::new(conflate());
        if conflated.len() < FORMS {
            conflated.push((from, newest.clone()));
        }
        newest
    }
}
