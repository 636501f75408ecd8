//! What goes wrong in production, done on purpose: logs that were cut, records that are no events, servers
//! that are away, bad configurations, signals.

#![expect(clippy::panic, reason = "tests end by panicking")]
#![expect(clippy::print_stderr, reason = "times that are told, not judged")]

mod bad_start;
mod brokers;
mod cut_log;
mod cut_while_live;
mod database_faults;
mod dead_letters;
mod dead_producer;
mod fallen_out;
mod first_place;
mod full_log;
mod kafka_faults;
mod keys;
mod keys_away;
mod life;
mod load;
mod lost_keys;
mod outage;
mod own_kafka;
mod own_postgres;
mod own_redis;
mod own_services;
mod poison;
mod protocols;
mod resumed;
mod rolling;
mod support;
mod tls;
