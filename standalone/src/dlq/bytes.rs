//! Bytes of devices, for the eyes of a person and for programs. What comes from outside must not move the
//! cursor of a terminal.

use serde_json::{Value, json};

/// As text: as it is when it is printable UTF-8, else with everything else escaped. Answers whether it was.
pub(super) fn readable(bytes: &[u8]) -> (String, bool) {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.chars().all(is_printable) => (text.to_owned(), false),
        _ => (escaped(bytes), true),
    }
}

/// `{"text": …}`, or `{"hex": …}` when it is not UTF-8.
pub(super) fn to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "text": text }),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_printable(c: char) -> bool {
    c == '\n' || c == '\t' || !(c.is_control() || turns_around(c))
}

/// What makes a terminal show text in another order than it has.
fn turns_around(c: char) -> bool {
    matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if is_printable(c) => text.push(c),
                c => text.extend(c.escape_unicode()),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_text_is_told_as_it_is_and_anything_else_is_escaped() {
        let told = |bytes: &[u8]| readable(bytes);
        assert!(!told("{\"a\":\"é\\u0000\"}\n".as_bytes()).1);
        assert_eq!(told(b"a\\\x1b[2J\xff\x00"), ("a\\\\\\u{1b}[2J\\xff\\u{0}".to_owned(), true));
        assert_eq!(told("a\u{202e}b".as_bytes()), ("a\\u{202e}b".to_owned(), true));
        assert_eq!(told(b""), (String::new(), false));
    }

    #[test]
    fn programs_get_text_or_hex() {
        assert_eq!(to_json(b"a\x1b"), json!({ "text": "a\u{1b}" }));
        assert_eq!(to_json(b"\xff\x00"), json!({ "hex": "ff00" }));
    }
}
