//! The life of one connection: TLS, its requests, and its end.
//!
//! It ends in one of these ways, and none but the last cuts a request that has begun:
//! - its client closes it, or is idle for `keep_alive_timeout`, or sends no first request within
//!   `header_timeout` (as long again for the TLS handshake before it);
//! - it is `max_connection_age` old, or the process leaves: HTTP/1.1 answers say `Connection: close`,
//!   HTTP/2 gets GOAWAY. An idle HTTP/1.1 connection is left alone then: closing it would race with the
//!   client's next request, and clients do not repeat a POST by themselves;
//! - the process drains: whatever is idle is closed;
//! - its client takes nothing of what is written for `write_stall_timeout`. An HTTP/2 client can still leave
//!   answers lying by its windows: 128 of them, no longer than it answers pings.

use std::convert::Infallible;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, Version};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::SetOnce;
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Peer;
use super::impatience::Impatient;
use super::tls::Tls;
use crate::config;
use crate::service::App;
use crate::shutdown::Shutdown;

/// Requests one HTTP/2 connection may have open; more wait at the client. A load balancer opens more
/// connections instead, and a client that stalls them all holds no more than this.
const MAX_STREAMS: u32 = 128;

/// How often an HTTP/2 client is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PONG_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a drain waits for the first request of a client that has only just connected.
const JUST_CONNECTED: Duration = Duration::from_millis(500);

/// On what terms connections are served.
pub(crate) struct Terms {
    pub(super) drain: CancellationToken,
    leave: CancellationToken,
    app: Arc<App>,
    tls: Option<Arc<Tls>>,
    http: auto::Builder<TokioExecutor>,
    header_timeout: Duration,
    write_stall_timeout: Duration,
    max_age: Duration,
}

impl Terms {
    pub(crate) fn new(
        app: Arc<App>,
        tls: Option<Arc<Tls>>,
        config: &config::Server,
        shutdown: &Shutdown,
    ) -> Self {
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1()
            .timer(TokioTimer::new())
            // The library's one timer for "idle" and "headers under way"; the first request has its own.
            .header_read_timeout(config.keep_alive_timeout)
            .pipeline_flush(true)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(Some(PING_INTERVAL))
            .keep_alive_timeout(PONG_TIMEOUT);
        Self {
            drain: shutdown.drain.clone(),
            leave: shutdown.leave.clone(),
            app,
            tls,
            http,
            header_timeout: config.header_timeout,
            write_stall_timeout: config.write_stall_timeout,
            max_age: config.max_connection_age,
        }
    }

    /// Serves one connection to its end.
    pub(super) async fn serve(&self, stream: TcpStream, peer: Peer) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        match &self.tls {
            None => self.speak(stream, peer).await,
            Some(tls) => {
                if let Some(stream) = self.shake_hands(tls, stream).await {
                    self.speak(stream, peer).await;
                }
            }
        }
    }

    async fn shake_hands(&self, tls: &Tls, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        let done = tokio::select! {
            done = timeout(self.header_timeout, tls.accept(stream)) => done,
            () = self.drain.cancelled() => return None,
        };
        match done {
            Ok(Ok(stream)) => return Some(stream),
            // The client's doing, as below.
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(late) => tracing::debug!(error = %late, "TLS handshake not finished"),
        }
        None
    }

    async fn speak<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let course = Arc::new(Course::begin(self.leave.is_cancelled()));
        let service = service_fn({
            let (app, course) = (self.app.clone(), course.clone());
            move |mut request: Request<Incoming>| {
                course.begins(request.version());
                // Three allocations, which no POST needs.
                if request.method() != Method::POST {
                    request.extensions_mut().insert(peer);
                }
                let (app, course) = (app.clone(), course.clone());
                async move {
                    let answer = app.answer(request.map(Body::new), &course.closing).await;
                    Ok::<_, Infallible>(answer)
                }
            }
        });
        let stream = TokioIo::new(Impatient::new(stream, self.write_stall_timeout));
        let connection = self.http.serve_connection_with_upgrades(stream, service);
        tokio::pin!(connection);
        // Alone in a set, it is polled when it wakes and not with every step of the connection: that took
        // 280 ns each time instead of 65, most of it for the locks of two tokens all connections share.
        let mut end: FuturesUnordered<_> = iter::once(self.end(&course)).collect();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            Some(end) = end.next() => match end {
                End::Overdue => return,
                End::Graceful => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            },
        };
        if let Err(error) = ended {
            // The client's doing (cut, timeout, not HTTP): nothing an operator could act on.
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn end(&self, course: &Course) -> End {
        tokio::select! {
            () = course.is_overdue(self.header_timeout) => End::Overdue,
            () = self.is_to_close(course) => End::Graceful,
        }
    }

    /// Ends when the protocol should be told to take no more requests.
    async fn is_to_close(&self, course: &Course) {
        tokio::select! {
            () = self.drain.cancelled() => {
                // Too late only makes this connection's close a little less kind.
                _ = timeout(JUST_CONNECTED, course.version.wait()).await;
            }
            () = self.sends_away(course) => {}
        }
    }

    /// Ends when an HTTP/2 client is to be sent GOAWAY, not before it asked for something. HTTP/1.1 is
    /// told in its answers instead.
    async fn sends_away(&self, course: &Course) {
        tokio::select! {
            () = sleep(around(self.max_age)) => {}
            () = self.leave.cancelled() => {}
        }
        course.closing.store(true, Ordering::Relaxed);
        if *course.version.wait().await != Version::HTTP_2 {
            std::future::pending().await
        }
    }
}

/// How a connection ends when it does not by itself.
enum End {
    /// Nothing has begun on it.
    Overdue,
    /// What has begun is finished first.
    Graceful,
}

/// 10 % more or less, so that clients that came together do not leave together.
fn around(age: Duration) -> Duration {
    age.mul_f64(rand::rng().random_range(0.9..1.1))
}

/// How far a connection has come.
struct Course {
    /// Of its first request, once it has begun.
    version: SetOnce<Version>,
    /// It takes no more requests than those under way.
    closing: AtomicBool,
}

impl Course {
    fn begin(closing: bool) -> Self {
        Self { version: SetOnce::new(), closing: AtomicBool::new(closing) }
    }

    fn begins(&self, version: Version) {
        if !self.version.initialized() && self.version.set(version).is_err() {
            tracing::trace!("another stream was first");
        }
    }

    /// Ends when no request has begun in time. The HTTP library's own timer starts only once it has told
    /// the protocol's version by the first bytes: a client that sends none would hold its place for ever.
    async fn is_overdue(&self, most: Duration) {
        if timeout(most, self.version.wait()).await.is_ok() {
            std::future::pending().await
        }
    }
}
