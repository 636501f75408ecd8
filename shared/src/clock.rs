//! The wall clock, read in one place. State machines take `now` as an argument instead.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in milliseconds.
pub fn unix_ms() -> i64 {
    unix_us() / 1_000
}

/// Seconds from one time to another, both unix microseconds; 0 when the other clock is ahead.
pub fn seconds_between(from_us: i64, to_us: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "years fit to the microsecond")]
    let us = (to_us - from_us).max(0) as f64;
    us / 1e6
}

/// Unix time in microseconds. A clock before 1970 reads as 1970.
pub fn unix_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}
