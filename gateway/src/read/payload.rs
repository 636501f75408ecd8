//! The bytes of a record, for a person's eyes: as text when they are UTF-8, else in base64, and of many the
//! beginning.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::Serialize;

/// So many bytes are shown. An event of a gateway is never longer than `ingest.max_body_bytes`, 10 KiB unless it
/// is set; a stranger's record may have a megabyte.
pub(super) const SHOWN: usize = 64 << 10;

/// The bytes of the record, whatever they are.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DeadLetterPayload")]
pub(super) struct Payload {
    /// All its bytes, also those that are not shown.
    size: usize,
    /// Set when it is longer than what is shown, 65,536 bytes.
    truncated: bool,
    /// It, when it is UTF-8. It comes from outside: show it as text, never as markup.
    text: Option<String>,
    /// It, when it is not UTF-8.
    base64: Option<String>,
}

impl Payload {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let most = SHOWN.min(bytes.len());
        let (text, base64) = match std::str::from_utf8(bytes) {
            Ok(text) => {
                let (shown, _) = text.split_at(text.floor_char_boundary(most));
                (Some(shown.to_owned()), None)
            }
            Err(_) => (None, bytes.get(..most).map(|shown| BASE64_STANDARD.encode(shown))),
        };
        Self { size: bytes.len(), truncated: bytes.len() > SHOWN, text, base64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_8_is_told_as_text_and_anything_else_in_base64() {
        let text = Payload::of("{\"a\":\"<b>é\u{0}\"}".as_bytes());
        assert_eq!(text.text.as_deref(), Some("{\"a\":\"<b>é\u{0}\"}"));
        assert_eq!((text.size, text.truncated, text.base64), (14, false, None));
        let bytes = Payload::of(b"\xff\x00\xfe");
        assert_eq!((bytes.text, bytes.base64.as_deref()), (None, Some("/wD+")));
        assert_eq!(Payload::of(b"").text.as_deref(), Some(""));
    }

    #[test]
    fn of_many_bytes_the_beginning_is_told_and_how_many_there_are() {
        // The bound lies within a character.
        let long = "é".repeat(SHOWN).split_off(1 + 1);
        let long = format!("a{long}");
        let told = Payload::of(long.as_bytes());
        assert_eq!((told.size, told.truncated), (long.len(), true));
        assert_eq!(told.text.map(|text| text.len()), Some(SHOWN - 1));
        let told = Payload::of(&vec![0xff; SHOWN + 1]);
        assert!(told.truncated);
        let shown = BASE64_STANDARD.decode(told.base64.unwrap()).unwrap();
        assert_eq!(shown.len(), SHOWN);
        assert!(!Payload::of(&vec![0xff; SHOWN]).truncated);
    }
}
