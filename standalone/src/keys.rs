//! `pulsestream keys`: works on the store alone, so also while the pipeline runs, and tells the running
//! processes what changed. Embedded, they see it in the store by themselves.

use std::time::Duration;

use clap::Subcommand;
use pulsestream_shared::auth;
use pulsestream_shared::bus::Bus;
use pulsestream_shared::cache::Cache;
use pulsestream_shared::clock;
use pulsestream_shared::config::{Config, parse_duration};
use pulsestream_shared::engine::{self, OpenError};
use pulsestream_shared::store::{KeyHash, KeyRecord, KeyStore, Scope};

mod make;
mod show;

use make::{Wanted, make, parse_expiry, parse_scope, random_key};
use show::{describe, print_created, print_list, print_rotated};

use crate::output::{print, time_text};

/// Create, list, rotate and revoke API keys.
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
        /// Only those of this client.
        #[arg(long)]
        client: Option<String>,
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Make a new key like the one with this prefix, print it once, and let the old one expire.
    Rotate {
        /// The prefix that `keys list` shows, or enough of it.
        prefix: String,
        /// How long the old key goes on; 0 revokes it at once.
        #[arg(long, default_value = "24h")]
        grace: String,
        /// When the new key stops working; to be given when the old one has an end.
        #[arg(long)]
        expires: Option<String>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Revoke the key with this prefix, for good; running processes refuse it at once and close its
    /// streams.
    Revoke {
        /// The prefix that `keys list` shows, or enough of it.
        prefix: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(command: KeysCommand, config: Config) -> Result<(), String> {
    let stores = engine::open_store(&config).await.map_err(|error| error.to_string())?;
    let store = stores.keys.as_ref();
    let now_ms = clock::unix_ms();
    match command {
        KeysCommand::Create { client, scopes, rate, burst, expires, key, json } => {
            let wanted = Wanted {
                client,
                scopes: scopes.iter().map(|scope| parse_scope(scope)).collect::<Result<_, _>>()?,
                rate,
                burst,
                expires_at_ms: expires.map(|text| parse_expiry(&text, now_ms)).transpose()?,
                key: key.unwrap_or_else(random_key),
            };
            let (key, record) = make(store, &config, wanted, now_ms).await?;
            print_created(&key, &record, json)?;
            tell(&config, Change::Created(record.hash)).await;
            Ok(())
        }
        KeysCommand::List { client, json } => {
            let mut keys = store.list().await.map_err(|error| error.to_string())?;
            if let Some(client) = client {
                keys.retain(|key| key.client_name == client);
            }
            print_list(&keys, json)
        }
        KeysCommand::Rotate { prefix, grace, expires, json } => {
            let rotation = Rotation {
                old: find(store, &prefix).await?,
                grace: parse_grace(&grace, config.keys.process_ttl)?,
                expires_at_ms: expires.map(|text| parse_expiry(&text, now_ms)).transpose()?,
            };
            let (key, new, old) = rotate(store, &config, rotation, now_ms).await?;
            print_rotated(&key, &new, &old, json)
        }
        KeysCommand::Revoke { prefix, json } => {
            let prefix = find(store, &prefix).await?.prefix;
            let record = revoke(store, &config, &prefix, now_ms).await?;
            if json {
                return print(&format!("{}\n", describe(&record)));
            }
            print(&format!("revoked {} of client {}\n", record.prefix, record.client_name))
        }
    }
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
    Ok(make(store, config, wanted, clock::unix_ms()).await?.0)
}

/// The key whose prefix begins so. A whole prefix names its key even if another begins with it.
async fn find(store: &dyn KeyStore, beginning: &str) -> Result<KeyRecord, String> {
    let mut keys = store.list().await.map_err(|error| error.to_string())?;
    if let Some(exact) = keys.iter().position(|key| key.prefix == beginning) {
        return Ok(keys.swap_remove(exact));
    }
    keys.retain(|key| !beginning.is_empty() && key.prefix.starts_with(beginning));
    match (keys.len(), keys.pop()) {
        (1, Some(key)) => Ok(key),
        (0, _) | (_, None) => {
            Err(format!("{beginning}: no key has this prefix; `pulsestream keys list` shows them"))
        }
        (count, Some(one)) => Err(format!(
            "{beginning}: {count} keys begin with this, {} is one of them; give more of the prefix",
            one.prefix
        )),
    }
}

struct Rotation {
    old: KeyRecord,
    grace: Duration,
    expires_at_ms: Option<i64>,
}

/// The new key, its record, and the old one's as it is now.
async fn rotate(
    store: &dyn KeyStore,
    config: &Config,
    rotation: Rotation,
    now_ms: i64,
) -> Result<(String, KeyRecord, KeyRecord), String> {
    let Rotation { old, grace, expires_at_ms } = rotation;
    let time = |ms: i64| time_text(ms).unwrap_or_default();
    if let Some(revoked_at_ms) = old.revoked_at_ms {
        let at = time(revoked_at_ms);
        return Err(format!("{}: revoked at {at}; make a key with `keys create`", old.prefix));
    }
    if let (Some(end_ms), None) = (old.expires_at_ms, expires_at_ms) {
        let at = time(end_ms);
        return Err(format!(
            "{}: expires at {at}; say with --expires when its successor does",
            old.prefix
        ));
    }
    let wanted = Wanted {
        client: old.client_name,
        scopes: old.scopes,
        rate: old.rate,
        burst: old.burst,
        expires_at_ms,
        key: random_key(),
    };
    let (key, new) = make(store, config, wanted, now_ms).await?;
    tell(config, Change::Created(new.hash)).await;
    let ended = if grace.is_zero() {
        revoke(store, config, &old.prefix, now_ms).await
    } else {
        let at_ms = now_ms.saturating_add(i64::try_from(grace.as_millis()).unwrap_or(i64::MAX));
        store.expire(&old.prefix, at_ms).await.map_err(|error| error.to_string())
    };
    match ended {
        Ok(old) => Ok((key, new, old)),
        // The new key is not shown: whoever wants to rotate tries again, and finds it in the list.
        Err(reason) => {
            let undone = revoke(store, config, &new.prefix, now_ms).await;
            let new = new.prefix;
            Err(match undone {
                Ok(_) => format!("{}: goes on as before: {reason}", old.prefix),
                Err(_) => format!(
                    "{}: goes on as before, and {new} is to be revoked: {reason}",
                    old.prefix
                ),
            })
        }
    }
}

/// Processes use a record for up to `process_ttl` after they read it, so an end nearer than that could
/// pass unseen.
fn parse_grace(text: &str, process_ttl: Duration) -> Result<Duration, String> {
    let grace = if text == "0" { Some(Duration::ZERO) } else { parse_duration(text) };
    let grace =
        grace.ok_or_else(|| format!("--grace {text}: give a duration such as 24h, or 0"))?;
    if !grace.is_zero() && grace < process_ttl {
        let least = process_ttl.as_secs_f64();
        return Err(format!("--grace {text}: give 0, or at least {least} s (keys.process_ttl)"));
    }
    Ok(grace)
}

async fn revoke(
    store: &dyn KeyStore,
    config: &Config,
    prefix: &str,
    now_ms: i64,
) -> Result<KeyRecord, String> {
    let revoked = store.revoke(prefix, now_ms).await;
    let record = revoked.map_err(|error| format!("{prefix}: {error}"))?;
    tell(config, Change::Revoked(record.hash)).await;
    Ok(record)
}

enum Change {
    Created(KeyHash),
    Revoked(KeyHash),
}

/// Tells running processes. The store has spoken already: who does not hear asks it before long.
async fn tell(config: &Config, change: Change) {
    let told = match engine::open_redis(config).await {
        Ok(Some((cache, bus))) => tell_servers(cache.as_ref(), bus.as_ref(), config, change).await,
        Ok(None) => Ok(()),
        Err(OpenError(reason)) => Err(reason),
    };
    if let Err(error) = told {
        let within = config.keys.process_ttl.as_secs_f64();
        tracing::warn!(%error, "not every process was told; all know within {within} s");
    }
}

/// The cache before the bus: who hears the notice must find the mark.
async fn tell_servers(
    cache: &dyn Cache,
    bus: &dyn Bus,
    config: &Config,
    change: Change,
) -> Result<(), String> {
    let (hash, marked) = match change {
        Change::Created(hash) => (hash, Ok(())),
        Change::Revoked(hash) => (hash, cache.revoke_key(&hash, config.keys.cache_ttl).await),
    };
    let announced = auth::announce(bus, &hash).await;
    marked.map_err(|error| error.to_string())?;
    announced.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_is_nothing_or_long_enough_to_be_seen() {
        let ttl = Duration::from_secs(30);
        for nothing in ["0", "0s"] {
            assert_eq!(parse_grace(nothing, ttl), Ok(Duration::ZERO));
        }
        assert_eq!(parse_grace("24h", ttl), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_grace("30s", ttl), Ok(ttl));
        assert!(parse_grace("29s", ttl).unwrap_err().contains("at least 30 s"));
        assert!(parse_grace("soon", ttl).unwrap_err().contains("24h"));
    }
}
