//! What a device and a dashboard may rely on: the HTTP contract, idempotency through crashes, the live
//! stream, and Redis away.

#![expect(clippy::panic, reason = "tests end by panicking")]
#![expect(clippy::print_stderr, reason = "times that are told, not judged")]

mod access;
mod batch;
mod breaker;
mod contract;
mod crashes;
mod dead_letters;
mod described;
mod docs;
mod doors;
mod frames;
mod hostile;
mod idempotency;
mod isolation;
mod latest;
mod limits;
mod live;
mod manners;
mod original;
mod raw;
mod read;
mod read_trouble;
mod redis;
mod refusals;
mod repeats;
mod resume;
mod selves;
mod slow;
mod strangers;
mod streams;
mod telemetry;
mod tokens;
