//! `GET /v1/stream` and what lies below it: who may see what, from where, and by which transport.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{RawQuery, State, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderName};
use axum::response::Response;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::config;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::Scope;
use rand::RngExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::close::Close;
use crate::delivery::Delivery;
use crate::doors::{Doors, Inside};
use crate::ends::{Ends, Floor};
use crate::feed::Feed;
use crate::filter::{Audience, Filter};
use crate::framed::Framed;
use crate::group::Bell;
use crate::metrics::LiveMetrics;
use crate::open_keys::{OpenKey, OpenKeys};
use crate::poll::{self, Terms};
use crate::registry::{Registry, Subscriber};
use crate::resume::{From, Start, judge};
use crate::socket::Socket;
use crate::sse;
use crate::wish::Wish;

/// The subprotocol by which a client asks for frames.
const PROTOCOL: &str = "pulsestream.v1";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The library's default of 128 KiB would be the memory of an idle socket; what a client sends here is
/// tiny.
const READ_BUFFER_BYTES: usize = 4 * 1_024;
const MAX_MESSAGE_BYTES: usize = 16 * 1_024;

/// Who was let in.
pub(crate) struct Admitted {
    pub(crate) audience: Audience,
    /// The key that says so; none for anonymous reading.
    pub(crate) key: Option<Arc<OpenKey>>,
    /// Counts the stream for as long as it is kept.
    _inside: Inside,
}

impl Admitted {
    /// Cancelled once the key works no more.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.key.as_ref().map(|key| key.ended.clone()).unwrap_or_default()
    }
}

/// What the route needs.
pub(crate) struct Stream {
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) keys: Arc<OpenKeys>,
    pub(crate) doors: Arc<Doors>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) feed: Arc<Feed>,
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
) -> Result<Response, Problem> {
    let (admitted, wish) = stream.admit(&headers, query.as_deref()).await?;
    let upgrade = upgrade.map_err(|_| {
        Problem::from(Code::BadRequest)
            .detail("this is a WebSocket: connect with a WebSocket client")
    })?;
    let upgrade = upgrade.protocols([PROTOCOL]);
    if wish.framed || upgrade.selected_protocol().is_some() {
        let start = stream.judge(&wish.from).await?;
        return Ok(stream.start_framed(admitted, wish, start, upgrade));
    }
    Ok(stream.start(wish.filter, admitted, stream.ends.now().await, upgrade))
}

/// `GET /v1/stream/sse`. A client that reconnects by itself names its place in a header.
pub(crate) async fn sse(
    State(stream): State<Arc<Stream>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let (admitted, mut wish) = stream.admit(&headers, query.as_deref()).await?;
    if let Some(id) = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) {
        // What is no text is no cursor, and told so.
        wish.from = From::cursor(id.to_str().unwrap_or("?"));
    }
    let start = stream.judge(&wish.from).await?;
    Ok(sse::answer(stream, admitted, wish, start))
}

/// `GET /v1/stream/poll`.
pub(crate) async fn poll(
    State(stream): State<Arc<Stream>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let (admitted, wish) = stream.admit(&headers, query.as_deref()).await?;
    let terms = Terms::parse(query.as_deref().unwrap_or_default())?;
    let start = stream.judge(&wish.from).await?;
    Ok(poll::answer(stream, admitted, wish, start, terms).await)
}

impl Stream {
    /// Whose events may be seen, and what is wanted.
    async fn admit(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<(Admitted, Wish), Problem> {
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
        let wish = Wish::parse(audience, query.unwrap_or_default())?;
        let _inside = self.doors.enter(audience)?;
        Ok((Admitted { audience, key, _inside }, wish))
    }

    /// Where the stream begins, counted.
    async fn judge(&self, from: &From) -> Result<Start, Problem> {
        let start = judge(from, &self.feed, &self.ends).await?;
        self.metrics.resumes.with_label_values(&[start.verdict.label()]).inc();
        Ok(start)
    }

    /// Begins a subscription; the bell rings at once, so that it is looked at.
    pub(crate) fn subscribe(&self, wish: Wish, start: Start, bell: &Bell) -> Delivery {
        let subscription = self.feed.subscribe(wish.filter, start.place, bell.clone());
        bell.notify_one();
        Delivery::new(subscription, wish.mode, self.feed.begun_at)
    }

    pub(crate) fn heartbeat_ms(&self) -> u64 {
        u64::try_from(self.config.ping_interval.as_millis()).unwrap_or(u64::MAX)
    }

    /// How long this connection may stay: half to all of the bound, so that those opened together do not
    /// end together.
    pub(crate) fn lifetime(&self) -> Duration {
        self.config.stream_age.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// After how many milliseconds a client is asked to come back; random, so that not all come together.
    pub(crate) fn reconnect_after_ms(&self, close: Close) -> u64 {
        let within_ms = match close {
            // The others of this process are there at once.
            Close::Lifetime => 500,
            _ => 5_000,
        };
        rand::rng().random_range(0..=within_ms)
    }

    fn start_framed(
        self: &Arc<Self>,
        admitted: Admitted,
        wish: Wish,
        start: Start,
        upgrade: WebSocketUpgrade,
    ) -> Response {
        let framed = Framed::new(self.clone(), admitted, wish, start);
        let tracked = self.sockets.clone();
        bounded(upgrade).on_upgrade(move |websocket| tracked.track_future(framed.run(websocket)))
    }

    fn start(
        &self,
        filter: Filter,
        admitted: Admitted,
        from: Floor,
        upgrade: WebSocketUpgrade,
    ) -> Response {
        // Subscribed before the handshake is answered: a client that has the answer misses nothing.
        let (subscriber, inbox) = Subscriber::new(filter, from, self.config.queue_bytes);
        let registration = self.registry.add(subscriber);
        let socket = Socket {
            inbox,
            registration,
            admitted,
            metrics: self.metrics.clone(),
            config: self.config.clone(),
            drain: self.drain.clone(),
        };
        let tracked = self.sockets.clone();
        bounded(upgrade).on_upgrade(move |websocket| tracked.track_future(socket.run(websocket)))
    }
}

fn bounded(upgrade: WebSocketUpgrade) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(MAX_MESSAGE_BYTES)
}
