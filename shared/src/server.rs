//! The accept loop of every service.
//!
//! Our own and not `axum::serve`, which sets no timer: a client that never finishes its headers would
//! hold its connection for ever and a shutdown would wait for it. What happens on a connection is in
//! `connection`, its encryption in `tls`, what every answer has in `manners`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::config;

mod connection;
mod cors;
mod impatience;
mod manners;
mod routes;
mod tls;
mod upgraded;

#[cfg(test)]
mod tests;

pub(crate) use self::connection::Terms;
pub(crate) use self::manners::Manners;
pub use self::routes::Routes;
pub(crate) use self::tls::Tls;
pub use self::tls::TlsError;
pub use self::upgraded::Upgraded;

/// Who is at the other end of a request's connection: a client, or a proxy in front. Every request has it as an
/// extension, except `POST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// Serves on these terms until `drain`, then lets open requests finish for `drain_timeout`.
///
/// Returns when every connection is closed or the time is up. Upgraded connections (WebSockets) are
/// their handler's to end.
pub(crate) async fn serve(listener: TcpListener, terms: Terms, config: &config::Server) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(config.max_connections));
    let terms = Arc::new(terms);
    let spawn = |stream: TcpStream, address: SocketAddr, place: OwnedSemaphorePermit| {
        let terms = terms.clone();
        connections.spawn(async move {
            terms.serve(stream, Peer(address.ip().to_canonical())).await;
            drop(place);
        });
    };
    loop {
        // A place is taken before the accept: connections beyond the bound wait in the kernel's
        // backlog, which is bounded too, and cost this process nothing.
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = terms.drain.cancelled() => break,
        };
        let Ok(place) = place else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = terms.drain.cancelled() => break,
        };
        match accepted {
            Ok((stream, address)) => spawn(stream, address, place),
            Err(error) => pause_after(&error).await,
        }
    }
    for (stream, address) in let_in(listener) {
        let Ok(place) = places.clone().try_acquire_owned() else { break };
        spawn(stream, address, place);
    }
    connections.close();
    if tokio::time::timeout(config.drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "drain timeout: closing what is still open");
    }
}

/// Ends listening. Answers whoever the kernel has let in already, and would cut with the listener.
///
/// The kernel is asked and not the runtime, which learns of a connection a moment later.
fn let_in(listener: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let listener = listener.into_std();
    std::iter::from_fn(move || {
        let (stream, address) = listener.as_ref().ok()?.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, address))
    })
}

/// Out of file descriptors and the like: wait instead of spinning.
async fn pause_after(error: &std::io::Error) {
    use std::io::ErrorKind as E;
    if matches!(error.kind(), E::ConnectionAborted | E::ConnectionReset | E::ConnectionRefused) {
        return;
    }
    tracing::warn!(%error, "accept failed");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
