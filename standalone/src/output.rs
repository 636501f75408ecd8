//! What commands print.

use std::io::Write as _;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Prints to standard output.
pub(crate) fn print(text: &str) -> Result<(), String> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| format!("standard output: {error}"))
}

/// A time as people and programs read it, to the second; `None` beyond the calendar.
pub(crate) fn time_text(ms: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(ms.div_euclid(1_000)).ok()?.format(&Rfc3339).ok()
}
