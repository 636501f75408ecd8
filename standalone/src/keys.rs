//! `pulsestream keys`: works on the store alone, so also while the pipeline runs.

use std::io::Write as _;

use clap::Subcommand;
use pulsestream_shared::auth::Pepper;
use pulsestream_shared::clock;
use pulsestream_shared::config::{Config, parse_duration};
use pulsestream_shared::engine;
use pulsestream_shared::store::{KeyRecord, KeyStore, NewKey, Scope};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Characters of a made key after `ps_live_`: 32 of 32 symbols, 160 bits.
const RANDOM_CHARS: usize = 32;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Characters of a key that are shown and stored in clear.
const PREFIX_CHARS: usize = 14;

/// Create, list and revoke API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Create a key; it is printed once and never stored.
    Create {
        /// Name of the client (tenant) the key belongs to; made if it is new.
        #[arg(long)]
        client: String,
        /// What the key may do: events:write, events:read, admin. Repeatable.
        #[arg(long = "scope", default_values = ["events:write", "events:read"])]
        scopes: Vec<String>,
        /// Events per second the key may send.
        #[arg(long)]
        rate: Option<u32>,
        /// Events it may send at once on top.
        #[arg(long)]
        burst: Option<u32>,
        /// When it stops working: a duration such as 30d, or a time such as 2027-01-31T00:00:00Z.
        #[arg(long)]
        expires: Option<String>,
        /// Import this key instead of making one.
        #[arg(long, value_name = "VALUE")]
        key: Option<String>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// List keys, newest first.
    List {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Revoke the key with this prefix; running gateways stop accepting it within 30 seconds.
    Revoke {
        /// The prefix that `keys list` shows.
        prefix: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(command: KeysCommand, config: Config) -> Result<(), String> {
    let stores = engine::open_store(&config).await.map_err(|error| error.to_string())?;
    let store = stores.keys.as_ref();
    match command {
        KeysCommand::Create { client, scopes, rate, burst, expires, key, json } => {
            let now_ms = clock::unix_ms();
            let wanted = Wanted {
                client,
                scopes: scopes.iter().map(|scope| parse_scope(scope)).collect::<Result<_, _>>()?,
                rate,
                burst,
                expires_at_ms: expires.map(|text| parse_expiry(&text, now_ms)).transpose()?,
                key: key.unwrap_or_else(random_key),
            };
            let (key, record) = create(store, &config, wanted, now_ms).await?;
            print_created(&key, &record, json)
        }
        KeysCommand::List { json } => {
            let keys = store.list().await.map_err(|error| error.to_string())?;
            print_list(&keys, json)
        }
        KeysCommand::Revoke { prefix, json } => {
            let record = revoke(store, &config, &prefix).await?;
            if json {
                return print(&format!("{}\n", describe(&record)));
            }
            print(&format!("revoked {} of client {}\n", record.prefix, record.client_name))
        }
    }
}

struct Wanted {
    client: String,
    scopes: Vec<Scope>,
    rate: Option<u32>,
    burst: Option<u32>,
    expires_at_ms: Option<i64>,
    key: String,
}

/// The key of a first start.
pub(crate) async fn make_first(store: &dyn KeyStore, config: &Config) -> Result<String, String> {
    let wanted = Wanted {
        client: "default".to_owned(),
        scopes: vec![Scope::EventsWrite, Scope::EventsRead],
        rate: None,
        burst: None,
        expires_at_ms: None,
        key: random_key(),
    };
    Ok(create(store, config, wanted, clock::unix_ms()).await?.0)
}

async fn create(
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

async fn revoke(store: &dyn KeyStore, config: &Config, prefix: &str) -> Result<KeyRecord, String> {
    let revoked = store.revoke(prefix, clock::unix_ms()).await;
    let record = revoked.map_err(|error| format!("{prefix}: {error}"))?;
    // The store has spoken; the cache forgets by itself should it not hear now.
    match engine::open_redis(config).await {
        Ok(Some((cache, _))) => {
            if let Err(error) = cache.revoke_key(&record.hash, config.keys.cache_ttl).await {
                tracing::warn!(%error, "revoked; the cache was not told and forgets within 30 s");
            }
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(%error, "revoked; the cache was not told and forgets within 30 s")
        }
    }
    Ok(record)
}

fn random_key() -> String {
    let random =
        (0..RANDOM_CHARS).map(|_| char::from(ALPHABET[usize::from(rand::random::<u8>() % 32)]));
    format!("ps_live_{}", random.collect::<String>())
}

fn parse_scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).ok_or_else(|| {
        let known: Vec<_> = Scope::ALL.iter().map(|scope| scope.as_str()).collect();
        format!("unknown scope {text}: choose from {}", known.join(", "))
    })
}

fn parse_expiry(text: &str, now_ms: i64) -> Result<i64, String> {
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

fn print_created(key: &str, record: &KeyRecord, as_json: bool) -> Result<(), String> {
    if as_json {
        let mut object = describe(record);
        object["key"] = json!(key);
        return print(&format!("{object}\n"));
    }
    print(&format!("{key}\n"))?;
    tracing::info!(client = %record.client_name, prefix = %record.prefix, "this key is shown once");
    Ok(())
}

fn print_list(keys: &[KeyRecord], as_json: bool) -> Result<(), String> {
    if as_json {
        let all: Vec<_> = keys.iter().map(describe).collect();
        return print(&format!("{}\n", json!(all)));
    }
    let mut text =
        format!("{:<16} {:<24} {:<9} {:<26} SCOPES\n", "PREFIX", "CLIENT", "STATE", "CREATED");
    for key in keys {
        let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
        text.push_str(&format!(
            "{:<16} {:<24} {:<9} {:<26} {}\n",
            key.prefix,
            key.client_name,
            state(key),
            time_text(key.created_at_ms).unwrap_or_default(),
            scopes.join(",")
        ));
    }
    print(&text)
}

fn state(key: &KeyRecord) -> &'static str {
    match (key.revoked_at_ms, key.is_valid_at(clock::unix_ms())) {
        (Some(_), _) => "revoked",
        (None, true) => "valid",
        (None, false) => "expired",
    }
}

fn describe(key: &KeyRecord) -> serde_json::Value {
    json!({
        "prefix": key.prefix,
        "client": key.client_name,
        "clientId": key.client,
        "scopes": key.scopes,
        "rate": key.rate,
        "burst": key.burst,
        "state": state(key),
        "createdAt": time_text(key.created_at_ms),
        "expiresAt": key.expires_at_ms.and_then(time_text),
        "revokedAt": key.revoked_at_ms.and_then(time_text),
    })
}

fn time_text(ms: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(ms / 1_000).ok()?.format(&Rfc3339).ok()
}

fn print(text: &str) -> Result<(), String> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| format!("standard output: {error}"))
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
