//! `Content-Encoding` of a request: gzip, zstd or brotli, one of them at most.
//!
//! Decompression is where a small request becomes a large one, so it stops at the route's limit, at a
//! ratio no honest sender reaches, and before it allocates a window larger than the largest body.

use std::io::Read;

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use pulsestream_shared::problem::{Code, Problem};

use crate::payload::Bounds;

/// Times by which a body may grow, judged once it is larger than [`UNJUDGED_BYTES`].
const MAX_RATIO: usize = 100;
const UNJUDGED_BYTES: usize = 1 << 20;
/// Largest zstd window, as a power of two: 8 MiB, what the format asks every decoder to support.
const ZSTD_WINDOW_LOG: u32 = 23;
const CHUNK_BYTES: usize = 16 << 10;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Zstd,
    Brotli,
}

impl Encoding {
    /// Reads the header.
    ///
    /// # Errors
    /// 415 for another encoding or more than one.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(value) = values.next() else { return Ok(Self::Identity) };
        let text = value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
        match (text.as_str(), values.next()) {
            ("identity" | "", None) => Ok(Self::Identity),
            ("gzip" | "x-gzip", None) => Ok(Self::Gzip),
            ("zstd", None) => Ok(Self::Zstd),
            ("br", None) => Ok(Self::Brotli),
            _ => Err(Problem::from(Code::UnsupportedMediaType)
                .detail("Content-Encoding is one of gzip, zstd, br")),
        }
    }

    /// Decompresses a whole body.
    ///
    /// # Errors
    /// 413 when it grows beyond the limits, 400 when it is damaged.
    pub(crate) fn decode(self, sent: &[u8], bounds: Bounds) -> Result<Bytes, Problem> {
        match self {
            Self::Identity => Ok(Bytes::copy_from_slice(sent)),
            Self::Gzip => self.drain(flate2::read::MultiGzDecoder::new(sent), sent.len(), bounds),
            Self::Brotli => {
                let reader = brotli_decompressor::Decompressor::new(sent, CHUNK_BYTES);
                self.drain(reader, sent.len(), bounds)
            }
            Self::Zstd => {
                let mut reader =
                    zstd::stream::read::Decoder::with_buffer(sent).map_err(|_| self.damaged())?;
                reader.window_log_max(ZSTD_WINDOW_LOG).map_err(|_| self.damaged())?;
                self.drain(reader, sent.len(), bounds)
            }
        }
    }

    fn drain(self, mut from: impl Read, sent: usize, bounds: Bounds) -> Result<Bytes, Problem> {
        let mut out = Vec::with_capacity((sent * 4).min(bounds.bytes));
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            let count = from.read(&mut chunk).map_err(|_| self.damaged())?;
            let Some(new) = chunk.get(..count).filter(|new| !new.is_empty()) else {
                return Ok(out.into());
            };
            out.extend_from_slice(new);
            let swollen = out.len() > UNJUDGED_BYTES && out.len() / MAX_RATIO > sent;
            if out.len() > bounds.bytes || swollen {
                return Err(bounds.too_large());
            }
        }
    }

    fn damaged(self) -> Problem {
        let name = match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
        };
        Problem::from(Code::BadRequest).detail(format!("the body is not valid {name}"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use pulsestream_shared::config::load;
    use tokio::time::Instant;

    use super::*;
    use crate::arrival::Pace;

    fn bounds(bytes: usize) -> Bounds {
        let config = load(None, std::iter::empty(), &[]).unwrap().config.ingest;
        Bounds { bytes, what: "a batch", pace: Pace::new(&config), deadline: Instant::now() }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(bytes, 19).unwrap()
    }

    /// `[{}]`, compressed by the reference encoder: we have no encoder here.
    const BROTLI_SMALL: &[u8] = &[0x8b, 0x01, 0x80, 0x5b, 0x7b, 0x7d, 0x5d, 0x03];

    #[test]
    fn what_was_compressed_comes_back_whole() {
        let text = b"{\"deviceId\":1}".repeat(1_000);
        for (encoding, sent) in [(Encoding::Gzip, gzip(&text)), (Encoding::Zstd, zstd(&text))] {
            assert_eq!(encoding.decode(&sent, bounds(1 << 20)).unwrap(), text, "{encoding:?}");
        }
        assert_eq!(Encoding::Brotli.decode(BROTLI_SMALL, bounds(100)).unwrap(), &b"[{}]"[..]);
        let two_members = [gzip(b"[1,"), gzip(b"2]")].concat();
        assert_eq!(Encoding::Gzip.decode(&two_members, bounds(100)).unwrap(), &b"[1,2]"[..]);
    }

    #[test]
    fn a_body_that_swells_is_refused_by_size_and_by_ratio() {
        let bomb = vec![b' '; 64 << 20];
        for (encoding, sent) in [(Encoding::Gzip, gzip(&bomb)), (Encoding::Zstd, zstd(&bomb))] {
            let code = |most| encoding.decode(&sent, bounds(most)).unwrap_err().code();
            assert_eq!(code(5 << 20), Code::PayloadTooLarge, "by size");
            assert_eq!(code(usize::MAX), Code::PayloadTooLarge, "by ratio");
        }
    }

    #[test]
    fn damage_is_told_and_never_panics() {
        let text = b"{\"deviceId\":1}".repeat(100);
        let all = [
            (Encoding::Gzip, gzip(&text)),
            (Encoding::Zstd, zstd(&text)),
            (Encoding::Brotli, BROTLI_SMALL.to_vec()),
        ];
        for (encoding, sent) in all {
            for cut in 1..sent.len() - 1 {
                let cut = encoding.decode(&sent[..cut], bounds(1 << 20));
                assert!(cut.is_err() || cut.unwrap().len() < text.len(), "{encoding:?}");
            }
            assert!(encoding.decode(b"not compressed", bounds(1 << 20)).is_err(), "{encoding:?}");
        }
    }

    #[test]
    fn one_known_encoding_is_taken() {
        let of = |values: &[&'static str]| {
            let pairs = values.iter().map(|value| {
                (header::CONTENT_ENCODING, axum::http::HeaderValue::from_static(value))
            });
            Encoding::of(&pairs.collect()).map_err(|problem| problem.code())
        };
        assert_eq!(of(&[]), Ok(Encoding::Identity));
        assert_eq!(of(&["GZIP"]), Ok(Encoding::Gzip));
        assert_eq!(of(&["br"]), Ok(Encoding::Brotli));
        for refused in [&["deflate"][..], &["gzip, br"], &["gzip", "br"]] {
            assert_eq!(of(refused), Err(Code::UnsupportedMediaType), "{refused:?}");
        }
    }
}
