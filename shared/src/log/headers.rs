//! The headers of a record, in one allocation.
//!
//! A record carries two to sixteen headers; a vector of pairs would cost two allocations each on the
//! busiest path of the consumer. Layout: per header its name and its value, which may be null
//! ([`packed`](super::packed)).

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::packed::{pack_bytes, take_bytes};

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
        self.packed().find(|(candidate, _)| *candidate == name.as_bytes())?.1
    }

    /// Every header in order; a null value is `None`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.packed().map_while(|(name, value)| Some((std::str::from_utf8(name).ok()?, value)))
    }

    fn packed(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || Some((take_bytes(&mut rest)??, take_bytes(&mut rest)?)))
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
    pack_bytes(buffer, Some(name.as_bytes()));
    pack_bytes(buffer, value);
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
