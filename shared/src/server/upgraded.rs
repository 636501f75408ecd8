//! The connection of a request that asked for another protocol, and got it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::upgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::impatience::Impatient;

/// A connection of this server after an upgrade.
pub struct Upgraded(Inner);

enum Inner {
    /// Out of the HTTP library's wrappers: each of them is one more place in memory to look at with every write.
    Tcp(Impatient<TcpStream>),
    Wrapped(TokioIo<upgrade::Upgraded>),
}

impl Upgraded {
    /// The connection, and what came on it behind the request.
    #[must_use]
    pub fn of(upgraded: upgrade::Upgraded) -> (Self, Bytes) {
        match downcast::<TokioIo<Impatient<TcpStream>>>(upgraded) {
            Ok(parts) => (Self(Inner::Tcp(parts.io.into_inner())), parts.read_buf),
            Err(wrapped) => (Self(Inner::Wrapped(TokioIo::new(wrapped))), Bytes::new()),
        }
    }

    /// Its socket, where bytes go to that as they are.
    #[must_use]
    pub fn socket(&self) -> Option<&TcpStream> {
        match &self.0 {
            Inner::Tcp(stream) => Some(stream.get_ref()),
            Inner::Wrapped(_) => None,
        }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Inner::Wrapped(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Inner::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Inner::Wrapped(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Inner::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Inner::Wrapped(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Inner::Tcp(stream) => stream.is_write_vectored(),
            Inner::Wrapped(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Wrapped(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Inner::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Wrapped(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
