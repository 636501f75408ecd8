//! What a person sees when everything runs: where, with which data, and a command that works.

use std::io::Write as _;
use std::net::SocketAddr;

use pulsestream_shared::engine::{self, OpenError};
use pulsestream_shared::service::Context;

use crate::keys;

/// Prints the banner. On the very first start on loopback a key is made and shown, once.
pub(crate) async fn print(context: &Context, address: SocketAddr) -> Result<(), OpenError> {
    let config = &context.config;
    let first_key = if config.server.is_loopback() { first_key(context).await? } else { None };
    let data = if engine::is_distributed(config) {
        "on the configured servers".to_owned()
    } else {
        let dir = &config.embedded.data_dir;
        dir.canonicalize().unwrap_or_else(|_| dir.clone()).display().to_string()
    };
    let (key, about_key) = match &first_key {
        Some(key) => (key.as_str(), format!("first API key: {key}  (shown this once)\n")),
        None => ("$API_KEY", "API keys:      pulsestream keys create --client NAME\n".to_owned()),
    };
    let scheme = config.server.scheme();
    let text = format!(
        "\nPulseStream {version} is ready.\n\
         listening:     {scheme}://{address}\n\
         live page:     {scheme}://{address}/\n\
         documentation: {scheme}://{address}/docs\n\
         data:          {data}\n\
         {about_key}\n\
         Send an event:\n\
         curl -i {scheme}://{address}/v1/events -H 'x-api-key: {key}' -H 'content-type: application/json' \
         -H \"Idempotency-Key: $(uuidgen 2>/dev/null || cat /proc/sys/kernel/random/uuid)\" \
         -d '{{\"deviceId\":\"73d7049a-9f6b-4a36-8d6c-0d6a8a4a4a4a\",\"eventType\":\"temperature\",\
         \"value\":21.5,\"timestamp\":'$(date +%s)000'}}'\n\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        tracing::debug!(%error, "nobody reads standard output");
    }
    Ok(())
}

async fn first_key(context: &Context) -> Result<Option<String>, OpenError> {
    let store = &context.engine.keys;
    let unusable = |error: &dyn std::fmt::Display| OpenError(error.to_string());
    if !store.list().await.map_err(|error| unusable(&error))?.is_empty() {
        return Ok(None);
    }
    let key = keys::make_first(store.as_ref(), &context.config)
        .await
        .map_err(|reason| OpenError(reason.clone()))?;
    Ok(Some(key))
}
