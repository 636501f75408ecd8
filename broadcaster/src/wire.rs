//! One WebSocket, for the task that serves it and for the fan-outs that write to it beside that task.
//!
//! A fan-out never waits: what the socket does not take at once stays with it, and is written by its own
//! task. Until that is done nobody else writes, so nothing more gathers here than one write of each.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use tokio::time::timeout;

use crate::close::Messages;

/// A socket that takes nothing for so long is closed.
pub(crate) const STUCK: Duration = Duration::from_secs(15);

/// The connection is gone, or the client closed it.
pub(crate) struct Gone;

impl From<axum::Error> for Gone {
    fn from(error: axum::Error) -> Self {
        tracing::debug!(%error, "socket ended");
        Self
    }
}

/// Whether the client takes nothing.
pub(crate) enum Stuck {
    Yes,
    No,
}

/// What became of frames that were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offered {
    Written,
    /// The socket has all of them, but its own task must see to it that they are written.
    Kept,
    /// It has none of them: something before them is not written yet.
    Refused,
    /// Nobody is there any more.
    Gone,
}

/// Where a fan-out's frames go.
pub(crate) trait Outlet: Send + Sync {
    /// Gives frames to a socket. Never waits.
    fn offer(&self, frames: &[Utf8Bytes]) -> Offered;
}

pub(crate) struct Wire(Mutex<Inner>);

struct Inner {
    websocket: WebSocket,
    /// Its task writes.
    busy: bool,
}

impl Outlet for Wire {
    fn offer(&self, frames: &[Utf8Bytes]) -> Offered {
        let mut inner = self.inner();
        if inner.busy {
            return Offered::Refused;
        }
        for frame in frames {
            // The library takes a message whether it is ready or not; that only tells when to stop.
            if inner.websocket.start_send_unpin(Message::Text(frame.clone())).is_err() {
                return Offered::Gone;
            }
        }
        // Nobody is to be woken: the socket's task writes the rest.
        match inner.websocket.poll_flush_unpin(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => Offered::Written,
            Poll::Ready(Err(_)) => Offered::Gone,
            Poll::Pending => {
                inner.busy = true;
                Offered::Kept
            }
        }
    }
}

impl Wire {
    pub(crate) fn new(websocket: WebSocket) -> Self {
        Self(Mutex::new(Inner { websocket, busy: false }))
    }

    /// The WebSocket, to be closed.
    pub(crate) fn into_inner(self) -> WebSocket {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).websocket
    }

    /// The next message. Cancel safe: the stream keeps what it has read.
    pub(crate) async fn next(&self) -> Option<Result<Message, axum::Error>> {
        self.messages().next().await
    }

    pub(crate) fn messages(&self) -> impl Messages {
        stream::poll_fn(|cx| self.inner().websocket.poll_next_unpin(cx))
    }

    /// Whether something waits to be written by the socket's task.
    pub(crate) fn is_busy(&self) -> bool {
        self.inner().busy
    }

    /// Writes what waits and these messages, with one flush.
    pub(crate) async fn write(
        &self,
        messages: impl IntoIterator<Item = Message>,
        patience: Duration,
    ) -> Result<Stuck, Gone> {
        let mut messages = messages.into_iter();
        match timeout(patience, poll_fn(|cx| self.poll_write(&mut messages, cx))).await {
            Ok(written) => written.map(|()| Stuck::No).map_err(Gone::from),
            Err(_) => Ok(Stuck::Yes),
        }
    }

    /// Writes one message now.
    pub(crate) async fn send(&self, message: Message) -> Result<(), Gone> {
        match self.write([message], STUCK).await? {
            Stuck::No => Ok(()),
            Stuck::Yes => Err(Gone),
        }
    }

    fn poll_write(
        &self,
        messages: &mut impl Iterator<Item = Message>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), axum::Error>> {
        let mut inner = self.inner();
        inner.busy = true;
        loop {
            ready!(inner.websocket.poll_ready_unpin(cx))?;
            let Some(message) = messages.next() else { break };
            inner.websocket.start_send_unpin(message)?;
        }
        ready!(inner.websocket.poll_flush_unpin(cx))?;
        inner.busy = false;
        Poll::Ready(Ok(()))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
