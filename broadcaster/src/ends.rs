//! Where the log begins and ends now, for those who connect: "from now" begins at its end.
//!
//! The hub may lie behind the log, another broadcaster before it. A socket that moved here from there
//! and began at the hub's place would be shown once more what it has seen.
//!
//! One read serves everybody who asked before it began, and the next begins a little later, so a thousand
//! sockets that reconnect at once cost a few reads. Who comes alone waits for nothing.

use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::log::{Bounds, EventLog, LogError, Topic};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

/// Whoever waits longer begins at the hub's place: a log that does not answer holds up no handshake.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between the beginnings of two reads. Each is a question to every broker, and takes as much as opening five
/// sockets; unspaced, one was asked for every tenth.
const SPACING: Duration = Duration::from_millis(20);
/// Askers that wait for one read; more wait at the door.
const WAITING: usize = 1_024;

type Asker = oneshot::Sender<Arc<[Bounds]>>;

/// Asks for the log's ends.
pub(crate) struct Ends(mpsc::Sender<Asker>);

/// Reads them.
pub(crate) struct EndsReader {
    log: Arc<dyn EventLog>,
    askers: mpsc::Receiver<Asker>,
}

impl Ends {
    /// The asking and the reading side.
    pub(crate) fn of(log: Arc<dyn EventLog>) -> (Self, EndsReader) {
        let (sender, askers) = mpsc::channel(WAITING);
        (Self(sender), EndsReader { log, askers })
    }

    /// The first and next offset of every partition, by number, as they are after this call began; `None`
    /// when the log does not tell in time.
    pub(crate) async fn bounds(&self) -> Option<Arc<[Bounds]>> {
        let (asker, answer) = oneshot::channel();
        let ask = async {
            self.0.send(asker).await.ok()?;
            answer.await.ok()
        };
        let bounds = timeout(PATIENCE, ask).await.ok().flatten();
        if bounds.is_none() {
            tracing::warn!("the log does not tell its ends");
        }
        bounds
    }
}

impl EndsReader {
    /// Runs until nobody can ask any more.
    pub(crate) async fn run(mut self) {
        let mut waiting: Vec<Asker> = Vec::new();
        while self.askers.recv_many(&mut waiting, WAITING).await > 0 {
            let next = Instant::now() + SPACING;
            match self.read().await {
                // An asker that lost patience is gone.
                Ok(bounds) => waiting.drain(..).for_each(|asker| drop(asker.send(bounds.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "the log's ends are not known");
                    waiting.clear();
                }
            }
            sleep_until(next).await;
        }
    }

    async fn read(&self) -> Result<Arc<[Bounds]>, LogError> {
        Ok(self.log.bounds(Topic::Raw).await?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::model::Log;

    #[tokio::test]
    async fn who_asks_while_others_wait_is_served_with_them() {
        let log = Arc::new(Log::default());
        let (ends, reader) = Ends::of(log.clone());
        tokio::spawn(reader.run());
        let ends = Arc::new(ends);
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let ends = ends.clone();
            asking.spawn(async move { ends.bounds().await.is_some() });
            // The reader has its turn: without the spacing it would read for each.
            tokio::task::yield_now().await;
        }
        assert!(asking.join_all().await.into_iter().all(|told| told));
        let told = log.told.load(Ordering::Relaxed);
        assert!((2..20).contains(&told), "{told}");
    }
}
