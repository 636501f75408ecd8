//! What goes wrong in production, done on purpose: logs that were cut, records that are no events, servers
//! that are away, bad configurations, signals.

mod cut_log;
mod fallen_out;
mod first_place;
mod poison;
mod support;
