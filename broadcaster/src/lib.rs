//! The broadcaster: from the log to every dashboard that asked.
//!
//! An event walks through few rooms: `relay` (reads the log as a group, publishes ranges on the bus) →
//! `hub` (every broadcaster hears every range, checks the chain, repairs holes from the log) →
//! `registry` (who wants it) → `socket` (one task a connection).

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use pulsestream_shared::admin::Dependency;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::engine::OpenError;
use pulsestream_shared::problem::{not_allowed, not_found};
use pulsestream_shared::service::{Context, Role, Routes};

mod chain;
mod ends;
mod filter;
mod hub;
mod metrics;
mod open_keys;
mod range;
mod registry;
mod relay;
mod repeats;
mod socket;
mod stream;

/// How a broadcaster process names itself. It lives without the store and, reading the log itself,
/// without the bus.
pub const ROLE: Role = Role { name: "broadcaster", required: &[Dependency::Log] };

/// Builds the routes and starts the relay and the hub.
///
/// # Errors
/// [`OpenError`] when the log cannot be read at all.
pub async fn build(context: Context, keyring: Arc<Keyring>) -> Result<Routes, OpenError> {
    let metrics = Arc::new(metrics::LiveMetrics::new(&context));
    let registry = Arc::new(registry::Registry::default());
    let stop = context.shutdown.stop.clone();

    let hub = hub::Hub::start(&context, registry.clone(), metrics.clone()).await?;
    context.spawn("hub", hub.run(stop.clone()));
    let relay = relay::Relay::join(&context, metrics.clone()).await?;
    let drain = context.shutdown.drain.clone();
    context.spawn_until("relay", drain.clone(), relay.run(drain));

    let (ends, reader) = ends::Ends::of(context.engine.log.clone());
    let keys = open_keys::OpenKeys::new(keyring.clone());
    let (reading, looking) = (reader.run(), keys.clone().run());
    let stopped = stop.clone();
    context.spawn("log ends", async move {
        stop.run_until_cancelled(reading).await.unwrap_or_default()
    });
    context.spawn("open keys", async move {
        stopped.run_until_cancelled(looking).await.unwrap_or_default()
    });

    let stream = stream::Stream {
        keyring,
        keys,
        registry,
        ends,
        metrics,
        config: context.config.live.clone(),
        dev: context.config.server.dev,
        drain: context.shutdown.drain.clone(),
        sockets: context.tasks.clone(),
    };
    let open = get(stream::open).fallback_service(not_allowed("GET"));
    let router = Router::new().route("/v1/stream", open).fallback(not_found);
    Ok(router.with_state(Arc::new(stream)).into())
}
