//! One WebSocket, for the task that serves it and for the fan-outs that write to it beside that task.
//!
//! A fan-out never waits: what the socket does not take at once stays with it, and is written by its own
//! task. Until that is done nobody else writes, so nothing more gathers here than one write of each.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, stream};
use pulsestream_shared::service::Upgraded;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tungstenite::{Error, Message};

use crate::close::Messages;
use crate::line::{Line, Open};

/// A socket that takes nothing for so long is closed.
pub(crate) const STUCK: Duration = Duration::from_secs(15);

/// The connection is gone, or the client closed it.
pub(crate) struct Gone;

impl From<Error> for Gone {
    fn from(error: Error) -> Self {
        tracing::debug!(%error, "socket ended");
        Self
    }
}

/// Whether the client takes nothing.
pub(crate) enum Stuck {
    Yes,
    No,
}

impl Stuck {
    /// Who takes not even this is not told why it ends.
    pub(crate) fn or_gone(self) -> Result<(), Gone> {
        match self {
            Self::No => Ok(()),
            Self::Yes => Err(Gone),
        }
    }
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
    /// Gives encoded frames to a socket. Never waits.
    fn offer(&self, frames: &Bytes) -> Offered;
}

pub(crate) struct Wire<S = Upgraded>(Mutex<Inner<S>>);

struct Inner<S> {
    websocket: WebSocketStream<Line<S>>,
    /// Its task writes.
    busy: bool,
}

impl<S: AsyncRead + AsyncWrite + Open + Unpin + Send> Outlet for Wire<S> {
    fn offer(&self, frames: &Bytes) -> Offered {
        let mut inner = self.inner();
        if inner.is_busy() {
            return Offered::Refused;
        }
        let line = inner.websocket.get_mut();
        // Nobody is to be woken: the socket's task writes the rest.
        match line.write_now(frames) {
            Err(_) => Offered::Gone,
            Ok(()) if line.is_waiting() => Offered::Kept,
            Ok(()) => Offered::Written,
        }
    }
}

impl<S> Inner<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn is_busy(&self) -> bool {
        self.busy || self.websocket.get_ref().is_waiting()
    }
}

