//! The accept loop of every service.
//!
//! Our own and not `axum::serve`, which sets no timer: a client that never finishes its headers would
//! hold its connection for ever and a shutdown would wait for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config;
use crate::service::App;

mod cors;
mod manners;

pub(crate) use self::manners::Manners;

/// Serves `app` until `drain`, then lets open requests finish for `drain_timeout`.
///
/// Returns when every connection is closed or the time is up. Upgraded connections (WebSockets) are
/// their handler's to end.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    config: &config::Server,
    drain: CancellationToken,
) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(config.max_connections));
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .pipeline_flush(true)
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let http = Arc::new(http);
    let header_timeout = config.header_timeout;
    loop {
        // A place is taken before the accept: connections beyond the bound wait in the kernel's
        // backlog, which is bounded too, and cost this process nothing.
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = drain.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                pause_after(&error).await;
                continue;
            }
        };
        let (http, app, drain) = (http.clone(), app.clone(), drain.clone());
        connections.spawn(async move {
            serve_connection(&http, stream, app, header_timeout, drain).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(config.drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "drain timeout: closing what is still open");
    }
}

async fn serve_connection(
    http: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    app: Arc<App>,
    header_timeout: Duration,
    drain: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let begun = Arc::new(AtomicBool::new(false));
    let begins = begun.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        begins.store(true, Ordering::Relaxed);
        let app = app.clone();
        async move { Ok::<_, Infallible>(app.answer(request.map(Body::new)).await) }
    });
    let connection = http.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = first_request_overdue(header_timeout, &begun) => return,
    };
    if let Err(error) = ended {
        // The client's doing (cut, timeout, not HTTP): nothing an operator could act on.
        tracing::debug!(%error, "connection ended");
    }
}

/// Ends when no request has begun in time. The HTTP library's own timer starts only once it has told the
/// protocol's version by the first bytes: a client that sends none would hold its place for ever.
async fn first_request_overdue(most: Duration, begun: &AtomicBool) {
    tokio::time::sleep(most).await;
    if begun.load(Ordering::Relaxed) {
        std::future::pending().await
    }
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
