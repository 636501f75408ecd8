//! Bytes behind their length, of which records are made in memory and in files: `u32` length (`u32::MAX` for
//! none), bytes; little-endian.

use bytes::BytesMut;

const NONE: u32 = u32::MAX;

pub(super) fn pack_bytes(buffer: &mut BytesMut, bytes: Option<&[u8]>) {
    let length = bytes
        .map_or(NONE, |bytes| u32::try_from(bytes.len()).expect("a record is smaller than 2 GiB"));
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(bytes.unwrap_or_default());
}

/// Takes back what [`pack_bytes`] gave, from the front; the outer `None` when it is not all there.
pub(super) fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
    if length == NONE { Some(None) } else { take(rest, length as usize).map(Some) }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}