impl<S> Wire<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    pub(crate) fn new(websocket: WebSocketStream<Line<S>>) -> Self {
        Self(Mutex::new(Inner { websocket, busy: false }))
    }

    /// The WebSocket, to be closed.
    pub(crate) fn into_inner(self) -> WebSocketStream<Line<S>> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).websocket
    }

    /// The next message. Cancel safe: the stream keeps what it has read.
    pub(crate) async fn next(&self) -> Option<Result<Message, Error>> {
        self.messages().next().await
    }

    pub(crate) fn messages(&self) -> impl Messages {
        stream::poll_fn(|cx| self.inner().websocket.poll_next_unpin(cx))
    }

    /// Whether something waits to be written by the socket's task.
    pub(crate) fn is_busy(&self) -> bool {
        self.inner().is_busy()
    }

    /// Writes what waits, and these encoded frames.
    pub(crate) async fn write(
        &self,
        frames: impl IntoIterator<Item = Bytes>,
        patience: Duration,
    ) -> Result<Stuck, Gone> {
        let mut frames = Some(frames);
        let written = poll_fn(|cx| {
            self.poll(cx, |websocket| {
                websocket.get_mut().push(frames.take().into_iter().flatten());
                Ok(())
            })
        });
        Self::judge(timeout(patience, written).await)
    }

    /// Writes what waits, and one message of the protocol's own.
    pub(crate) async fn send(&self, message: Message) -> Result<(), Gone> {
        let mut message = Some(message);
        let written = poll_fn(|cx| {
            self.poll(cx, |websocket| match message.take() {
                Some(message) => websocket.start_send_unpin(message),
                None => Ok(()),
            })
        });
        Self::judge(timeout(STUCK, written).await)?.or_gone()
    }

    /// Writes what waits, then what is added.
    fn poll(
        &self,
        cx: &mut Context<'_>,
        add: impl FnOnce(&mut WebSocketStream<Line<S>>) -> Result<(), Error>,
    ) -> Poll<Result<(), Error>> {
        let mut inner = self.inner();
        inner.busy = true;
        ready!(inner.websocket.poll_flush_unpin(cx))?;
        add(&mut inner.websocket)?;
        ready!(inner.websocket.poll_flush_unpin(cx))?;
        inner.busy = false;
        Poll::Ready(Ok(()))
    }

    fn judge(written: Result<Result<(), Error>, Elapsed>) -> Result<Stuck, Gone> {
        match written {
            Ok(written) => written.map(|()| Stuck::No).map_err(Gone::from),
            Err(_) => Ok(Stuck::Yes),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::yield_now;
    use tungstenite::protocol::Role;

    use super::*;
    use crate::frame;

    #[derive(Debug, Clone)]
    enum Op {
        /// A fan-out offers a frame of so many bytes.
        Offer(usize),
        /// The socket's task writes frames, or what waits.
        Write(Vec<usize>),
        Ping,
        /// The client reads so many messages.
        Read(usize),
        /// The client pings, which the library answers.
        ClientPings,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            4 => (0..300_usize).prop_map(Op::Offer),
            2 => prop::collection::vec(0..300_usize, 0..40).prop_map(Op::Write),
            1 => Just(Op::Ping),
            3 => (0..4_usize).prop_map(Op::Read),
            1 => Just(Op::ClientPings),
        ];
        prop::collection::vec(op, 0..60)
    }

    /// What is sent is told apart by its number.
    fn numbered(next: &mut usize, padding: usize) -> (String, Bytes) {
        *next += 1;
        let text = format!("{next} {}", "x".repeat(padding));
        let frame = frame::text(&text);
        (text, frame)
    }

    impl Open for DuplexStream {}

    async fn check(ops: Vec<Op>) {
        // So little room that most frames are cut.
        let (near, far) = duplex(100);
        let wire = Arc::new(Wire::new(Line::open(near, Bytes::new()).await));
        let client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        let (mut to_server, mut from_server) = client.split();
        let (mut expected, mut seen, mut next) = (Vec::new(), Vec::new(), 0);
        let mut tasks = tokio::task::JoinSet::new();
        let reading = wire.clone();
        let reader = tokio::spawn(async move { while let Some(Ok(_)) = reading.next().await {} });
        for op in ops {
            match op {
                Op::Offer(padding) => {
                    let (text, frame) = numbered(&mut next, padding);
                    match wire.offer(&frame) {
                        Offered::Written | Offered::Kept => expected.push(text),
                        Offered::Refused => {}
                        Offered::Gone => panic!("nobody went"),
                    }
                }
                // One task writes: while it does, it begins no other write.
                Op::Write(_) | Op::Ping if !tasks.is_empty() && tasks.try_join_next().is_none() => {
                }
                Op::Write(paddings) => {
                    let (texts, frames): (Vec<_>, Vec<_>) =
                        paddings.into_iter().map(|padding| numbered(&mut next, padding)).unzip();
                    expected.extend(texts);
                    let wire = wire.clone();
                    tasks.spawn(async move { drop(wire.write(frames, STUCK).await) });
                    yield_now().await;
                }
                Op::Ping => {
                    let wire = wire.clone();
                    tasks.spawn(async move { drop(wire.send(Message::Ping(Bytes::new())).await) });
                    yield_now().await;
                }
                Op::Read(count) => {
                    for _ in 0..count {
                        let message = timeout(Duration::ZERO, from_server.next()).await;
                        let Ok(Some(message)) = message else { break };
                        seen.extend(message.expect("a whole frame").into_text().ok());
                    }
                }
                Op::ClientPings => {
                    drop(
                        timeout(
                            Duration::ZERO,
                            to_server.send(Message::Ping(vec![b'p'; 100].into())),
                        )
                        .await,
                    );
                    yield_now().await;
                }
            }
        }
        // The socket's task writes what is left; then nobody holds the socket any more.
        let finish = async move {
            while tasks.join_next().await.is_some() {}
            drop(wire.write([], STUCK).await);
            reader.abort();
        };
        let read = async {
            while let Some(Ok(message)) = from_server.next().await {
                seen.extend(message.into_text().ok());
            }
        };
        let patience = Duration::from_secs(10);
        timeout(patience, async { tokio::join!(finish, read) }).await.expect("nothing hangs");
        let texts: Vec<_> = seen.iter().filter(|text| text.contains(' ')).collect();
        assert_eq!(texts, expected.iter().collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn frames_come_whole_and_in_order_however_little_is_taken_at_once(ops in ops()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(check(ops));
        }
    }
}
