//! `GET /v1/stream`: who may see what, then a WebSocket.

use std::sync::Arc;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{RawQuery, State, WebSocketUpgrade};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::config;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::Scope;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ends::{Ends, Floor};
use crate::filter::{Audience, Filter};
use crate::metrics::LiveMetrics;
use crate::open_keys::{OpenKey, OpenKeys};
use crate::registry::{Registry, Subscriber};
use crate::socket::Socket;

/// The library's default of 128 KiB would be the memory of an idle socket; what a client sends here is
/// tiny.
const READ_BUFFER_BYTES: usize = 4 * 1_024;
const MAX_MESSAGE_BYTES: usize = 16 * 1_024;

/// What the route needs.
pub(crate) struct Stream {
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) keys: Arc<OpenKeys>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) ends: Ends,
    pub(crate) metrics: Arc<LiveMetrics>,
    pub(crate) config: config::Live,
    pub(crate) dev: bool,
    pub(crate) drain: CancellationToken,
    pub(crate) sockets: TaskTracker,
}

pub(crate) async fn open(
    State(stream): State<Arc<Stream>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    match stream.admit(&headers, query.as_deref().unwrap_or_default()).await {
        Err(problem) => problem.into_response(),
        Ok((filter, key)) => match upgrade {
            Ok(upgrade) => stream.start(filter, key, stream.ends.now().await, upgrade),
            Err(_) => Problem::from(Code::BadRequest)
                .detail("this is a WebSocket: connect with a WebSocket client")
                .into_response(),
        },
    }
}

impl Stream {
    /// What may be seen, and the key that says so; none for anonymous reading.
    async fn admit(
        &self,
        headers: &HeaderMap,
        query: &str,
    ) -> Result<(Filter, Option<Arc<OpenKey>>), Problem> {
        let (audience, key) = match self.keyring.authorize(headers, Scope::EventsRead).await {
            Ok(key) => {
                let entered = self.keys.enter(key.hash).await.ok_or(Code::InvalidApiKey)?;
                (Audience::Client(key.client), Some(entered))
            }
            Err(problem) if self.dev && problem.code() == Code::MissingApiKey => {
                (Audience::Everybody, None)
            }
            Err(problem) => return Err(problem),
        };
        Ok((Filter::parse(audience, query)?, key))
    }

    fn start(
        &self,
        filter: Filter,
        key: Option<Arc<OpenKey>>,
        from: Floor,
        upgrade: WebSocketUpgrade,
    ) -> Response {
        // Subscribed before the handshake is answered: a client that has the answer misses nothing.
        let (subscriber, inbox) = Subscriber::new(filter, from, self.config.queue_bytes);
        let registration = self.registry.add(subscriber);
        let socket = Socket {
            inbox,
            registration,
            key,
            metrics: self.metrics.clone(),
            config: self.config.clone(),
            drain: self.drain.clone(),
        };
        let tracked = self.sockets.clone();
        upgrade
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(READ_BUFFER_BYTES)
            .max_message_size(MAX_MESSAGE_BYTES)
            .on_upgrade(move |websocket| tracked.track_future(socket.run(websocket)))
    }
}
