//! The consumer: from the log to the store.
//!
//! A record walks through few rooms: `reader` (assignment, place, gathering) → `batch` (decoding, who
//! is dead already) → `writer` (until the store has it) → the store (one transaction) → `dead` (copies of
//! dead letters, inside that transaction).

use axum::Router;
use pulsestream_shared::admin::Dependency;
use pulsestream_shared::engine::OpenError;
use pulsestream_shared::problem::not_found;
use pulsestream_shared::service::{Context, Role, Routes};
use std::sync::Arc;

mod batch;
mod clients;
mod dead;
mod lag;
mod metrics;
mod place;
mod reader;
mod writer;

/// How a consumer process names itself; it has no use without either end.
pub const ROLE: Role = Role { name: "consumer", required: &[Dependency::Log, Dependency::Store] };

/// The consumer cannot go on; already logged.
struct Stopped;

/// Starts the consumer's tasks. It answers nothing but the probes.
///
/// # Errors
/// [`OpenError`] when the group cannot be joined.
pub async fn build(context: Context) -> Result<Routes, OpenError> {
    let metrics = Arc::new(metrics::ConsumerMetrics::new(&context));
    let stop = context.shutdown.drain.clone();
    let reader = reader::Reader::join(&context, metrics.clone()).await?;
    context.spawn_until("store writer", stop.clone(), reader.run(stop.clone()));
    let lag = lag::Lag::new(&context, metrics);
    context.spawn_until("lag", stop.clone(), lag.run(stop));
    Ok(Router::new().fallback(not_found).into())
}
