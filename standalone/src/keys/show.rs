//! Keys as people and programs read them. The key itself is shown once, when it is made.

use pulsestream_shared::clock;
use pulsestream_shared::store::KeyRecord;
use serde_json::json;

use crate::output::{print, time_text};

pub(super) fn print_created(key: &str, record: &KeyRecord, as_json: bool) -> Result<(), String> {
    if as_json {
        let mut object = describe(record);
        object["key"] = json!(key);
        return print(&format!("{object}\n"));
    }
    print(&format!("{key}\n"))?;
    tracing::info!(client = %record.client_name, prefix = %record.prefix, "this key is shown once");
    Ok(())
}

/// The key is all that goes to standard output in the form for people, as with a created one.
pub(super) fn print_rotated(
    key: &str,
    new: &KeyRecord,
    old: &KeyRecord,
    as_json: bool,
) -> Result<(), String> {
    if as_json {
        let mut object = describe(new);
        object["key"] = json!(key);
        object["replaces"] = describe(old);
        return print(&format!("{object}\n"));
    }
    print_created(key, new, false)?;
    let end = old.revoked_at_ms.or(old.expires_at_ms).and_then(time_text).unwrap_or_default();
    tracing::info!(prefix = %old.prefix, %end, "the old key ends");
    Ok(())
}

pub(super) fn print_list(keys: &[KeyRecord], as_json: bool) -> Result<(), String> {
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

pub(super) fn state(key: &KeyRecord) -> &'static str {
    match (key.revoked_at_ms, key.is_valid_at(clock::unix_ms())) {
        (Some(_), _) => "revoked",
        (None, true) => "valid",
        (None, false) => "expired",
    }
}

pub(super) fn describe(key: &KeyRecord) -> serde_json::Value {
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
