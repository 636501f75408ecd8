//! Where a subscription begins, and what its client is told of the place it came back with. The verdict
//! is explicit: a place is gone on from without a hole, or it is not and the reason is told.

use pulsestream_shared::log::{Bounds, Offset};
use pulsestream_shared::problem::{Code, Problem};

use crate::catch_up::MOST_RECORDS;
use crate::cursor::{Cursor, CursorFault};
use crate::ends::Ends;
use crate::feed::Feed;
use crate::snapshot::Opening;

/// Where a client wants to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    Now,
    /// With the oldest event the log has.
    Earliest,
    /// With the first event after this cursor, if it is one.
    Cursor(Result<Cursor, CursorFault>),
}

impl From {
    /// Reads the text a client gave as cursor.
    pub(crate) fn cursor(text: &str) -> Self {
        match text {
            "earliest" => Self::Earliest,
            text => Self::Cursor(Cursor::open(text)),
        }
    }
}

/// Why a stream does not go on from a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// No cursor, or a damaged one.
    Malformed,
    /// A cursor of another version of this server.
    OtherVersion,
    /// The log is another one than that of the cursor.
    OtherEpoch,
    /// The log no longer holds what follows the cursor.
    BeyondRetention,
    /// More follows the cursor than is caught up with.
    Expired,
    /// The cursor lies beyond the end of the log.
    Ahead,
}

impl Lost {
    /// The word a client is told.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::OtherVersion => "other_version",
            Self::OtherEpoch => "other_epoch",
            Self::BeyondRetention => "beyond_retention",
            Self::Expired => "expired",
            Self::Ahead => "ahead",
        }
    }
}

/// What became of the place a client came back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// None was given.
    FromNow,
    /// Everything after it follows.
    Recovered,
    /// It cannot be gone on from; what follows begins now.
    Lost(Lost),
}

impl Verdict {
    /// Every one.
    pub(crate) const ALL: [Self; 8] = [
        Self::FromNow,
        Self::Recovered,
        Self::Lost(Lost::Malformed),
        Self::Lost(Lost::OtherVersion),
        Self::Lost(Lost::OtherEpoch),
        Self::Lost(Lost::BeyondRetention),
        Self::Lost(Lost::Expired),
        Self::Lost(Lost::Ahead),
    ];

    /// What clients see as `recovered`.
    pub(crate) const fn recovered(self) -> Option<bool> {
        match self {
            Self::FromNow => None,
            Self::Recovered => Some(true),
            Self::Lost(_) => Some(false),
        }
    }

    /// What clients see as `reason`.
    pub(crate) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Lost(lost) => Some(lost.word()),
            Self::FromNow | Self::Recovered => None,
        }
    }

    /// The value of a metric's label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::FromNow => "from_now",
            Self::Recovered => "recovered",
            Self::Lost(lost) => lost.word(),
        }
    }
}

/// Where a subscription begins, and with what.
pub(crate) struct Start {
    pub(crate) place: Cursor,
    pub(crate) verdict: Verdict,
    pub(crate) opening: Opening,
}

impl Start {
    pub(crate) fn at(place: Cursor, verdict: Verdict) -> Self {
        Self { place, verdict, opening: Opening::Place }
    }

    /// The cursor a client is told at once. Where values come first the cursor comes after them: who broke
    /// off before has nothing to go on from.
    pub(crate) fn cursor(&self) -> Option<String> {
        match self.opening {
            Opening::Values(_) => None,
            Opening::Place | Opening::Without(_) => Some(self.place.seal()),
        }
    }
}

/// Finds the place. The log is not asked about one that the ring holds: when everybody comes back at once, nobody
/// waits for it.
///
/// # Errors
/// 503 when the log must be asked and does not answer: a verdict is never guessed.
pub(crate) async fn judge(from: &From, feed: &Feed, ends: &Ends) -> Result<Start, Problem> {
    if let From::Cursor(Ok(place)) = from
        && is_held(place, feed, &feed.head().1)
    {
        return Ok(Start::at(place.clone(), Verdict::Recovered));
    }
    let bounds = ends.bounds().await;
    let head = feed.head().1;
    let Some(bounds) = bounds else {
        return without_bounds(from, &head).ok_or_else(|| Problem::from(Code::Unavailable));
    };
    let at = |next: Vec<Offset>| Cursor { epoch: head.epoch, next: next.into() };
    let now = at(bounds.iter().map(|bounds| bounds.next).collect());
    let asked = match from {
        From::Now => return Ok(Start::at(now, Verdict::FromNow)),
        From::Earliest => Ok(at(bounds.iter().map(|bounds| bounds.first).collect())),
        From::Cursor(asked) => asked.clone(),
    };
    let held = |place: &Cursor| feed.step_before(place).is_some();
    Ok(match asked.map_err(Lost::from).and_then(|place| weigh(place, &head, &bounds, held)) {
        Ok(place) => Start::at(place, Verdict::Recovered),
        Err(lost) => Start::at(now, Verdict::Lost(lost)),
    })
}

