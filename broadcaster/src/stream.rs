//! `GET /v1/stream` and what lies below it: who may see what, from where, and by which transport.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::response::{IntoResponse as _, Response};
use hyper::upgrade::OnUpgrade;
use pulsestream_shared::config;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::service::Peer;
use rand::RngExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{Access, Admitted, Shown, offers, subprotocol};
use crate::close::Close;
use crate::cursor::Cursor;
use crate::delivery::Delivery;
use crate::ends::Ends;
use crate::fan_out::FanOuts;
use crate::feed::Feed;
use crate::filter::Filter;
use crate::group::Bell;
use crate::handshake::Upgrade;
use crate::metrics::{LiveMetrics, SENT};
use crate::newcomer::{Newcomer, Porch};
use crate::poll::{self, Terms};
use crate::resume::{From, Start, Verdict, judge};
use crate::snapshot::{Opening, Snapshots, Values, Without};
use crate::socket::Socket;
use crate::sse;
use crate::wish::{Mode, Wish};

/// The subprotocol by which a client asks for frames.
const PROTOCOL: &str = "pulsestream.v1";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What the routes need.
pub(crate) struct Stream {
    pub(crate) access: Access,
    pub(crate) porch: Porch,
    pub(crate) feed: Arc<Feed>,
    pub(crate) fan_outs: Arc<FanOuts>,
    pub(crate) ends: Ends,
    pub(crate) snapshots: Snapshots,
    pub(crate) metrics: Arc<LiveMetrics>,
    pub(crate) config: config::Live,
    pub(crate) drain: CancellationToken,
    pub(crate) sockets: TaskTracker,
}

/// One request for a stream.
pub(crate) struct Request {
    peer: Peer,
    target: Uri,
    headers: HeaderMap,
    query: String,
}

impl Request {
    pub(crate) fn new(peer: Peer, target: Uri, headers: HeaderMap) -> Self {
        let query = target.query().unwrap_or_default().to_owned();
        Self { peer, target, headers, query }
    }

    fn shown(&self) -> Shown<'_> {
        Shown::by(&self.headers, &self.query)
    }
}

/// `GET /v1/stream`.
pub(crate) async fn open(
    State(stream): State<Arc<Stream>>,
    Extension(peer): Extension<Peer>,
    target: Uri,
    headers: HeaderMap,
    on: Option<Extension<OnUpgrade>>,
) -> Response {
    let upgrade = Upgrade::of(&headers, on.map(|Extension(on)| on));
    let request = Request::new(peer, target, headers);
    stream.told(stream.open(request, upgrade).await)
}

/// `GET /v1/stream/sse`. A client that reconnects by itself names its place in a header.
pub(crate) async fn sse(
    State(stream): State<Arc<Stream>>,
    Extension(peer): Extension<Peer>,
    target: Uri,
    headers: HeaderMap,
) -> Response {
    let request = Request::new(peer, target, headers);
    let answer = async {
        stream.check_origin(&request)?;
        let (admitted, mut wish) = stream.admit(&request).await?;
        if let Some(id) = request.headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()) {
            // What is no text is no cursor, and told so.
            wish.from = From::cursor(id.to_str().unwrap_or("?"));
        }
        let start = stream.judge(&wish, "sse").await?;
        Ok(sse::answer(stream.clone(), admitted, wish, start))
    };
    stream.told(answer.await)
}

/// `GET /v1/stream/poll`.
pub(crate) async fn poll(
    State(stream): State<Arc<Stream>>,
    Extension(peer): Extension<Peer>,
    target: Uri,
    headers: HeaderMap,
) -> Response {
    let request = Request::new(peer, target, headers);
    let answer = async {
        stream.check_origin(&request)?;
        let (admitted, wish) = stream.admit(&request).await?;
        let terms = Terms::parse(&request.query)?;
        let start = stream.judge(&wish, "poll").await?;
        Ok(poll::answer(stream.clone(), admitted, wish, start, terms).await)
    };
    stream.told(answer.await)
}

impl Stream {
    /// The answer; a refusal is counted.
    fn told(&self, answer: Result<Response, Problem>) -> Response {
        answer.unwrap_or_else(|problem| {
            self.metrics.refused(&problem);
            problem.into_response()
        })
    }

