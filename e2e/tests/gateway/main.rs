//! What a device and a dashboard may rely on: the HTTP contract, idempotency through crashes, the live
//! stream, and Redis away.

mod contract;
mod raw;
