//! The cursor: a subscriber's place in the live stream, the epoch of a log and the next offset of each
//! of its partitions. Opaque to clients.
//!
//! ```text
//! base64url without padding of
//! version u8 (1) | epoch 16 | one varint (LEB128) a partition, by number | check 8
//! ```
//!
//! The check is the first half of a 128-bit hash over everything before it. In every version it is the
//! last 8 bytes, so that a damaged cursor and one of another version are told apart. It finds mistakes,
//! not forgers: whoever makes up a cursor sees another part of what is their own, because whose events
//! are shown is the API key's matter alone.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use pulsestream_shared::log::{Offset, Partition};
use uuid::Uuid;

const VERSION: u8 = 1;
const CHECK_BYTES: usize = 8;
/// A longer text is no cursor of ours: one of 1,000 partitions is shorter.
const MOST_CHARS: usize = 16 * 1_024;

/// A place in the stream: everything below it was shown, or was not asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) epoch: Uuid,
    /// The next offset of each partition, by number.
    pub(crate) next: Box<[Offset]>,
}

/// Why a text is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CursorFault {
    /// Never a cursor, or a changed one.
    Malformed,
    /// A cursor of a version this one does not know.
    OtherVersion,
}

impl Cursor {
    /// The text a client gets.
    pub(crate) fn seal(&self) -> String {
        let mut bytes = Vec::with_capacity(1 + 16 + 6 * self.next.len() + CHECK_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(self.epoch.as_bytes());
        self.next.iter().for_each(|next| push_varint(&mut bytes, next.max(&0).unsigned_abs()));
        let check = check(&bytes);
        bytes.extend_from_slice(&check);
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`seal`](Self::seal) wrote.
    ///
    /// # Errors
    /// [`CursorFault`], whatever the text.
    pub(crate) fn open(text: &str) -> Result<Self, CursorFault> {
        let bytes = Some(text)
            .filter(|text| text.len() <= MOST_CHARS)
            .and_then(|text| BASE64_URL_SAFE_NO_PAD.decode(text).ok())
            .ok_or(CursorFault::Malformed)?;
        let (body, told) = bytes.split_last_chunk().ok_or(CursorFault::Malformed)?;
        let (version, body_after) = body.split_first().ok_or(CursorFault::Malformed)?;
        if *told != check(body) {
            return Err(CursorFault::Malformed);
        }
        if *version != VERSION {
            return Err(CursorFault::OtherVersion);
        }
        Self::from_body(body_after).ok_or(CursorFault::Malformed)
    }

    fn from_body(body: &[u8]) -> Option<Self> {
        let (epoch, mut rest) = body.split_first_chunk()?;
        let mut next = Vec::new();
        while !rest.is_empty() {
            next.push(Offset::try_from(take_varint(&mut rest)?).ok()?);
        }
        Some(Self { epoch: Uuid::from_bytes(*epoch), next: next.into() })
    }

    /// The next offset of a partition; 0 for one this log does not have.
    pub(crate) fn at(&self, partition: Partition) -> Offset {
        index(partition).and_then(|index| self.next.get(index)).copied().unwrap_or(0)
    }

    /// The same place but for one partition.
    pub(crate) fn with(&self, partition: Partition, next: Offset) -> Self {
        let mut moved = self.clone();
        if let Some(place) = index(partition).and_then(|index| moved.next.get_mut(index)) {
            *place = next;
        }
        moved
    }

    /// The later of both in every partition. Both are places of one log.
    pub(crate) fn later(&self, other: &Self) -> Self {
        let next = self.next.iter().zip(&other.next).map(|(a, b)| *a.max(b)).collect();
        Self { epoch: self.epoch, next }
    }

    /// True when this place is that one or later in every partition.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.next.iter().zip(&other.next).all(|(a, b)| a >= b)
    }
}

