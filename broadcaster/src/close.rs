//! Why the server closes a WebSocket: the codes of the table in `docs/live.md`.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use crate::metrics::LiveMetrics;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    /// Reconnect: this connection was open long enough.
    Lifetime,
    /// Reconnect, after a pause of your own choosing: this process ends.
    Restart,
    /// You were too slow, or the log lost something: reconnect and expect a gap.
    Missed,
    /// The key you came with works no more: come with another.
    Revoked,
    /// What you sent is no command.
    BadCommand,
}

impl Close {
    pub(crate) const fn frame(self) -> (u16, &'static str) {
        match self {
            Self::Lifetime => (1001, "lifetime"),
            Self::Restart => (1012, "restart"),
            Self::Missed => (4008, "too slow: events were missed"),
            Self::Revoked => (4010, "the API key was revoked or has expired"),
            Self::BadCommand => (4400, "bad command: expected a JSON object with a type"),
        }
    }

    /// How long to wait for the client's own close. A slow one has much to read before it.
    const fn patience(self) -> Duration {
        match self {
            Self::Missed => Duration::from_secs(5),
            _ => Duration::from_secs(1),
        }
    }

    /// Tells the client, and counts it.
    pub(crate) async fn tell(self, websocket: &mut WebSocket, metrics: &LiveMetrics) {
        let (code, reason) = self.frame();
        metrics.closes.with_label_values(&[&code.to_string()]).inc();
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        // The client may be stuck or gone; then there is nobody to tell.
        if timeout(self.patience(), say_goodbye(websocket, frame)).await.is_err() {
            tracing::debug!(code, "close frame not delivered");
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
