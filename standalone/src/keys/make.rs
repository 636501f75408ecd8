//! Making a key: its characters, its prefix, and what the words of the command line mean.

use pulsestream_shared::auth::Pepper;
use pulsestream_shared::config::{Config, parse_duration};
use pulsestream_shared::store::{KeyRecord, KeyStore, NewKey, Scope};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Characters of a made key after `ps_live_`: 32 of 32 symbols, 160 bits.
const RANDOM_CHARS: usize = 32;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of a key that are shown and stored in clear. After `ps_live_` 12 of them are random: 60 bits,
/// so that no two keys ever made begin alike, and 100 bits stay secret.
const PREFIX_CHARS: usize = 20;

/// What a new key is to be.
pub(super) struct Wanted {
    pub(super) client: String,
    pub(super) scopes: Vec<Scope>,
    pub(super) rate: Option<u32>,
    pub(super) burst: Option<u32>,
    pub(super) expires_at_ms: Option<i64>,
    pub(super) key: String,
}

pub(super) async fn make(
    store: &dyn KeyStore,
    config: &Config,
    wanted: Wanted,
    now_ms: i64,
) -> Result<(String, KeyRecord), String> {
    if !(8..=200).contains(&wanted.key.len()) || !wanted.key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a key is 8 to 200 visible ASCII characters".to_owned());
    }
    if wanted.client.trim().is_empty() {
        return Err("a client has a name".to_owned());
    }
    let pepper = Pepper::load(&config.keys, store).await.map_err(|error| error.to_string())?;
    // Never more than half of an imported key in clear.
    let shown = PREFIX_CHARS.min(wanted.key.len() / 2);
    let new = NewKey {
        hash: pepper.hash(&wanted.key),
        prefix: wanted.key.chars().take(shown).collect(),
        client_name: wanted.client,
        scopes: wanted.scopes,
        rate: wanted.rate,
        burst: wanted.burst,
        created_at_ms: now_ms,
        expires_at_ms: wanted.expires_at_ms,
    };
    let record = store.create(new).await.map_err(|error| error.to_string())?;
    Ok((wanted.key, record))
}

pub(super) fn random_key() -> String {
    let random =
        (0..RANDOM_CHARS).map(|_| char::from(ALPHABET[usize::from(rand::random::<u8>() % 32)]));
    format!("ps_live_{}", random.collect::<String>())
}

pub(super) fn parse_scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| {
        let known: Vec<_> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
        format!("unknown scope {text}: choose from {}", known.join(", "))
    })
}

pub(super) fn parse_expiry(text: &str, now_ms: i64) -> Result<i64, String> {
    if let Some(span) = parse_duration(text) {
        return Ok(now_ms.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)));
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        format!(
            "--expires {text}: give a duration such as 30d or a time such as 2027-01-31T00:00:00Z"
        )
    })?;
    Ok(time.unix_timestamp() * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_key_is_long_random_and_hides_all_but_its_prefix() {
        let key = random_key();
        assert_eq!(key.len(), 8 + RANDOM_CHARS);
        assert_ne!(key, random_key());
    }

    #[test]
    fn an_expiry_is_a_duration_or_a_time() {
        assert_eq!(parse_expiry("1d", 1_000), Ok(86_401_000));
        assert_eq!(parse_expiry("1970-01-01T00:00:05Z", 0), Ok(5_000));
        assert!(parse_expiry("tomorrow", 0).unwrap_err().contains("30d"));
    }
}
