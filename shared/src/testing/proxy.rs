//! A TCP proxy that can do to a connection what networks do: refuse it, reset it, swallow what is sent,
//! slow it down, or close one half of it.
//!
//! It knows no protocol, so it stands before Redis, Kafka and PostgreSQL alike. What is said by
//! [`TcpProxy::set`] holds for connections that exist and for those to come; [`TcpProxy::cut`] and
//! [`TcpProxy::half_close`] strike only those that exist.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

const CHUNK_BYTES: usize = 64 * 1024;
const TRICKLES_PER_SECOND: u32 = 20;

/// How the proxy treats bytes and new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Everything passes.
    Forward,
    /// New connections are refused, as by a host on which nothing listens. Existing ones go on.
    Refuse,
    /// A black hole: connections are accepted, nothing passes. What was sent is kept and passes later.
    Pause,
    /// Every chunk, in each direction, waits this long.
    Delay(Duration),
    /// At most this many bytes per second pass in each direction of a connection.
    Trickle(u32),
}

#[derive(Clone, Copy)]
struct Orders {
    traffic: Traffic,
    cuts: u64,
    half_closes: u64,
}

/// A running proxy. Dropping it closes its connections and its port.
pub struct TcpProxy {
    addr: SocketAddr,
    orders: watch::Sender<Orders>,
    /// Keeps the port ours while it is refusing: bound, never listening.
    _placeholder: TcpSocket,
    _task: AbortOnDropHandle<()>,
}

impl TcpProxy {
    /// Starts forwarding a free port of the loopback address to `target` (`host:port`).
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: impl Into<String>) -> io::Result<Self> {
        let placeholder = reusable_socket("127.0.0.1:0".parse().map_err(io::Error::other)?)?;
        let addr = placeholder.local_addr()?;
        let (orders, seen) =
            watch::channel(Orders { traffic: Traffic::Forward, cuts: 0, half_closes: 0 });
        let listener = listen(addr)?;
        let task = tokio::spawn(accept(addr, listener, target.into(), seen));
        Ok(Self { addr, orders, _placeholder: placeholder, _task: AbortOnDropHandle::new(task) })
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Changes how bytes and new connections are treated from now on.
    pub fn set(&self, traffic: Traffic) {
        self.orders.send_modify(|orders| orders.traffic = traffic);
    }

    /// Back to [`Traffic::Forward`].
    pub fn restore(&self) {
        self.set(Traffic::Forward);
    }

    /// Resets (RST) every connection, on both sides.
    pub fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// Refuses new connections and resets the existing ones: the server's host is gone.
    pub fn kill(&self) {
        self.orders.send_modify(|orders| {
            orders.traffic = Traffic::Refuse;
            orders.cuts += 1;
        });
    }

    /// Closes the server's half of every connection: the client reads the end, and may still write.
    pub fn half_close(&self) {
        self.orders.send_modify(|orders| orders.half_closes += 1);
    }
}

fn reusable_socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    reusable_socket(addr)?.listen(1_024)
}

/// Accepts until aborted; the connections live in this task's set and end with it.
async fn accept(
    addr: SocketAddr,
    listener: TcpListener,
    target: String,
    mut seen: watch::Receiver<Orders>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let refusing = seen.borrow_and_update().traffic == Traffic::Refuse;
        if refusing {
            listener = None;
        } else if listener.is_none() {
            listener = listen(addr).ok();
        }
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            Some(_ended) = connections.join_next() => {}
            accepted = accept_one(listener.as_ref()) => if let Ok(client) = accepted {
                connections.spawn(connection(client, target.clone(), seen.clone()));
            },
        }
    }
}

async fn accept_one(listener: Option<&TcpListener>) -> io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(client, _peer)| client),
        None => std::future::pending().await,
    }
}

/// One connection, until both directions have ended or it is cut.
async fn connection(mut client: TcpStream, target: String, mut seen: watch::Receiver<Orders>) {
    let born = *seen.borrow();
    // A black hole does not connect either.
    if seen.wait_for(|orders| orders.traffic != Traffic::Pause).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(&target).await else {
        return reset(&client);
    };
    let direct = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let mut ends = seen.clone();
        tokio::select! {
            _cut = ends.wait_for(|orders| orders.cuts > born.cuts) => true,
            (up, down) = async { tokio::join!(
                pump(from_client, to_server, seen.clone(), u64::MAX),
                pump(from_server, to_client, seen.clone(), born.half_closes),
            ) } => direct.and(up).and(down).is_err(),
        }
    };
    if cut {
        reset(&client);
        reset(&server);
    }
}

/// Makes the coming drop a reset. Not set from the start: a connection that ended well still has bytes
/// to deliver.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "connection closed instead of reset");
    }
}

/// Moves one direction until its end, or until it is half-closed.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut seen: watch::Receiver<Orders>,
    half_closes: u64,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut ends = seen.clone();
    loop {
        let limit = match seen.borrow_and_update().traffic {
            Traffic::Trickle(bytes) => ((bytes / TRICKLES_PER_SECOND).max(1)) as usize,
            _ => CHUNK_BYTES,
        };
        let (chunk, _rest) = chunk.split_at_mut(limit.min(CHUNK_BYTES));
        let count = tokio::select! {
            read = from.read(chunk) => read?,
            _half = ends.wait_for(|orders| orders.half_closes > half_closes) => 0,
        };
        if count == 0 {
            return to.shutdown().await;
        }
        passage(&mut seen).await;
        let (filled, _rest) = chunk.split_at(count);
        to.write_all(filled).await?;
    }
}

/// Waits as long as the orders of the moment hold a chunk back.
async fn passage(seen: &mut watch::Receiver<Orders>) {
    loop {
        let traffic = seen.borrow_and_update().traffic;
        match traffic {
            Traffic::Forward | Traffic::Refuse => return,
            Traffic::Delay(time) => return tokio::time::sleep(time).await,
            Traffic::Trickle(bytes) => {
                // Fewer bytes per second than trickles: each of them is a byte.
                let pause = Duration::from_secs(1) / TRICKLES_PER_SECOND.min(bytes.max(1));
                return tokio::time::sleep(pause).await;
            }
            Traffic::Pause => {
                if seen.changed().await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
