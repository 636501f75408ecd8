//! A WebSocket's frames as a server writes them: not masked, not split. So the bytes of a frame are the same
//! for every socket, and are made once for all.

use bytes::Bytes;

/// FIN, and text.
const TEXT: u8 = 0x81;

/// The frame of a text.
pub(crate) fn text(text: &str) -> Bytes {
    let mut frame = Vec::with_capacity(text.len() + 10);
    push_text(&mut frame, text);
    frame.into()
}

/// Adds the frame of a text to others.
pub(crate) fn push_text(frames: &mut Vec<u8>, text: &str) {
    frames.push(TEXT);
    match (u8::try_from(text.len()), u16::try_from(text.len())) {
        (Ok(length @ 0..=125), _) => frames.push(length),
        (_, Ok(length)) => {
            frames.push(126);
            frames.extend_from_slice(&length.to_be_bytes());
        }
        (_, Err(_)) => {
            frames.push(127);
            frames.extend_from_slice(&(text.len() as u64).to_be_bytes());
        }
    }
    frames.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use tungstenite::protocol::frame::FrameHeader;
    use tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;

    /// The texts of encoded frames, read by the library.
    pub(crate) fn texts(frames: &[u8]) -> Vec<String> {
        let mut cursor = Cursor::new(frames);
        let mut texts = Vec::new();
        while let Some((header, length)) = FrameHeader::parse(&mut cursor).unwrap() {
            let whole_text = (OpCode::Data(Data::Text), true, None);
            assert_eq!((header.opcode, header.is_final, header.mask), whole_text);
            let begin = usize::try_from(cursor.position()).unwrap();
            let end = begin + usize::try_from(length).unwrap();
            texts.push(String::from_utf8(frames[begin..end].to_vec()).unwrap());
            cursor.set_position(end as u64);
        }
        texts
    }

    #[test]
    fn a_text_of_any_length_is_one_whole_frame_that_the_library_reads() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 70_000] {
            let payload = "x".repeat(length);
            assert_eq!(texts(&text(&payload)), [payload]);
        }
    }
}
