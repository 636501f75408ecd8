//! The stream token: what a page shows instead of an API key. It is worth the key that asked for it, for
//! reading live events alone, for a short time, of these devices and types alone.
//!
//! ```text
//! "ps_token_" and base64url without padding of
//! version u8 (1) | hash of the key 32 | client i32 | expires i64 (unix ms)
//! | devices u8 | 16 each | types u8 | length u8 and UTF-8 each | signature 32
//! ```
//!
//! Numbers are little-endian. The signature is over everything before it, and in every version the last
//! 32 bytes. The key behind it is looked up like one that is shown itself, so a token is worth nothing once
//! its key is not; the client is in it because a deleted key may be made anew for another client.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Buf as _;
use pulsestream_shared::auth::Seal;
use pulsestream_shared::event::{ClientId, DeviceId};
use pulsestream_shared::store::KeyHash;
use uuid::Uuid;

use crate::filter::{Audience, Filter};

/// How a token begins, so that a person or a scanner knows it from a key.
pub(crate) const PREFIX: &str = "ps_token_";
/// What a [`Seal`] for tokens is made for.
pub(crate) const PURPOSE: &str = "stream token";
/// Longest text: it must pass in a line of a request, which proxies bound to 8 KiB.
pub(crate) const MOST_CHARS: usize = 4_096;
const VERSION: u8 = 1;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// The key it was handed out to.
    pub(crate) key: KeyHash,
    pub(crate) client: ClientId,
    /// Unix milliseconds.
    pub(crate) expires_at_ms: i64,
    /// Of that client; nothing else is shown.
    pub(crate) only: Filter,
}

impl Token {
    /// The text a client gets; `None` when it would be too long to be carried.
    pub(crate) fn seal(&self, seal: &Seal) -> Option<String> {
        let mut bytes = Vec::with_capacity(256);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.key.0);
        bytes.extend_from_slice(&self.client.0.to_le_bytes());
        bytes.extend_from_slice(&self.expires_at_ms.to_le_bytes());
        bytes.push(u8::try_from(self.only.devices().len()).ok()?);
        for device in self.only.devices() {
            bytes.extend_from_slice(device.0.as_bytes());
        }
        bytes.push(u8::try_from(self.only.event_types().len()).ok()?);
        for event_type in self.only.event_types() {
            bytes.push(u8::try_from(event_type.len()).ok()?);
            bytes.extend_from_slice(event_type.as_bytes());
        }
        let signature = seal.sign(&bytes);
        bytes.extend_from_slice(&signature);
        let text = PREFIX.to_owned() + &BASE64_URL_SAFE_NO_PAD.encode(bytes);
        (text.len() <= MOST_CHARS).then_some(text)
    }

    /// Reads what [`seal`](Self::seal) wrote; `None` for anything that this seal did not sign, or that is
    /// of another version. Whether its time is over is for the caller to say.
    pub(crate) fn open(text: &str, seal: &Seal) -> Option<Self> {
        let text = text.strip_prefix(PREFIX).filter(|_| text.len() <= MOST_CHARS)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (body, signature) = bytes.split_last_chunk()?;
        if !seal.signed(body, signature) {
            return None;
        }
        let mut body = body;
        if body.try_get_u8().ok()? != VERSION {
            return None;
        }
        let key = KeyHash(take(&mut body)?);
        let client = ClientId(body.try_get_i32_le().ok()?);
        let expires_at_ms = body.try_get_i64_le().ok()?;
        let mut devices = Vec::new();
        for _ in 0..body.try_get_u8().ok()? {
            devices.push(DeviceId(Uuid::from_bytes(take(&mut body)?)));
        }
        let mut event_types = Vec::new();
        for _ in 0..body.try_get_u8().ok()? {
            let length = usize::from(body.try_get_u8().ok()?);
            let (event_type, rest) = body.split_at_checked(length)?;
            event_types.push(std::str::from_utf8(event_type).ok()?.to_owned());
            body = rest;
        }
        let only = Filter::new(Audience::Client(client), devices, event_types);
        body.is_empty().then_some(Self { key, client, expires_at_ms, only })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal() -> Seal {
        Seal::new(b"a key")
    }

    fn token(query: &str) -> Token {
        let client = ClientId(-7);
        let only = Filter::parse(Audience::Client(client), query).unwrap();
        Token { key: KeyHash([9; 32]), client, expires_at_ms: 1_795_194_569_018, only }
    }

    #[test]
    fn a_token_comes_back_as_it_was_and_fits_a_header() {
        let device = "73d7049a-9f6b-4a36-8d6c-0d6a8a4a4a4a";
        for query in ["", &format!("deviceId={device}&eventType=cpu&eventType=w%C3%A4rme")] {
            let token = token(query);
            let text = token.seal(&seal()).unwrap();
            assert_eq!(Token::open(&text, &seal()), Some(token));
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            assert!(text.chars().all(plain), "{text}");
        }
    }

    #[test]
    fn a_hundred_devices_fit_and_a_hundred_of_the_longest_types_do_not() {
        let devices: String =
            (0..100).map(|n| format!("&deviceId={}", Uuid::from_u128(n))).collect();
        assert!(token(&devices).seal(&seal()).is_some());
        let types: String = (0..100).map(|n| format!("&eventType={n:050}")).collect();
        assert_eq!(token(&types).seal(&seal()), None);
    }

    #[test]
    fn another_seal_a_change_and_another_version_are_refused() {
        let text = token("eventType=cpu").seal(&seal()).unwrap();
        assert_eq!(Token::open(&text, &Seal::new(b"another key")), None);
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX).unwrap()).unwrap();
        let written = |bytes: &[u8]| PREFIX.to_owned() + &BASE64_URL_SAFE_NO_PAD.encode(bytes);
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert_eq!(Token::open(&written(&changed), &seal()), None, "{index}");
            assert_eq!(Token::open(&written(&bytes[..index]), &seal()), None, "{index}");
        }
        let mut later = bytes[..bytes.len() - Seal::BYTES].to_vec();
        later[0] = VERSION + 1;
        let signature = seal().sign(&later);
        later.extend_from_slice(&signature);
        assert_eq!(Token::open(&written(&later), &seal()), None);
        for text in ["", PREFIX, "ps_live_x", "ps_token_€"] {
            assert_eq!(Token::open(text, &seal()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_signed_is_read_or_refused(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = body.clone();
            bytes.extend_from_slice(&seal().sign(&body));
            let text = PREFIX.to_owned() + &BASE64_URL_SAFE_NO_PAD.encode(bytes);
            if let Some(token) = Token::open(&text, &seal()) {
                prop_assert_eq!(Token::open(&token.seal(&seal()).unwrap(), &seal()), Some(token));
            }
        }
    }
}
