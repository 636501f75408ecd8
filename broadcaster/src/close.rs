//! Why the server closes a WebSocket: the codes of the table in `docs/live.md`.

use std::future::pending;
use std::time::Duration;

use futures_util::{SinkExt as _, Stream, StreamExt as _};
use pulsestream_shared::problem::{Code, Problem};
use tokio::time::timeout;
use tungstenite::error::{Error, ProtocolError};
use tungstenite::protocol::CloseFrame;
use tungstenite::{Message, Utf8Bytes};

use crate::line::WebSocket;
use crate::metrics::LiveMetrics;
use crate::wire::Gone;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    /// Reconnect: this connection was open long enough.
    Lifetime,
    /// Reconnect, after a pause of your own choosing: this process ends.
    Restart,
    /// You were too slow, or the log lost something: reconnect and expect a gap.
    Missed,
    /// Come with a new token: this one is over.
    Expired,
    /// Come with a token that works: none came, or not in time.
    BadToken,
    /// You asked for what your token or key does not allow.
    NotAllowed,
    /// Close others first: you have as many streams as you may.
    TooMany,
    /// Reconnect, after a pause: too much is going on here, or nobody can say who you are.
    Busy,
    /// The key you came with works no more: come with another.
    Revoked,
    /// What your query asks for is none of what can be asked.
    BadQuery,
    /// What you sent is no command.
    BadCommand,
    /// What you sent is no WebSocket.
    Protocol,
    /// What you sent as text is none.
    NotText,
    /// What you sent is longer than anything that is read here.
    TooLong,
}

impl Close {
    /// Every one; `docs/asyncapi.json` tells of each.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 14] = [
        Self::Lifetime,
        Self::Restart,
        Self::Missed,
        Self::Expired,
        Self::BadToken,
        Self::NotAllowed,
        Self::TooMany,
        Self::Busy,
        Self::Revoked,
        Self::BadQuery,
        Self::BadCommand,
        Self::Protocol,
        Self::NotText,
        Self::TooLong,
    ];

    pub(crate) const fn frame(self) -> (u16, &'static str) {
        match self {
            Self::Lifetime => (1001, "lifetime"),
            Self::Restart => (1012, "restart"),
            Self::Expired => (4001, "credentials: the stream token has expired"),
            Self::BadToken => (4001, "credentials: no stream token that works"),
            Self::NotAllowed => (4003, "not allowed by this stream token or API key"),
            Self::TooMany => (4009, "too many streams are open"),
            Self::Busy => (1013, "try again later"),
            Self::BadQuery => (4400, "bad query"),
            Self::Missed => (4008, "too slow: events were missed"),
            Self::Revoked => (4010, "the API key was revoked or has expired"),
            Self::BadCommand => (4400, "bad command: expected a JSON object with a type"),
            Self::Protocol => (1002, "protocol error"),
            Self::NotText => (1007, "a text that is not UTF-8"),
            Self::TooLong => (1009, "a message over 16 KiB"),
        }
    }

    /// How a WebSocket is told of a problem that was found too late for a status, or that its browser would
    /// keep to itself; none for what a client should come again with as it is.
    pub(crate) fn of(problem: &Problem) -> Option<Self> {
        match problem.code() {
            Code::InvalidToken => Some(Self::BadToken),
            Code::InvalidApiKey => Some(Self::Revoked),
            Code::Forbidden | Code::TokenRestricted => Some(Self::NotAllowed),
            Code::TooManyStreams => Some(Self::TooMany),
            Code::BadRequest => Some(Self::BadQuery),
            _ => None,
        }
    }

    /// How a WebSocket is told that what it sent cannot be read.
    ///
    /// # Errors
    /// Nobody is left to be told.
    pub(crate) fn of_fault(error: Error) -> Result<Self, Gone> {
        match error {
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Err(Gone),
            Error::Protocol(_) => Ok(Self::Protocol),
            Error::Utf8(_) => Ok(Self::NotText),
            Error::Capacity(_) => Ok(Self::TooLong),
            other => Err(other.into()),
        }
    }

    /// Whether what the client sent cannot be read. The library reads nothing more then, so that neither the
    /// client's close is seen nor what it is still sending: only time lets it take the close frame.
    const fn is_fault(self) -> bool {
        matches!(self, Self::Protocol | Self::NotText | Self::TooLong)
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
        let frame = CloseFrame { code: code.into(), reason: Utf8Bytes::from_static(reason) };
        // The client may be stuck or gone; then there is nobody to tell.
        let told = async {
            say_goodbye(websocket, frame).await;
            if self.is_fault() {
                pending::<()>().await;
            }
        };
        if timeout(self.patience(), told).await.is_err() {
            tracing::debug!(code, "close frame not answered");
        }
    }
}

/// Sends the close frame and reads until the client has answered it: a connection dropped with bytes of
/// the client unread (a pong is enough) is reset, and what it was still to receive is lost.
async fn say_goodbye(websocket: &mut WebSocket, frame: CloseFrame) {
    if websocket.send(Message::Close(Some(frame))).await.is_err() {
        return;
    }
    read_to_the_end(websocket).await;
}

/// Answers the client's close frame: the library has the answer ready, and writes it with the next read.
/// Without it a browser calls the end unclean, 1006.
pub(crate) async fn answer(messages: impl Messages) {
    if timeout(Duration::from_secs(1), read_to_the_end(messages)).await.is_err() {
        tracing::debug!("close frame not answered");
    }
}

async fn read_to_the_end(mut messages: impl Messages) {
    while let Some(Ok(_)) = messages.next().await {}
}

/// What a WebSocket's client sends.
pub(crate) trait Messages: Stream<Item = Result<Message, Error>> + Unpin {}
impl<S: Stream<Item = Result<Message, Error>> + Unpin> Messages for S {}
