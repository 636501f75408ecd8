//! One framed WebSocket: any number of subscriptions, each with its own filter, rhythm and cursor.
//!
//! One task and no queue of its own: it pulls from its subscriptions what is due and writes it. Answers to
//! commands and pongs go out before events.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use futures_util::StreamExt as _;
use pulsestream_shared::problem::{Code, Problem};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::access::{Admitted, Shown};
use crate::close::{self, Close};
use crate::commands::{Auth, Command, Fault};
use crate::delivery::{Delivery, Outgoing};
use crate::frames;
use crate::group::{Bell, wait_until};
use crate::heart::Heart;
use crate::resume::Start;
use crate::socket::{Gone, Stuck, send, write};
use crate::stream::Stream;
use crate::wish::Wish;

/// Subscriptions of one connection.
const SUBSCRIPTIONS: usize = 32;
/// Frames written with one flush.
const FRAMES_PER_WRITE: usize = 64;
/// Bytes after which a write takes no more frames: what a stuck socket holds.
const BYTES_PER_WRITE: usize = 256 * 1_024;
/// How long what is due is still sent when the server ends.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The subscription of the query.
pub(crate) const MAIN: &str = "main";

struct Sub {
    name: Arc<str>,
    delivery: Delivery,
}

pub(crate) struct Framed {
    stream: Arc<Stream>,
    admitted: Admitted,
    ended: CancellationToken,
    bell: Bell,
    subs: Vec<Sub>,
    /// Which subscription is asked first: each gets its turn.
    turn: usize,
    /// Sent first.
    greeting: Vec<String>,
}

impl Framed {
    pub(crate) fn new(stream: Arc<Stream>, admitted: Admitted, wish: Wish, start: Start) -> Self {
        let ended = admitted.grant.ended();
        let greeting = vec![frames::hello(&start, stream.heartbeat_ms())];
        let (bell, subs) = (Bell::default(), Vec::new());
        let mut framed = Self { stream, admitted, ended, bell, subs, turn: 0, greeting };
        framed.add(MAIN.into(), wish, start);
        framed
    }

    /// Answers the command by which the client said who it is, after `hello`.
    pub(crate) fn answering(mut self, id: &Value) -> Self {
        self.greeting.push(frames::authorized(id, self.admitted.grant.expires_at_ms()));
        self
    }

    fn add(&mut self, name: Arc<str>, wish: Wish, start: Start) {
        let delivery = self.stream.subscribe(wish, start, &self.bell);
        self.subs.push(Sub { name, delivery });
    }

    /// Serves the socket until either side ends it.
    pub(crate) async fn run(mut self, mut websocket: WebSocket) {
        let _open = self.stream.metrics.open("framed");
        if let Ok(close) = self.serve(&mut websocket).await {
            close.tell(&mut websocket, &self.stream.metrics).await;
        }
    }

    async fn serve(&mut self, websocket: &mut WebSocket) -> Result<Close, Gone> {
        let mut heart = Heart::new(&self.stream.config);
        let end_at = Instant::now() + self.stream.lifetime();
        for frame in std::mem::take(&mut self.greeting) {
            send(websocket, Message::Text(frame.into())).await?;
        }
        loop {
            let due = self.due();
            let until = self.admitted.grant.until(end_at);
            // Cancel safe: the stream keeps what it has read, and a bell rings until it is heard.
            tokio::select! {
                biased;
                () = self.ended.cancelled() => return Ok(Close::Revoked),
                () = self.stream.drain.cancelled() => {
                    return self.go_away(websocket, Close::Restart).await;
                }
                () = sleep_until(until) => {
                    if self.admitted.grant.is_over(Instant::now()) {
                        return Ok(Close::Expired);
                    }
                    return self.go_away(websocket, Close::Lifetime).await;
                }
                () = sleep_until(heart.next) => {
                    if !heart.beat() {
                        return Err(Gone);
                    }
                    let moved = self.moved();
                    if let Some(close) = self.write(websocket, moved).await? {
                        return Ok(close);
                    }
                    send(websocket, Message::Ping(Bytes::new())).await?;
                }
                message = websocket.next() => match message {
                    Some(Ok(Message::Pong(_))) => heart.answered(),
                    Some(Ok(Message::Close(_))) => {
                        close::answer(websocket).await;
                        return Err(Gone);
                    }
                    None => return Err(Gone),
                    Some(Ok(Message::Text(text))) => match self.obey(&text).await {
                        Some(answer) => send(websocket, Message::Text(answer.into())).await?,
                        None => return Ok(Close::BadCommand),
                    },
                    Some(Ok(Message::Binary(_))) => return Ok(Close::BadCommand),
                    Some(Err(error)) => return Close::of_fault(error),
                    Some(Ok(Message::Ping(_))) => {}
                },
                () = wait_until(due, &self.bell) => {
                    let frames = self.pull();
                    if let Some(close) = self.write(websocket, frames).await? {
                        return Ok(close);
                    }
                }
            }
        }
    }

    /// When something is to be sent; `None` while nothing waits.
    fn due(&self) -> Option<Instant> {
        self.subs.iter().filter_map(|sub| sub.delivery.due()).min()
    }

