//! What every service of PulseStream shares: the event and its record, the four ports with their
//! engines, configuration, telemetry, start and shutdown.
//!
//! Nothing here knows of a gateway, a consumer or a broadcaster.

pub mod admin;
pub mod auth;
pub mod bucket;
pub mod bus;
pub mod cache;
pub mod clock;
pub mod codec;
pub mod config;
pub mod dead_letter;
pub mod engine;
pub mod event;
pub mod header_list;
pub mod log;
pub mod metadata;
pub mod metrics;
pub mod openapi;
pub mod origins;
pub mod page;
mod plain_json;
pub mod problem;
pub mod process;
pub mod request_id;
pub mod retry;
mod server;
pub mod service;
pub mod shutdown;
pub mod store;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
#[expect(clippy::unwrap_used, clippy::panic, reason = "tests end by panicking")]
pub mod testing;
pub mod traces;
