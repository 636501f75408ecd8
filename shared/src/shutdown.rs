//! How a process ends: first it leaves, then it drains, then it stops.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The three steps of an end, handed to everything that runs.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Go on, but tell everybody to go elsewhere: `/readyz` answers 503, answers close connections.
    pub leave: CancellationToken,
    /// Take nothing new: `/readyz` answers 503, listeners close, open requests are finished.
    pub drain: CancellationToken,
    /// Requests are done: background tasks write out what they hold and end.
    pub stop: CancellationToken,
}

impl Shutdown {
    /// On the first SIGTERM leaves, and drains when the grace is over; exits at once on the second signal.
    /// SIGINT drains without grace: it comes from a person, who waits.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn on_signals(&self, grace: Duration) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (leave, drain) = (self.leave.clone(), self.drain.clone());
        tokio::spawn(async move {
            let (name, grace) = tokio::select! {
                _ = terminate.recv() => ("SIGTERM", grace),
                _ = interrupt.recv() => ("SIGINT", Duration::ZERO),
            };
            tracing::info!(signal = name, ?grace, "draining; a second signal ends at once");
            leave.cancel();
            tokio::spawn(async move {
                tokio::time::sleep(grace).await;
                drain.cancel();
            });
            let code = tokio::select! { _ = terminate.recv() => 143, _ = interrupt.recv() => 130 };
            tracing::warn!("second signal: ending now");
            std::process::exit(code);
        });
        Ok(())
    }
}
