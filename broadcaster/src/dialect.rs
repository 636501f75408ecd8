//! In what frames a WebSocket is told what it is shown.

use std::sync::Arc;

use bytes::Bytes;

use crate::cursor::Cursor;
use crate::delivery::Outgoing;
use crate::frame::{self, push_text};
use crate::frames;
use crate::parcel::{Form, Parcel};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Each event is one frame, and nothing else is said.
    Plain,
    /// Objects with a type, of a subscription of that name.
    Framed(Arc<str>),
}

impl Dialect {
    /// The encoded frames of what is to be sent, `place` being that after it; `None` when there are no words
    /// for it.
    pub(crate) fn frames(&self, outgoing: &Outgoing, place: Option<&Arc<Cursor>>) -> Option<Bytes> {
        match (self, outgoing) {
            (Self::Plain, Outgoing::Events(parcels)) => Some(Parcel::in_a_row(parcels, plain)),
            (Self::Plain, Outgoing::Values(..) | Outgoing::Gap(_)) => None,
            (Self::Framed(sub), outgoing) => Some(match outgoing {
                Outgoing::Events(parcels) => frames::events(sub, parcels),
                Outgoing::Values(values, place) => {
                    frame::text(&frames::values(sub, values, place.as_deref()))
                }
                Outgoing::Gap(gap) => frame::text(&frames::gap(sub, *gap, place)),
            }),
        }
    }

    /// The encoded frame that tells a place alone, if there is one.
    pub(crate) fn moved(&self, place: &Cursor) -> Option<Bytes> {
        match self {
            Self::Plain => None,
            Self::Framed(sub) => Some(frame::text(&frames::moved(sub, place))),
        }
    }
}

/// A frame for each of the parcel's events, encoded once for all who are shown it.
fn plain(parcel: &Parcel) -> Bytes {
    parcel.encoded(&Form::Plain, || {
        let mut frames = Vec::with_capacity(parcel.bytes() + parcel.events.len() * 10);
        // An event is JSON on one line, as the log has it.
        let texts = parcel.events.iter().filter_map(|event| std::str::from_utf8(&event.json).ok());
        texts.for_each(|text| push_text(&mut frames, text));
        frames.into()
    })
}