    /// Frames of what is due. Rings the bell when there may be more.
    fn pull(&mut self) -> Vec<Utf8Bytes> {
        let now = Instant::now();
        let (mut frames, mut bytes) = (Vec::new(), 0);
        let count = self.subs.len();
        self.turn = self.turn.wrapping_add(1);
        for index in 0..count {
            let at = (self.turn + index) % count;
            let Some(sub) = self.subs.get_mut(at) else { continue };
            let share = FRAMES_PER_WRITE.div_ceil(count);
            for _ in 0..share {
                if bytes > BYTES_PER_WRITE {
                    break;
                }
                let Some(outgoing) = sub.delivery.pull(now) else { break };
                let frame = match outgoing {
                    Outgoing::Events(parcels) => frames::events(&sub.name, &parcels),
                    Outgoing::Values(values, place) => {
                        frames::values(&sub.name, &values, place.as_deref()).into()
                    }
                    Outgoing::Gap(reason) => {
                        self.stream.metrics.gaps.with_label_values(&[reason.word()]).inc();
                        frames::gap(&sub.name, reason, sub.delivery.place()).into()
                    }
                };
                bytes += frame.len();
                frames.push(frame);
            }
        }
        if !frames.is_empty() {
            self.bell.notify_one();
        }
        frames
    }

    /// Frames of the places that moved without anything to send.
    fn moved(&mut self) -> Vec<Utf8Bytes> {
        let moved = |sub: &mut Sub| Some(frames::moved(&sub.name, &*sub.delivery.moved()?).into());
        self.subs.iter_mut().filter_map(moved).collect()
    }

    /// Writes frames; says how to close when the client takes nothing, or its key ended meanwhile.
    async fn write(
        &self,
        websocket: &mut WebSocket,
        frames: Vec<Utf8Bytes>,
    ) -> Result<Option<Close>, Gone> {
        if frames.is_empty() {
            return Ok(None);
        }
        // The library keeps what a write given up had handed to it, so the close frame comes after whole
        // frames.
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Ok(Some(Close::Revoked)),
            written = write(websocket, frames) => match written? {
                Stuck::No => Ok(None),
                Stuck::Yes => Ok(Some(Close::Missed)),
            },
        }
    }

    /// Sends what is due, and where to go on.
    async fn go_away(&mut self, websocket: &mut WebSocket, close: Close) -> Result<Close, Gone> {
        let last = Instant::now() + LAST_WORDS;
        loop {
            let frames = self.pull();
            if frames.is_empty() || Instant::now() > last {
                break;
            }
            if let Some(close) = self.write(websocket, frames).await? {
                return Ok(close);
            }
        }
        self.subs.iter_mut().for_each(|sub| drop(sub.delivery.moved()));
        let after_ms = self.stream.reconnect_after_ms(close);
        let places = self.subs.iter().map(|sub| (&sub.name, sub.delivery.place()));
        let goaway = frames::goaway(after_ms, places);
        send(websocket, Message::Text(goaway.into())).await?;
        Ok(close)
    }

    /// Does what the client says, and what it is answered; `None` when that is no command.
    async fn obey(&mut self, text: &str) -> Option<String> {
        match Command::parse(self.admitted.grant.audience, text) {
            Err(Fault::NoCommand) => None,
            Err(Fault::Refused { id, code, detail }) => Some(frames::error(&id, code, &detail)),
            Ok(Command::Ping { id }) => Some(frames::pong(&id)),
            Ok(Command::Unsubscribe { id, sub }) => {
                let before = self.subs.len();
                self.subs.retain(|other| other.name != sub);
                Some(if self.subs.len() < before {
                    frames::ok(&id)
                } else {
                    frames::error(&id, "unknown_subscription", "there is none of that name")
                })
            }
            Ok(Command::Auth(Auth { id, token })) => Some(match self.renew(token.expose()).await {
                Ok(expires_at_ms) => frames::authorized(&id, expires_at_ms),
                Err(problem) => refused(&id, &problem),
            }),
            Ok(Command::Subscribe { id, sub, wish }) => {
                if self.subs.iter().any(|other| other.name == sub) {
                    let detail = "there is one of that name; unsubscribe it first";
                    return Some(frames::error(&id, "subscribed_already", detail));
                }
                if self.subs.len() >= SUBSCRIPTIONS {
                    let detail = format!("a connection has at most {SUBSCRIPTIONS}");
                    return Some(frames::error(&id, "too_many_subscriptions", &detail));
                }
                Some(match self.subscribe(&id, sub, *wish).await {
                    Ok(answer) => answer,
                    Err(problem) => refused(&id, &problem),
                })
            }
        }
    }

    async fn subscribe(
        &mut self,
        id: &Value,
        sub: Arc<str>,
        wish: Wish,
    ) -> Result<String, Problem> {
        let wish = self.admitted.grant.narrow(wish)?;
        let start = self.stream.judge(&wish, "framed").await?;
        let answer = frames::subscribed(id, &sub, &start);
        self.add(sub, wish, start);
        Ok(answer)
    }

    /// Goes on by another token; without a change when that does not allow what is shown now. Says until
    /// when.
    async fn renew(&mut self, token: &str) -> Result<Option<i64>, Problem> {
        let grant = self.stream.access.grant(&Shown::Token(token.into())).await?;
        if grant.audience != self.admitted.grant.audience {
            let detail = "the stream token is of another client than this connection";
            return Err(Problem::from(Code::TokenRestricted).detail(detail));
        }
        let beyond = |sub: &&Sub| !grant.covers(sub.delivery.subscription.filter());
        if let Some(sub) = self.subs.iter().find(beyond) {
            let detail = format!("the stream token does not allow all of {:?}", sub.name);
            return Err(Problem::from(Code::TokenRestricted).detail(detail));
        }
        self.ended = grant.ended();
        self.admitted.grant = grant;
        Ok(self.admitted.grant.expires_at_ms())
    }
}

fn refused(id: &Value, problem: &Problem) -> String {
    frames::error(id, problem.code().as_str(), problem.text())
}
