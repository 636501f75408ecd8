//! The headers of a record, in one allocation.
//!
//! A record carries two to sixteen headers; a vector of pairs would cost two allocations each on the
//! busiest path of the consumer. Layout: per header `u32` name length, name, `u32` value length
//! (`u32::MAX` for a null value), value; little-endian.

use std::fmt;

use bytes::{Bytes, BytesMut};

const NULL: u32 = u32::MAX;

/// Names and values of a record's headers, in the order they were added. A name may occur twice.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Bytes);

impl Headers {
    /// Starts an empty list.
    pub fn builder() -> HeadersBuilder {
        HeadersBuilder(BytesMut::with_capacity(96))
    }

    /// The value of the first header of that name; `None` when absent or null.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(candidate, _)| *candidate == name).and_then(|(_, value)| value)
    }

    /// Every header in order; a null value is `None`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let name = take_length(&mut rest)?;
            let name = std::str::from_utf8(take(&mut rest, name as usize)?).ok()?;
            let length = take_length(&mut rest)?;
            let value = if length == NULL { None } else { Some(take(&mut rest, length as usize)?) };
            Some((name, value))
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The packed form, for an engine that keeps it as it is.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Takes back what [`Headers::as_bytes`] gave. A damaged tail ends the iteration early.
    pub(crate) fn from_bytes(packed: Bytes) -> Self {
        Self(packed)
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        f.debug_map().entries(self.iter().map(|(name, value)| (name, value.map(text)))).finish()
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn take_length(rest: &mut &[u8]) -> Option<u32> {
    take(rest, 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// Collects headers.
#[derive(Debug)]
pub struct HeadersBuilder(BytesMut);

impl HeadersBuilder {
    /// Adds a header with a value.
    #[must_use]
    pub fn with(mut self, name: &str, value: &[u8]) -> Self {
        self.push(name, Some(value));
        self
    }

    /// Adds a header; `None` is Kafka's null value.
    pub fn push(&mut self, name: &str, value: Option<&[u8]>) {
        pack(&mut self.0, name, value);
    }

    /// The finished list.
    pub fn build(self) -> Headers {
        Headers(self.0.freeze())
    }
}

/// Appends one header in the packed form, for an engine that packs many records into one buffer.
pub(crate) fn pack(buffer: &mut BytesMut, name: &str, value: Option<&[u8]>) {
    pack_length(buffer, name.len());
    buffer.extend_from_slice(name.as_bytes());
    match value {
        Some(value) => {
            pack_length(buffer, value.len());
            buffer.extend_from_slice(value);
        }
        None => buffer.extend_from_slice(&NULL.to_le_bytes()),
    }
}

fn pack_length(buffer: &mut BytesMut, length: usize) {
    let length = u32::try_from(length).expect("a record is smaller than 2 GiB");
    buffer.extend_from_slice(&length.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_in_order_with_repeats_empties_and_nulls() {
        let mut builder = Headers::builder().with("client", b"7").with("empty", b"");
        builder.push("null", None);
        builder.push("client", Some(b"8"));
        let headers = builder.build();
        let all: Vec<_> = headers.iter().collect();
        assert_eq!(
            all,
            [
                ("client", Some(&b"7"[..])),
                ("empty", Some(&b""[..])),
                ("null", None),
                ("client", Some(&b"8"[..]))
            ]
        );
        assert_eq!(headers.get("client"), Some(&b"7"[..]));
        assert_eq!(headers.get("absent"), None);
    }

    #[test]
    fn a_damaged_tail_ends_the_list_instead_of_panicking() {
        let whole = Headers::builder().with("a", b"1").with("b", b"2").build();
        for cut in 0..whole.as_bytes().len() {
            let damaged = Headers::from_bytes(whole.0.slice(..cut));
            assert!(damaged.iter().count() <= 1);
        }
    }
}