fn index(partition: Partition) -> Option<usize> {
    usize::try_from(partition).ok()
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let [a, b, c, d, e, f, g, h, ..] = xxhash_rust::xxh3::xxh3_128(bytes).to_be_bytes();
    [a, b, c, d, e, f, g, h]
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while let rest @ 1.. = number >> 7 {
        out.push((number & 0x7f) as u8 | 0x80);
        number = rest;
    }
    out.push((number & 0x7f) as u8);
}

/// The shortest form alone: one place has one text.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        number |= part.checked_shl(shift).filter(|shifted| shifted >> shift == part)?;
        if byte & 0x80 == 0 {
            return (shift == 0 || part != 0).then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cursors() -> impl Strategy<Value = Cursor> {
        (any::<u128>(), prop::collection::vec(0..=Offset::MAX, 0..40))
            .prop_map(|(epoch, next)| Cursor { epoch: Uuid::from_u128(epoch), next: next.into() })
    }

    /// Bytes with a check that fits them.
    fn checked(body: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode([body, &check(body)[..]].concat())
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back_as_it_was(cursor in cursors()) {
            prop_assert_eq!(Cursor::open(&cursor.seal()), Ok(cursor));
        }

        #[test]
        fn a_changed_cursor_is_malformed(
            cursor in cursors(),
            place: prop::sample::Index,
            with in "[A-Za-z0-9_-]{0,2}",
        ) {
            let text = cursor.seal();
            let (before, rest) = text.split_at(place.index(text.len()));
            let changed = [before, with.as_str(), rest.split_at(1).1].concat();
            prop_assume!(changed != text);
            prop_assert_eq!(Cursor::open(&changed), Err(CursorFault::Malformed));
            prop_assert_eq!(Cursor::open(before), Err(CursorFault::Malformed));
        }

        #[test]
        fn what_was_never_a_cursor_is_malformed(text: String, bytes: Vec<u8>) {
            prop_assert_eq!(Cursor::open(&text), Err(CursorFault::Malformed));
            let encoded = BASE64_URL_SAFE_NO_PAD.encode(bytes);
            prop_assert_eq!(Cursor::open(&encoded), Err(CursorFault::Malformed));
        }

        #[test]
        fn whatever_has_a_good_check_is_read_to_the_end_or_refused(
            epoch: u128,
            offsets in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let body = [&[VERSION][..], &epoch.to_be_bytes()[..], &offsets[..]].concat();
            if let Ok(cursor) = Cursor::open(&checked(&body)) {
                prop_assert!(cursor.next.iter().all(|next| *next >= 0));
                prop_assert_eq!(cursor.seal(), checked(&body));
            }
        }

        #[test]
        fn the_later_of_two_places_covers_both(
            (a, b) in (0..20_usize).prop_flat_map(|count| {
                let place = || prop::collection::vec(0..9_i64, count);
                (place(), place())
            }),
        ) {
            let place = |next: Vec<Offset>| Cursor { epoch: Uuid::nil(), next: next.into() };
            let (a, b) = (place(a), place(b));
            let later = a.later(&b);
            prop_assert!(later.covers(&a) && later.covers(&b));
            prop_assert_eq!(a.covers(&b), later == a);
        }
    }

    #[test]
    fn a_cursor_of_another_version_is_told_from_a_damaged_one() {
        let of_the_future = checked(&[2, 1, 2, 3]);
        assert_eq!(Cursor::open(&of_the_future), Err(CursorFault::OtherVersion));
        let damaged = of_the_future.replacen('A', "B", 1);
        assert_eq!(Cursor::open(&damaged), Err(CursorFault::Malformed));
    }

    #[test]
    fn one_partition_moves_and_an_unknown_one_does_not() {
        let place = Cursor { epoch: Uuid::nil(), next: [4, 9].into() };
        assert_eq!(*place.with(1, 11).next, [4, 11]);
        assert_eq!(place.with(2, 11), place);
        assert_eq!((place.at(1), place.at(2), place.at(-1)), (9, 0, 0));
    }
}
