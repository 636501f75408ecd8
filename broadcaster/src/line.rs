//! What a WebSocket's library writes to and reads from, and what whole frames are written to beside it.
//!
//! The library knows the protocol: it reads, and writes pings, pongs and closes. Events are encoded once for
//! all sockets and are not copied into each one's buffer. What of such frames is not taken at once lies here,
//! before everything else that is written.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes};
use pulsestream_shared::service::Upgraded;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tungstenite::protocol::{Role, WebSocketConfig};

/// A WebSocket as the library has it.
pub(crate) type WebSocket = WebSocketStream<Line<Upgraded>>;

/// The library's default of 128 KiB would be the memory of an idle socket; what a client sends here is
/// tiny.
const READ_BUFFER_BYTES: usize = 512;
/// Of a message and of each of its frames: the library makes room for a whole frame when it has read the head.
const MAX_MESSAGE_BYTES: usize = 16 * 1_024;
/// Frames written with one call.
const SLICES: usize = 32;

/// What may have a socket to which bytes go as they are.
pub(crate) trait Open {
    /// That socket.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

impl Open for Upgraded {
    fn socket(&self) -> Option<&TcpStream> {
        self.socket()
    }
}

pub(crate) struct Line<S> {
    io: S,
    /// Frames, the first of them perhaps begun.
    rest: VecDeque<Bytes>,
    /// The library waits for the socket, perhaps in the middle of a frame of its own.
    jammed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// A WebSocket of which this much was read already.
    pub(crate) async fn open(io: S, begun: Bytes) -> WebSocketStream<Self> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(READ_BUFFER_BYTES)
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let line = Self { io, rest: VecDeque::new(), jammed: false };
        // A copy, nearly always of nothing: what it came in is the 8 KB the request was read into.
        let begun = begun.to_vec();
        WebSocketStream::from_partially_read(line, begun, Role::Server, Some(config)).await
    }

    /// Whether something waits to be written.
    pub(crate) fn is_waiting(&self) -> bool {
        self.jammed || !self.rest.is_empty()
    }

    /// Adds frames; the next flush writes them.
    pub(crate) fn push(&mut self, frames: impl IntoIterator<Item = Bytes>) {
        self.rest.extend(frames);
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let mut slices = [io::IoSlice::new(&[]); SLICES];
            let count = self.rest.len().min(SLICES);
            for (slice, frame) in slices.iter_mut().zip(&self.rest) {
                *slice = io::IoSlice::new(frame);
            }
            let slices = slices.get(..count).unwrap_or_default();
            let mut written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            while let Some(first) = self.rest.front_mut() {
                let taken = written.min(first.len());
                first.advance(taken);
                written -= taken;
                if !first.is_empty() {
                    break;
                }
                self.rest.pop_front();
            }
        }
        // What a slow client once made of it is not kept.
        self.rest = VecDeque::new();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Open + Unpin> Line<S> {
    /// Writes frames when nothing waits before them: what is not taken at once waits here, and nobody is woken for it.
    /// Where there is a socket, the system alone is asked whether there is room, and not the runtime.
    pub(crate) fn write_now(&mut self, frames: &Bytes) -> io::Result<()> {
        let taken = match self.io.socket() {
            Some(socket) => Poll::Ready(SockRef::from(socket).send(frames)),
            None => {
                let nobody = &mut Context::from_waker(Waker::noop());
                Pin::new(&mut self.io).poll_write(nobody, frames)
            }
        };
        let written = match taken {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < frames.len() {
            self.rest.push_back(frames.slice(written..));
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Line<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Line<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.jammed = true;
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    /// The library flushes once all it had was written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.jammed = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
