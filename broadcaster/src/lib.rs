//! The broadcaster: from the log to every dashboard that asked.
//!
//! An event walks through few rooms: `relay` (reads the log as a group, publishes ranges on the bus) →
//! `hub` (every broadcaster hears every range, checks the chain, repairs holes from the log) →
//! `feed`: `ring` (what was shown lately) and `group` (what those who ask for the same wait for), behind them
//! the log in `blocks`. A `subscription` reads there in its own time, from a `cursor` that `resume` has
//! judged, and a `delivery` sends what it finds, all of it or what `conflate` leaves of it → `socket`, `sse`
//! and `poll`, one task a connection.
//!
//! WebSockets that are shown the same share one delivery once they have caught up: a `fan_out` writes to all
//! of them, and their own tasks (`subs`) sleep.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use pulsestream_shared::admin::Dependency;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::config;
use pulsestream_shared::engine::OpenError;
use pulsestream_shared::openapi::Operation;
use pulsestream_shared::problem::{not_allowed, not_found};
use pulsestream_shared::service::{Context, Role, Routes};

mod access;
mod blocks;
mod catch_up;
mod chain;
mod close;
mod commands;
mod conflate;
mod cursor;
mod delivery;
#[cfg(test)]
mod described;
mod dialect;
mod digest;
mod doors;
mod ends;
mod fan_out;
mod feed;
mod filter;
mod frame;
mod framed;
mod frames;
mod group;
mod handshake;
mod heart;
mod hub;
mod index;
mod issue;
mod line;
mod load;
mod metrics;
#[cfg(test)]
mod model;
mod newcomer;
mod open_keys;
mod origin;
mod page;
mod parcel;
mod poll;
mod range;
mod relay;
mod repeats;
mod resume;
mod ring;
mod snapshot;
mod socket;
mod sse;
mod stats;
mod stream;
mod subs;
mod subscription;
mod token;
mod wire;
mod wish;

/// How a broadcaster process names itself. It lives without the store and, reading the log itself,
/// without the bus.
pub const ROLE: Role = Role { name: "broadcaster", required: &[Dependency::Log] };

/// Builds the routes and starts the relay and the hub.
///
/// # Errors
/// [`OpenError`] when the log cannot be read at all.
pub async fn build(context: Context, keyring: Arc<Keyring>) -> Result<Routes, OpenError> {
    let feed = feed::Feed::new(context.engine.log.clone(), bounded(&context.config.live));
    let sent = metrics::Sent::new(&context.registry, &context.freshness);
    let fan_outs = Arc::new(fan_out::FanOuts::new(sent.clone()));
    let load = load::Load::new(&context, feed.clone(), fan_outs.clone());
    let metrics = Arc::new(metrics::LiveMetrics::new(&context, load, sent));
    let stop = context.shutdown.stop.clone();

    let hub = hub::Hub::start(&context, feed.clone(), metrics.clone()).await?;
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
        access: access::Access::new(keyring, keys, &context.config),
        porch: newcomer::Porch::default(),
        feed,
        fan_outs,
        ends,
        snapshots: snapshot::Snapshots::new(context.engine.query.clone(), &context.config),
        metrics,
        config: context.config.live.clone(),
        drain: context.shutdown.drain.clone(),
        sockets: context.tasks.clone(),
    };
    let router = Router::new()
        .route("/v1/stream", get(stream::open).fallback_service(not_allowed("GET")))
        .route("/v1/stream/sse", get(stream::sse).fallback_service(not_allowed("GET")))
        .route("/v1/stream/poll", get(stream::poll).fallback_service(not_allowed("GET")))
        .route("/v1/stream/stats", get(stats::stats).fallback_service(not_allowed("GET, HEAD")))
        .route(
            "/v1/stream/tokens",
            post(issue::issue)
                .layer(DefaultBodyLimit::max(issue::MOST_BODY_BYTES))
                .fallback_service(not_allowed("POST")),
        )
        .fallback(not_found);
    let page = page::routes(&context.config.live.gateway_url);
    Ok(router.with_state(Arc::new(stream)).merge(page).into())
}

/// The routes that answer once, in the API's description. Streams are described in `docs/live.md`.
pub fn operations(config: &config::Config) -> [Operation; 2] {
    [issue::operation(&config.live), stats::operation()]
}

fn bounded(config: &config::Live) -> feed::Bounded {
    feed::Bounded {
        ring: ring::Kept { bytes: config.ring_bytes, age: config.ring_age },
        queue_bytes: config.queue_bytes,
        lag: config.max_lag,
        repeat_window: config.repeat_window,
    }
}