    async fn open(
        self: &Arc<Self>,
        request: Request,
        upgrade: Option<Upgrade>,
    ) -> Result<Response, Problem> {
        self.check_origin(&request)?;
        let mut upgrade = upgrade.ok_or_else(|| {
            Problem::from(Code::BadRequest)
                .detail("this is a WebSocket: connect with a WebSocket client")
        })?;
        let asks_for_frames = offers(&request.headers).any(|offer| offer == PROTOCOL);
        // A browser ends a connection of which none of its offers was taken.
        let taken = asks_for_frames.then_some(PROTOCOL).or_else(|| subprotocol(&request.headers));
        upgrade.protocol = taken.and_then(|taken| HeaderValue::from_str(taken).ok());
        let framed = match Wish::is_framed(&request.query) {
            Ok(framed) => framed || asks_for_frames,
            Err(problem) => return self.turn_away(&request, problem, upgrade),
        };
        match self.admit(&request).await {
            // Subscribed before the handshake is answered: a client that has the answer misses nothing.
            Ok((admitted, wish)) => {
                let socket = if framed {
                    let start = self.judge(&wish, "framed").await?;
                    Socket::framed(self.clone(), admitted, wish, start)
                } else {
                    let start = judge(&wish.from, &self.feed, &self.ends).await?;
                    Socket::plain(self.clone(), admitted, wish, start)
                };
                let tracked = self.sockets.clone();
                Ok(upgrade.start(move |websocket| tracked.track_future(socket.run(websocket))))
            }
            Err(problem) if framed && problem.code() == Code::MissingApiKey => {
                self.start_newcomer(request, upgrade)
            }
            Err(problem) => self.turn_away(&request, problem, upgrade),
        }
    }

    fn check_origin(&self, request: &Request) -> Result<(), Problem> {
        self.access.check_origin(&request.headers, &request.target)
    }

    /// Whose events may be seen, and what of them is wanted.
    async fn admit(&self, request: &Request) -> Result<(Admitted, Wish), Problem> {
        let grant = self.access.grant(&request.shown()).await?;
        let wish = grant.narrow(Wish::parse(grant.audience, &request.query)?)?;
        let arrival = self.access.arrive(request.peer.0)?;
        Ok((Admitted::new(grant, arrival)?, wish))
    }

    /// Where the stream begins, and with what; counted.
    pub(crate) async fn judge(&self, wish: &Wish, transport: &str) -> Result<Start, Problem> {
        let start = judge(&wish.from, &self.feed, &self.ends).await?;
        self.metrics.resumes.with_label_values(&[transport, start.verdict.label()]).inc();
        Ok(match wish.mode {
            Mode::Latest(_) if start.verdict != Verdict::Recovered => {
                self.with_values(start, &wish.filter).await
            }
            _ => start,
        })
    }

    /// The same beginning with the newest values, if they can be had.
    async fn with_values(&self, start: Start, filter: &Filter) -> Start {
        let values = self.values(filter).await;
        let outcome = values.as_ref().map_or_else(|without| without.word(), |_| SENT);
        self.metrics.snapshots.with_label_values(&[outcome]).inc();
        match values {
            Ok((values, place)) => Start { place, opening: Opening::Values(values), ..start },
            Err(without) => Start { opening: Opening::Without(without), ..start },
        }
    }

    async fn values(&self, filter: &Filter) -> Result<(Values, Cursor), Without> {
        let (values, place) = self.snapshots.read(filter, &self.feed.head().1).await?;
        // Gone on from like a place that a client brings.
        let judged = judge(&From::Cursor(Ok(place)), &self.feed, &self.ends).await;
        match judged {
            Ok(Start { verdict: Verdict::Recovered, place, .. }) => Ok((values, place)),
            Ok(_) | Err(_) => Err(Without::Behind),
        }
    }

    /// Opens a socket whose client says with its first message who it is.
    fn start_newcomer(
        self: &Arc<Self>,
        request: Request,
        upgrade: Upgrade,
    ) -> Result<Response, Problem> {
        let arrival = self.access.arrive(request.peer.0)?;
        let place = self.porch.enter()?;
        let newcomer = Newcomer { stream: self.clone(), arrival, query: request.query, place };
        let tracked = self.sockets.clone();
        Ok(upgrade.start(move |websocket| tracked.track_future(newcomer.run(websocket))))
    }

    /// Refuses. Of a refused handshake a browser tells its page nothing, so whoever came with a token, as
    /// pages do, gets the socket and a close code; while there is room for strangers.
    fn turn_away(
        self: &Arc<Self>,
        request: &Request,
        problem: Problem,
        upgrade: Upgrade,
    ) -> Result<Response, Problem> {
        let by_token = matches!(request.shown(), Shown::Token(_));
        let close = Close::of(&problem).filter(|_| by_token);
        let (Some(close), Ok(place)) = (close, self.porch.enter()) else { return Err(problem) };
        self.metrics.refused(&problem);
        let (metrics, tracked) = (self.metrics.clone(), self.sockets.clone());
        Ok(upgrade.start(move |mut websocket| {
            tracked.track_future(async move {
                close.tell(&mut websocket, &metrics).await;
                drop(place);
            })
        }))
    }

    /// Begins a subscription; the bell rings at once, so that it is looked at.
    pub(crate) fn subscribe(&self, wish: Wish, start: Start, bell: &Bell) -> Delivery {
        let subscription = self.feed.subscribe(wish.filter, start.place, bell.clone());
        bell.notify_one();
        let delivery = Delivery::new(subscription, wish.mode, self.feed.begun_at);
        match start.opening {
            Opening::Values(values) => delivery.after(values),
            Opening::Place | Opening::Without(_) => delivery,
        }
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
            Close::Lifetime | Close::Expired => 500,
            _ => 5_000,
        };
        rand::rng().random_range(0..=within_ms)
    }
}
