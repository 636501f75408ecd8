//! What a device and a dashboard may rely on: the HTTP contract, idempotency through crashes, the live
//! stream, and Redis away.

#![expect(clippy::panic, reason = "tests end by panicking")]

mod access;
mod batch;
mod contract;
mod crashes;
mod described;
mod idempotency;
mod limits;
mod live;
mod manners;
mod raw;
mod read;
mod read_trouble;
mod redis;
mod refusals;
mod repeats;
mod selves;
mod slow;
