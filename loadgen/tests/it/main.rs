//! The load generator against servers that misbehave on purpose, over real sockets.

mod dashboards;
mod devices;
mod server;
