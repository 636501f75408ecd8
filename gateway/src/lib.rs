//! The gateway: from a device's POST to the log.
//!
//! A request walks through few rooms: `router` (admission, counting) → `ingest` (key, body, answer) →
//! `commit` (lock, append, outcome; in groups). Everything that is the client's fault is found before
//! the first lock is taken.

use axum::Router;
use pulsestream_shared::admin::Dependency;
use pulsestream_shared::auth::{Keyring, Pepper};
use pulsestream_shared::engine::OpenError;
use pulsestream_shared::metrics::Metrics;
use pulsestream_shared::service::{Context, Role};
use std::sync::Arc;

mod body;
mod commit;
mod idempotency;
mod ingest;
mod metrics;
mod router;

/// How a gateway process names itself. It cannot work without the log alone: keys and locks have
/// fallbacks, and a gateway taken out for a missing database would turn a small outage into a big one.
pub const ROLE: Role = Role { name: "gateway", required: &[Dependency::Log] };

/// Builds the routes and starts the background tasks.
///
/// # Errors
/// [`OpenError`] when the store cannot tell the pepper of the API keys.
pub async fn build(context: Context, keyring: Arc<Keyring>) -> Result<Router, OpenError> {
    let metrics = Arc::new(metrics::GatewayMetrics::new(&context));
    let committer = commit::start(&context, metrics.clone());
    let ingest = ingest::Ingest {
        keyring,
        committer,
        config: context.config.ingest.clone(),
        metrics: metrics.clone(),
    };
    Ok(router::router(Arc::new(ingest), metrics, context.config.ingest.max_in_flight))
}

/// Makes the keyring of a process; the gateway and the broadcaster of one process share it.
///
/// # Errors
/// [`OpenError`] when the store cannot tell the pepper of the API keys.
pub async fn keyring(context: &Context) -> Result<Arc<Keyring>, OpenError> {
    let config = context.config.keys.clone();
    let pepper = Pepper::load(&config, context.engine.keys.as_ref())
        .await
        .map_err(|error| OpenError(error.to_string()))?;
    let counts = Keyring::counts(&Metrics(&context.registry));
    Ok(Arc::new(Keyring::new(&context.engine, pepper, config, counts)))
}