/// Everything after it is in the ring.
fn is_held(place: &Cursor, feed: &Feed, head: &Cursor) -> bool {
    is_of(place, head) && head.covers(place) && feed.step_before(place).is_some()
}

/// Both are places of the same log.
fn is_of(place: &Cursor, head: &Cursor) -> bool {
    place.epoch == head.epoch && place.next.len() == head.next.len()
}

/// The present needs no look into the log, nor what can be told from the cursor itself.
fn without_bounds(from: &From, head: &Cursor) -> Option<Start> {
    let verdict = match from {
        From::Now => Verdict::FromNow,
        From::Earliest => return None,
        From::Cursor(Ok(place)) if is_of(place, head) => return None,
        From::Cursor(Ok(_)) => Verdict::Lost(Lost::OtherEpoch),
        From::Cursor(Err(fault)) => Verdict::Lost(Lost::from(*fault)),
    };
    Some(Start::at(head.clone(), verdict))
}

pub(crate) fn weigh(
    place: Cursor,
    head: &Cursor,
    bounds: &[Bounds],
    held: impl FnOnce(&Cursor) -> bool,
) -> Result<Cursor, Lost> {
    if place.epoch != head.epoch || place.next.len() != bounds.len() {
        return Err(Lost::OtherEpoch);
    }
    let mut pairs = place.next.iter().zip(bounds);
    if pairs.clone().any(|(next, bounds)| *next > bounds.next) {
        return Err(Lost::Ahead);
    }
    if pairs.any(|(next, bounds)| *next < bounds.first) {
        return Err(Lost::BeyondRetention);
    }
    let behind: Offset = place.next.iter().zip(bounds).map(|(next, b)| b.next - next).sum();
    if behind > MOST_RECORDS && !held(&place) {
        return Err(Lost::Expired);
    }
    Ok(place)
}

impl std::convert::From<CursorFault> for Lost {
    fn from(fault: CursorFault) -> Self {
        match fault {
            CursorFault::Malformed => Self::Malformed,
            CursorFault::OtherVersion => Self::OtherVersion,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn place(epoch: u128, next: &[Offset]) -> Cursor {
        Cursor { epoch: Uuid::from_u128(epoch), next: next.into() }
    }

    #[test]
    fn a_place_is_gone_on_from_or_the_reason_is_told() {
        let head = place(1, &[90, 9]);
        let bounds = [Bounds { first: 50, next: 100 }, Bounds { first: 0, next: 10 }];
        let weighed = |place: Cursor| weigh(place, &head, &bounds, |_| false).map(drop);
        assert_eq!(weighed(place(1, &[50, 0])), Ok(()));
        assert_eq!(weighed(place(1, &[100, 10])), Ok(()), "ahead of the hub, inside the log");
        assert_eq!(weighed(place(2, &[60, 0])), Err(Lost::OtherEpoch));
        assert_eq!(weighed(place(1, &[60])), Err(Lost::OtherEpoch));
        assert_eq!(weighed(place(1, &[49, 10])), Err(Lost::BeyondRetention));
        assert_eq!(weighed(place(1, &[60, 11])), Err(Lost::Ahead));
    }

    #[test]
    fn more_than_is_caught_up_with_has_expired_unless_the_ring_holds_it() {
        let head = place(1, &[0]);
        let bounds = [Bounds { first: 0, next: MOST_RECORDS + 1 }];
        let weighed = |held| weigh(place(1, &[0]), &head, &bounds, |_| held).map(drop);
        assert_eq!((weighed(false), weighed(true)), (Err(Lost::Expired), Ok(())));
    }
}
