//! What goes wrong in production, done on purpose: logs that were cut, records that are no events, servers
//! that are away, bad configurations, signals.

mod bad_start;
mod cut_log;
mod fallen_out;
mod first_place;
mod full_log;
mod life;
mod outage;
mod own_kafka;
mod poison;
mod support;
