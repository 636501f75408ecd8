//! One plain WebSocket: each event is one text frame holding the event's JSON, and nothing else is sent
//! as text (the original system's contract). What the client sends is read and ignored.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use pulsestream_shared::config;
use rand::RngExt as _;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::metrics::LiveMetrics;
use crate::open_keys::OpenKey;
use crate::registry::{Inbox, Registration};

/// Frames written with one flush.
const FRAMES_PER_WRITE: usize = 128;
/// A socket that takes nothing for so long is closed.
const STUCK: Duration = Duration::from_secs(15);

/// Why the server closes, with the code of the table in `docs/live.md`.
#[derive(Debug, Clone, Copy)]
enum Close {
    /// Reconnect, after a pause of your own choosing: this process ends.
    Restart,
    /// You were too slow, or the log lost something: reconnect and expect a gap.
    Missed,
    /// The key you came with works no more: come with another.
    Revoked,
}

impl Close {
    const fn frame(self) -> (u16, &'static str) {
        match self {
            Self::Restart => (1012, "restart"),
            Self::Missed => (4008, "too slow: events were missed"),
            Self::Revoked => (4010, "the API key was revoked or has expired"),
        }
    }

    /// How long to wait for the client's own close. A slow one has much to read before it.
    const fn patience(self) -> Duration {
        match self {
            Self::Restart | Self::Revoked => Duration::from_secs(1),
            Self::Missed => Duration::from_secs(5),
        }
    }
}

pub(crate) struct Socket {
    pub(crate) inbox: Inbox,
    /// Ends the subscription with the socket.
    pub(crate) registration: Registration,
    /// By which it was opened.
    pub(crate) key: Option<Arc<OpenKey>>,
    pub(crate) metrics: Arc<LiveMetrics>,
    pub(crate) config: config::Live,
    pub(crate) drain: CancellationToken,
}

/// The connection is gone, or the client closed it.
struct Gone;

impl From<axum::Error> for Gone {
    fn from(error: axum::Error) -> Self {
        tracing::debug!(%error, "socket ended");
        Self
    }
}

impl Socket {
    /// Serves the socket until either side ends it.
    pub(crate) async fn run(mut self, mut websocket: WebSocket) {
        let open = self.metrics.connections.with_label_values(&["websocket"]);
        open.inc();
        if let Ok(close) = self.serve(&mut websocket).await {
            let (code, reason) = close.frame();
            self.metrics.closes.with_label_values(&[&code.to_string()]).inc();
            let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
            // The client may be stuck or gone; then there is nobody to tell.
            if timeout(close.patience(), say_goodbye(&mut websocket, frame)).await.is_err() {
                tracing::debug!(code, "close frame not delivered");
            }
        }
        drop(self.registration);
        open.dec();
    }

    async fn serve(&mut self, websocket: &mut WebSocket) -> Result<Close, Gone> {
        let mut frames = Vec::with_capacity(FRAMES_PER_WRITE);
        let mut heart = Heart::new(&self.config);
        let ended = self.key.as_ref().map(|key| key.ended.clone()).unwrap_or_default();
        loop {
            // Cancel safe: recv_many takes nothing when cancelled, the stream keeps what it has read.
            tokio::select! {
                biased;
                () = ended.cancelled() => return Ok(Close::Revoked),
                () = self.inbox.missed.cancelled() => return Ok(Close::Missed),
                () = self.drain.cancelled() => {
                    self.inbox.frames.close();
                    while self.inbox.frames.recv_many(&mut frames, FRAMES_PER_WRITE).await > 0 {
                        self.write(websocket, &mut frames).await?;
                    }
                    return Ok(Close::Restart);
                }
                () = sleep_until(heart.next) => {
                    if !heart.beat() {
                        return Err(Gone);
                    }
                    send(websocket, Message::Ping(Bytes::new())).await?;
                }
                message = websocket.next() => match message {
                    Some(Ok(Message::Pong(_))) => heart.answered(),
                    Some(Ok(Message::Close(_))) | None => return Err(Gone),
                    Some(message) => drop(message?),
                },
                taken = self.inbox.frames.recv_many(&mut frames, FRAMES_PER_WRITE) => {
                    if taken == 0 {
                        return Ok(Close::Missed);
                    }
                    // A stream whose client takes nothing ends with its key too. The library keeps what
                    // a write given up had handed to it, so the close frame comes after whole frames.
                    let written = tokio::select! {
                        biased;
                        () = ended.cancelled() => return Ok(Close::Revoked),
                        written = self.write(websocket, &mut frames) => written?,
                    };
                    if let Stuck::Yes = written {
                        return Ok(Close::Missed);
                    }
                }
            }
        }
    }

    async fn write(
        &self,
        websocket: &mut WebSocket,
        frames: &mut Vec<Utf8Bytes>,
    ) -> Result<Stuck, Gone> {
        let bytes: usize = frames.iter().map(|frame| frame.len()).sum();
        let written = timeout(STUCK, async {
            for frame in frames.drain(..) {
                websocket.feed(Message::Text(frame)).await?;
            }
            websocket.flush().await
        });
        let written = written.await;
        self.inbox.queued.fetch_sub(bytes, Ordering::Relaxed);
        match written {
            Ok(written) => written.map(|()| Stuck::No).map_err(Gone::from),
            Err(_) => Ok(Stuck::Yes),
        }
    }
}

/// Sends the close frame and reads until the client has answered it: a connection dropped with bytes of
/// the client unread (a pong is enough) is reset, and what it was still to receive is lost.
async fn say_goodbye(websocket: &mut WebSocket, frame: CloseFrame) {
    if websocket.send(Message::Close(Some(frame))).await.is_err() {
        return;
    }
    while let Some(Ok(_)) = websocket.next().await {}
}

enum Stuck {
    Yes,
    No,
}

async fn send(websocket: &mut WebSocket, message: Message) -> Result<(), Gone> {
    match timeout(STUCK, websocket.send(message)).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(Gone),
    }
}

/// When to ping, and whether the client still lives.
struct Heart {
    interval: Duration,
    patience: Duration,
    /// When to look next.
    next: Instant,
    waiting: bool,
}

impl Heart {
    /// The first beat is random, so that sockets opened together do not beat together.
    fn new(config: &config::Live) -> Self {
        let first = config.ping_interval.mul_f64(rand::rng().random_range(0.0..1.0));
        Self {
            interval: config.ping_interval,
            patience: config.pong_timeout,
            next: Instant::now() + first,
            waiting: false,
        }
    }

    /// True when a ping is due, false when the last one was never answered.
    fn beat(&mut self) -> bool {
        if self.waiting {
            return false;
        }
        self.waiting = true;
        self.next = Instant::now() + self.patience;
        true
    }

    fn answered(&mut self) {
        if self.waiting {
            self.waiting = false;
            // From the ping on, not from its answer: `next` stands `patience` after the ping.
            self.next += self.interval.saturating_sub(self.patience);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_answers_is_pinged_once_an_interval() {
        let (interval, patience) = (Duration::from_secs(25), Duration::from_secs(10));
        let mut heart = Heart { interval, patience, next: Instant::now(), waiting: false };
        let pinged = Instant::now();
        assert!(heart.beat());
        heart.answered();
        assert!(heart.next >= pinged + interval);
        assert!(heart.beat() && !heart.beat());
    }
}
