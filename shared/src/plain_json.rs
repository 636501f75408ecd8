//! JSON in the form in which nearly all of it is written: no white space, no escapes, no exponents.
//!
//! What lies on the log was written by us, and is read by every service behind it: a parser for all of JSON was a
//! quarter of the consumer's CPU. What is not plain is left to that parser, so nothing here says that JSON is wrong,
//! only that it is not plain.

/// What is left to read, of a text that may hold anything.
pub(crate) struct PlainJson<'a>(&'a str);

/// Digits of a number that is surely finite.
const FEW_DIGITS: usize = 300;

impl<'a> PlainJson<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// What was not taken yet.
    pub(crate) fn rest(&self) -> &'a str {
        self.0
    }

    /// Takes exactly this.
    pub(crate) fn literal(&mut self, text: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(text)?;
        Some(())
    }

    /// Takes a string; gives what is between its quotes.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let text = self.0.strip_prefix('"')?;
        let end = text.bytes().position(|byte| !is_plain(byte))?;
        let (text, rest) = text.split_at_checked(end)?;
        self.0 = rest.strip_prefix('"')?;
        Some(text)
    }

    /// Takes a number, which is finite as a double.
    pub(crate) fn number(&mut self) -> Option<&'a str> {
        let is_part = |byte: u8| byte.is_ascii_digit() || byte == b'.' || byte == b'-';
        let end = self.0.bytes().position(|byte| !is_part(byte)).unwrap_or(self.0.len());
        let (number, rest) = self.0.split_at_checked(end)?;
        if end > FEW_DIGITS || !is_number(number) {
            return None;
        }
        self.0 = rest;
        Some(number)
    }

    /// Takes a string, a number or a boolean.
    pub(crate) fn scalar(&mut self) -> Option<()> {
        match self.0.as_bytes().first()? {
            b'"' => self.string().map(drop),
            b't' => self.literal("true"),
            b'f' => self.literal("false"),
            _ => self.number().map(drop),
        }
    }
}

/// Whether a byte of a text stands for itself in a JSON string.
pub(crate) fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// Whether digits, points and minus signs stand as they do in a number.
fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(a, b)| (a, Some(b)));
    let leads_with_zero = whole.len() > 1 && whole.starts_with('0');
    digits(whole) && !leads_with_zero && fraction.is_none_or(digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    proptest! {
        #[test]
        fn what_is_taken_for_a_number_is_one(text in "[-.0-9]{1,6}") {
            let taken = PlainJson::new(&text).number();
            let is_json = serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_number());
            prop_assert_eq!(taken, is_json.then_some(text.as_str()));
        }

        #[test]
        fn what_is_taken_for_a_string_is_one(text in "[\"\\\\a\u{1}é]{0,5}") {
            let quoted = format!("\"{text}\"");
            let mut json = PlainJson::new(&quoted);
            if let Some(taken) = json.string() && json.rest().is_empty() {
                prop_assert_eq!(serde_json::from_str::<String>(&quoted).ok(), Some(taken.to_owned()));
            } else {
                let plain = !text.contains(['"', '\\', '\u{1}']);
                prop_assert!(!plain, "{quoted}");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_not_taken() {
        let mut json = PlainJson::new("{\"a");
        assert_eq!(json.literal("["), None);
        assert_eq!(json.literal("{"), Some(()));
        assert_eq!(json.string(), None, "it does not end");
        assert_eq!(json.scalar(), None);
        assert_eq!(PlainJson::new("").scalar(), None);
        assert_eq!(PlainJson::new(&"9".repeat(400)).number(), None, "as a double it is infinite");
    }
}
