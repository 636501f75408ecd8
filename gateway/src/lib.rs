//! The gateway: from a device's POST to the log, and from the store back to whoever reads.
//!
//! A request walks through few rooms: `router` → `admission` → `ingest` or `batch` (key, body,
//! answer) → `limits` (of key and device) → `commit` (lock, append, outcome; in groups). Everything that
//! is the client's fault is found before the first lock is taken. `read` stands beside this path and
//! shares the router alone with it.

use pulsestream_shared::admin::Dependency;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::engine::OpenError;
use pulsestream_shared::metrics::Metrics;
use pulsestream_shared::service::{Context, Role, Routes};
use serde_json::Value;
use std::sync::Arc;

mod admission;
mod arrival;
mod batch;
mod body;
mod budget;
mod commit;
mod docs_page;
mod encoding;
mod headers;
#[cfg(test)]
mod hostile;
mod idempotency;
mod ingest;
mod limits;
mod metrics;
mod openapi;
mod payload;
mod read;
mod router;
mod shedding;

pub use openapi::document as openapi;

/// How a gateway process names itself. It cannot work without the log alone: keys and locks have
/// fallbacks, and a gateway taken out for a missing database would turn a small outage into a big one.
pub const ROLE: Role = Role { name: "gateway", required: &[Dependency::Log] };

/// Builds the routes and starts the background tasks.
///
/// # Errors
/// None now; the signature is that of every service.
pub async fn build(context: Context, keyring: Arc<Keyring>) -> Result<Routes, OpenError> {
    let document = openapi(&context.config, []);
    build_beside(context, keyring, &document).await
}

/// The same beside other services of the process, whose routes the document describes too.
///
/// # Errors
/// As [`build`].
pub async fn build_beside(
    context: Context,
    keyring: Arc<Keyring>,
    document: &Value,
) -> Result<Routes, OpenError> {
    let metrics = Arc::new(metrics::GatewayMetrics::new(&context));
    let committer = commit::start(&context, metrics.clone());
    let (limits, reports) = limits::Limits::new(
        &context.config.limits,
        context.engine.cache.clone(),
        &Metrics(&context.registry),
    );
    context.spawn("limit reports", reports.run(context.shutdown.stop.clone()));
    let most_bytes = context.config.ingest.max_in_flight_bytes;
    let read = Arc::new(read::Read {
        keyring: keyring.clone(),
        query: context.engine.query.clone(),
        log: context.engine.log.clone(),
        log_timeout: context.config.read.timeout,
        cache: context.engine.cache.clone(),
        committer: committer.clone(),
        metrics: metrics.clone(),
        bounds: read::Bounds::new(&context.config),
        turns: read::Turns::new(&context.config),
    });
    let ingest = ingest::Ingest {
        keyring,
        limits,
        bytes: budget::ByteBudget::new(metrics.bytes_in_flight.clone(), most_bytes),
        committer,
        config: context.config.ingest.clone(),
        metrics: metrics.clone(),
    };
    let most = context.config.ingest.max_in_flight;
    let rest = read::routes(read.clone())
        .merge(openapi::routes(document))
        .merge(docs_page::routes(document));
    Ok(router::router(&Arc::new(ingest), &read, rest, &metrics, context.traces, most))
}
