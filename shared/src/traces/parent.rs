//! A place in a trace as text: `traceparent` of W3C Trace Context, `00-TRACE-SPAN-FLAGS` in lower-case
//! hexadecimal. Whatever else the header holds is no place; nothing here fails louder than that.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

const LENGTH: usize = 55;

/// A span of somebody else's, and whether it is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl TraceParent {
    /// Reads the header; `None` when it is not of a form that the standard lets one read.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (known, later) = text.split_at_checked(LENGTH)?;
        let mut parts = known.split(|byte| *byte == b'-');
        let [version] = hex::<1>(parts.next()?)?;
        let parent = Self {
            trace: hex(parts.next()?)?,
            span: hex(parts.next()?)?,
            sampled: hex::<1>(parts.next()?)?[0] & 1 == 1,
        };
        // A later version may append to this one's form, after another hyphen.
        let fits = match version {
            0 => later.is_empty(),
            0xff => false,
            _ => later.first().is_none_or(|byte| *byte == b'-'),
        };
        let valid = parent.trace != [0; 16] && parent.span != [0; 8] && parts.next().is_none();
        (fits && valid).then_some(parent)
    }

    /// The header's text.
    pub fn to_text(self) -> String {
        let (trace, span) = (u128::from_be_bytes(self.trace), u64::from_be_bytes(self.span));
        format!("00-{trace:032x}-{span:016x}-{:02x}", u8::from(self.sampled))
    }

    /// Whether whoever made the span records it.
    pub fn is_sampled(self) -> bool {
        self.sampled
    }

    pub(super) fn of(context: &SpanContext) -> Self {
        Self {
            trace: context.trace_id().to_bytes(),
            span: context.span_id().to_bytes(),
            sampled: context.is_sampled(),
        }
    }

    pub(super) fn context(self) -> SpanContext {
        let flags = if self.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let (trace, span) = (TraceId::from_bytes(self.trace), SpanId::from_bytes(self.span));
        SpanContext::new(trace, span, flags, true, TraceState::NONE)
    }
}

/// So many bytes, from exactly twice as many digits.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    let mut bytes = [0; N];
    if pairs.len() != N {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = (digit(*high)? << 4) | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(text: &str) -> Option<TraceParent> {
        TraceParent::parse(text.as_bytes())
    }

    #[test]
    fn only_the_form_of_the_standard_is_read() {
        assert!(parse(GOOD).is_some_and(TraceParent::is_sampled));
        assert!(parse(&GOOD.replace("-01", "-02")).is_some_and(|parent| !parent.is_sampled()));
        assert_eq!(parse(&GOOD.replace("00-4", "cc-4")), parse(GOOD));
        assert_eq!(parse(&format!("{}-more", GOOD.replace("00-4", "01-4"))), parse(GOOD));
        for wrong in [
            "",
            "00",
            GOOD.trim_end_matches("1"),
            &format!("{GOOD}-more"),
            &format!("{}x", GOOD.replace("00-4", "01-4")),
            &GOOD.replace("00-4", "ff-4"),
            &GOOD.replace("4bf9", "4BF9"),
            &GOOD.replace("4bf9", "+bf9"),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.replace('-', "_"),
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1u128.., span in 1u64.., sampled: bool) {
            let parent =
                TraceParent { trace: trace.to_be_bytes(), span: span.to_be_bytes(), sampled };
            prop_assert_eq!(parse(&parent.to_text()), Some(parent));
            prop_assert_eq!(TraceParent::of(&parent.context()), parent);
        }

        #[test]
        fn no_header_makes_reading_panic(text in any::<Vec<u8>>()) {
            prop_assert!(TraceParent::parse(&text).is_none() || text.len() >= LENGTH);
        }
    }
}
