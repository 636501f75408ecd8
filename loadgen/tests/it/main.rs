//! The load generator against servers that misbehave on purpose, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test, as the test itself does")]

mod dashboards;
mod devices;
mod server;
mod strangers;
