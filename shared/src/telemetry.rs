//! Log lines: text for people, JSON for machines, to standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::{LogFormat, Telemetry};

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `telemetry.log_level` is not a filter.
    #[error("telemetry.log_level: {0}")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// Somebody logs already.
    #[error(transparent)]
    Started(#[from] TryInitError),
}

/// Starts logging for the whole process; called once, by `main`.
///
/// # Errors
/// [`TelemetryError`].
pub fn start(config: &Telemetry) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder().parse(&config.log_level)?;
    let terminal = std::io::stderr().is_terminal();
    let json = match config.log_format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !terminal,
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal);
    if json {
        lines.json().flatten_event(true).finish().try_init()?;
    } else {
        lines.with_target(false).finish().try_init()?;
    }
    Ok(())
}
