//! Devices and dashboards as load.
//!
//! [`ingest`] plays devices that POST events and writes down, per event, what it was told. [`live`]
//! plays dashboards that hold WebSockets and counts what is repeated, out of order or missing.
//! [`mod@bench`] measures capacity as a ratio to a bare handler ([`baseline`]) in interleaved rounds,
//! [`strangers`] what a flood of unknown keys does to the latency of those who have one, and [`sends`] the
//! least that live delivery could cost.
//!
//! Deliberately absent: any knowledge of the product's inside. This crate depends on no other crate of
//! the workspace and speaks only the public HTTP and WebSocket contract, so that a mistake in a shared
//! type cannot hide itself on both ends. Comparing a ledger with what the stores hold is done by the
//! end-to-end tests.

pub mod baseline;
pub mod bench;
mod clock;
pub mod control;
mod http;
pub mod ingest;
mod jsonl;
pub mod latency;
pub mod ledger;
pub mod live;
mod process;
pub mod sends;
pub mod strangers;
