//! What every service of PulseStream shares: the event and its record, the four ports with their
//! engines, configuration, telemetry, start and shutdown.
//!
//! Nothing here knows of a gateway, a consumer or a broadcaster.

pub mod bus;
pub mod cache;
pub mod clock;
pub mod codec;
pub mod config;
pub mod event;
pub mod log;
pub mod metadata;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
