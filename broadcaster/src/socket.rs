//! One plain WebSocket: each event is one text frame holding the event's JSON, and nothing else is sent
//! as text (the original system's contract). What the client sends is read and ignored.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use pulsestream_shared::config;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::access::Admitted;
use crate::close::{self, Close};
use crate::heart::Heart;
use crate::metrics::LiveMetrics;
use crate::registry::{Inbox, Registration};

/// Frames written with one flush.
const FRAMES_PER_WRITE: usize = 128;
/// A socket that takes nothing for so long is closed.
const STUCK: Duration = Duration::from_secs(15);

pub(crate) struct Socket {
    pub(crate) inbox: Inbox,
    /// Ends the subscription with the socket.
    pub(crate) registration: Registration,
    /// By whom it was opened.
    pub(crate) admitted: Admitted,
    pub(crate) metrics: Arc<LiveMetrics>,
    pub(crate) config: config::Live,
    pub(crate) drain: CancellationToken,
}

/// The connection is gone, or the client closed it.
pub(crate) struct Gone;

impl From<axum::Error> for Gone {
    fn from(error: axum::Error) -> Self {
        tracing::debug!(%error, "socket ended");
        Self
    }
}

impl Socket {
    /// Serves the socket until either side ends it.
    pub(crate) async fn run(mut self, mut websocket: WebSocket) {
        let _open = self.metrics.open("websocket");
        if let Ok(close) = self.serve(&mut websocket).await {
            close.tell(&mut websocket, &self.metrics).await;
        }
        drop(self.registration);
    }

    async fn serve(&mut self, websocket: &mut WebSocket) -> Result<Close, Gone> {
        let mut frames = Vec::with_capacity(FRAMES_PER_WRITE);
        let mut heart = Heart::new(&self.config);
        let ended = self.admitted.grant.ended();
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
                () = sleep_until(self.admitted.grant.until(heart.next)) => {
                    if self.admitted.grant.is_over(Instant::now()) {
                        return Ok(Close::Expired);
                    }
                    if !heart.beat() {
                        return Err(Gone);
                    }
                    send(websocket, Message::Ping(Bytes::new())).await?;
                }
                message = websocket.next() => match message {
                    Some(Ok(Message::Pong(_))) => heart.answered(),
                    Some(Ok(Message::Close(_))) => {
                        close::answer(websocket).await;
                        return Err(Gone);
                    }
                    None => return Err(Gone),
                    Some(Err(error)) => return Close::of_fault(error),
                    Some(Ok(_)) => {}
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
        let written = write(websocket, frames.drain(..)).await;
        self.inbox.queued.fetch_sub(bytes, Ordering::Relaxed);
        written
    }
}

/// Whether the client takes nothing.
pub(crate) enum Stuck {
    Yes,
    No,
}

/// Writes frames with one flush.
pub(crate) async fn write(
    websocket: &mut WebSocket,
    frames: impl IntoIterator<Item = Utf8Bytes>,
) -> Result<Stuck, Gone> {
    let written = timeout(STUCK, async {
        for frame in frames {
            websocket.feed(Message::Text(frame)).await?;
        }
        websocket.flush().await
    });
    match written.await {
        Ok(written) => written.map(|()| Stuck::No).map_err(Gone::from),
        Err(_) => Ok(Stuck::Yes),
    }
}

pub(crate) async fn send(websocket: &mut WebSocket, message: Message) -> Result<(), Gone> {
    match timeout(STUCK, websocket.send(message)).await {
        Ok(sent) => Ok(sent?),
        Err(_) => Err(Gone),
    }
}
