//! In what frames a WebSocket is told what it is shown.

use std::sync::Arc;

use axum::extract::ws::Utf8Bytes;

use crate::cursor::Cursor;
use crate::delivery::Outgoing;
use crate::frames;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Each event is one frame, and nothing else is said.
    Plain,
    /// Objects with a type, of a subscription of that name.
    Framed(Arc<str>),
}

impl Dialect {
    /// The frames of what is to be sent, `place` being that after it; `None` when there are no words for it.
    pub(crate) fn frames(
        &self,
        outgoing: &Outgoing,
        place: Option<&Arc<Cursor>>,
    ) -> Option<Vec<Utf8Bytes>> {
        match (self, outgoing) {
            (Self::Plain, Outgoing::Events(parcels)) => {
                let events = parcels.iter().flat_map(|parcel| &parcel.events);
                // An event is JSON on one line, as the log has it; every socket shares its bytes.
                let frame = |json| Utf8Bytes::try_from(json).ok();
                Some(events.filter_map(|event| frame(event.json.clone())).collect())
            }
            (Self::Plain, Outgoing::Values(..) | Outgoing::Gap(_)) => None,
            (Self::Framed(sub), outgoing) => Some(vec![match outgoing {
                Outgoing::Events(parcels) => frames::events(sub, parcels),
                Outgoing::Values(values, place) => {
                    frames::values(sub, values, place.as_deref()).into()
                }
                Outgoing::Gap(reason) => frames::gap(sub, *reason, place).into(),
            }]),
        }
    }
}
