//! Hostile headers and compressed bodies.

use axum::http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::hostile::{CONFIG, cases, hostile};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");

fn bounds(bytes: usize) -> Bounds {
    let pace = Pace::new(&CONFIG.ingest);
    Bounds { bytes, what: "a batch", pace, deadline: Instant::now() }
}

/// The header, once or twice, when HTTP could carry it.
fn headers(name: &HeaderName, value: &[u8], twice: bool) -> Option<HeaderMap> {
    let value = HeaderValue::from_bytes(value).ok()?;
    let pair = (name.clone(), value);
    Some(std::iter::repeat_n(pair, 1 + usize::from(twice)).collect())
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn a_key_is_the_uuid_it_shows_or_none(value in hostile("header"), twice: bool) {
        let Some(headers) = headers(&KEY, &value, twice) else { return Ok(()) };
        match idempotency_key(&headers) {
            Ok(id) => {
                let text = std::str::from_utf8(&value).unwrap().to_ascii_lowercase();
                let shown = id.unwrap().to_string();
                prop_assert!(text == shown || text == format!("\"{shown}\""), "{text:?}");
                prop_assert!(!twice);
            }
            Err(problem) => prop_assert_eq!(problem.code(), Code::InvalidIdempotencyKey),
        }
    }

    #[test]
    fn whatever_describes_a_body_is_understood_or_refused(value in hostile("header"), twice: bool) {
        if let Some(headers) = headers(&header::CONTENT_TYPE, &value, twice) {
            let media_type = media_type(&headers).unwrap();
            let bare = media_type.bytes().all(|b| b != b';' && !b.is_ascii_uppercase());
            prop_assert!(bare && media_type.trim() == media_type, "{media_type:?}");
        }
        if let Some(headers) = headers(&header::CONTENT_ENCODING, &value, twice) {
            match Encoding::of(&headers) {
                Ok(_) => prop_assert!(!twice),
                Err(problem) => prop_assert_eq!(problem.code(), Code::UnsupportedMediaType),
            }
        }
        if let Some(headers) = headers(&header::CONTENT_LENGTH, &value, twice) {
            prop_assert!(bounds(100).expected(&headers) <= 100);
        }
    }

    #[test]
    fn a_compressed_body_stays_within_its_bounds(sent in hostile("compressed"), most in 0..4_000_usize) {
        for encoding in [Encoding::Gzip, Encoding::Zstd, Encoding::Brotli] {
            match encoding.decode(&sent, bounds(most)) {
                Ok(body) => prop_assert!(body.len() <= most),
                Err(problem) => {
                    let codes = [Code::BadRequest, Code::PayloadTooLarge];
                    prop_assert!(codes.contains(&problem.code()), "{problem:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_compressed_comes_back(body in hostile("ndjson")) {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&body).unwrap();
        let zstd = zstd::stream::encode_all(&body[..], 1).unwrap();
        for (encoding, sent) in [(Encoding::Gzip, gzip.finish().unwrap()), (Encoding::Zstd, zstd)] {
            let back = encoding.decode(&sent, bounds(body.len()));
            prop_assert_eq!(&back.unwrap()[..], &body[..], "{:?}", encoding);
        }
    }
}
