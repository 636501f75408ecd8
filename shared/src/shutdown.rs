//! How a process ends: first it drains, then it stops.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two steps of an end, handed to everything that runs.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take nothing new: `/readyz` answers 503, listeners close, open requests are finished.
    pub drain: CancellationToken,
    /// Requests are done: background tasks write out what they hold and end.
    pub stop: CancellationToken,
}

impl Shutdown {
    /// Drains on the first SIGTERM or SIGINT and exits at once on the second.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let drain = self.drain.clone();
        tokio::spawn(async move {
            let name = tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
            tracing::info!(signal = name, "draining; a second signal ends at once");
            drain.cancel();
            let code = tokio::select! { _ = terminate.recv() => 143, _ = interrupt.recv() => 130 };
            tracing::warn!("second signal: ending now");
            std::process::exit(code);
        });
        Ok(())
    }
}
