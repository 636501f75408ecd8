//! One framed WebSocket: any number of subscriptions, each with its own filter, rhythm and cursor.
//!
//! One task and no queue of its own: it pulls from its subscriptions what is due and writes it. Answers to
//! commands and pongs go out before events.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use pulsestream_shared::problem::{Code, Problem};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::access::{Admitted, Shown};
use crate::close::{self, Close};
use crate::commands::{Auth, Command, Fault};
use crate::dialect::Dialect;
use crate::frames;
use crate::group::wait_until;
use crate::heart::Heart;
use crate::resume::Start;
use crate::stream::Stream;
use crate::subs::{Stop, Subs};
use crate::wire::{Gone, STUCK, Stuck, Wire};
use crate::wish::Wish;

/// Subscriptions of one connection.
const SUBSCRIPTIONS: usize = 32;
/// How long what is due is still sent when the server ends.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The subscription of the query.
pub(crate) const MAIN: &str = "main";

pub(crate) struct Framed {
    stream: Arc<Stream>,
    admitted: Admitted,
    ended: CancellationToken,
    subs: Subs,
    /// Sent first.
    greeting: Vec<String>,
}

impl Framed {
    pub(crate) fn new(stream: Arc<Stream>, admitted: Admitted, wish: Wish, start: Start) -> Self {
        let ended = admitted.grant.ended();
        let greeting = vec![frames::hello(&start, stream.heartbeat_ms())];
        let subs = Subs::new(stream.clone());
        let mut framed = Self { stream, admitted, ended, subs, greeting };
        framed.add(MAIN.into(), wish, start);
        framed
    }

    /// Answers the command by which the client said who it is, after `hello`.
    pub(crate) fn answering(mut self, id: &Value) -> Self {
        self.greeting.push(frames::authorized(id, self.admitted.grant.expires_at_ms()));
        self
    }

    fn add(&mut self, name: Arc<str>, wish: Wish, start: Start) {
        let delivery = self.stream.subscribe(wish, start, &self.subs.bell);
        self.subs.add(Dialect::Framed(name), delivery);
    }

    /// Serves the socket until either side ends it.
    pub(crate) async fn run(mut self, websocket: WebSocket) {
        let stream = self.stream.clone();
        let _open = stream.metrics.open("framed");
        let wire = Arc::new(Wire::new(websocket));
        let served = self.serve(&wire).await;
        // Nothing is written to it any more.
        drop(self.subs);
        if let (Ok(close), Some(wire)) = (served, Arc::into_inner(wire)) {
            close.tell(&mut wire.into_inner(), &stream.metrics).await;
        }
    }

    async fn serve(&mut self, wire: &Arc<Wire>) -> Result<Close, Gone> {
        let mut heart = Heart::new(&self.stream.config);
        let end_at = Instant::now() + self.stream.lifetime();
        for frame in std::mem::take(&mut self.greeting) {
            wire.send(Message::Text(frame.into())).await?;
        }
        loop {
            let due = self.subs.due();
            let until = self.admitted.grant.until(end_at);
            // Cancel safe: the stream keeps what it has read, and a bell rings until it is heard.
            tokio::select! {
                biased;
                () = self.ended.cancelled() => return Ok(Close::Revoked),
                () = self.stream.drain.cancelled() => {
                    return self.go_away(wire, Close::Restart).await;
                }
                () = sleep_until(until) => {
                    if self.admitted.grant.is_over(Instant::now()) {
                        return Ok(Close::Expired);
                    }
                    return self.go_away(wire, Close::Lifetime).await;
                }
                () = sleep_until(heart.next) => {
                    if !heart.beat() {
                        return Err(Gone);
                    }
                    let moved = self.moved();
                    if let Some(close) = self.write(wire, moved).await? {
                        return Ok(close);
                    }
                    wire.send(Message::Ping(Bytes::new())).await?;
                }
                message = wire.next() => match message {
                    Some(Ok(Message::Pong(_))) => heart.answered(),
                    Some(Ok(Message::Close(_))) => {
                        close::answer(wire.messages()).await;
                        return Err(Gone);
                    }
                    None => return Err(Gone),
                    Some(Ok(Message::Text(text))) => match self.obey(&text).await {
                        Some(answer) => wire.send(Message::Text(answer.into())).await?,
                        None => return Ok(Close::BadCommand),
                    },
                    Some(Ok(Message::Binary(_))) => return Ok(Close::BadCommand),
                    Some(Err(error)) => return Close::of_fault(error),
                    Some(Ok(Message::Ping(_))) => {}
                },
                () = wait_until(due, &self.subs.bell) => {
                    let frames = match self.subs.pull(wire) {
                        Ok(frames) => frames,
                        Err(Stop::Missed) => return Ok(Close::Missed),
                        Err(Stop::Gone) => return Err(Gone),
                    };
                    if let Some(close) = self.write(wire, frames).await? {
                        return Ok(close);
                    }
                }
            }
        }
    }

    /// Frames of the places that moved without anything to send.
    fn moved(&mut self) -> Vec<Utf8Bytes> {
        self.subs.moved().map(|(sub, place)| frames::moved(sub, &place).into()).collect()
    }

    /// Writes frames and what waits before them; says how to close when the client takes nothing, or its key
    /// ended meanwhile.
    async fn write(&self, wire: &Wire, frames: Vec<Utf8Bytes>) -> Result<Option<Close>, Gone> {
        if frames.is_empty() && !wire.is_busy() {
            return Ok(None);
        }
        // The library keeps what a write given up had handed to it, so the close frame comes after whole
        // frames.
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Ok(Some(Close::Revoked)),
            written = wire.write(frames.into_iter().map(Message::Text), STUCK) => match written? {
                Stuck::No => Ok(None),
                Stuck::Yes => Ok(Some(Close::Missed)),
            },
        }
    }

    /// Sends what is due, and where to go on.
    async fn go_away(&mut self, wire: &Arc<Wire>, close: Close) -> Result<Close, Gone> {
        self.subs.part().map_err(|_| Gone)?;
        let last = Instant::now() + LAST_WORDS;
        loop {
            let frames = self.subs.pull(wire).map_err(|_| Gone)?;
            if (frames.is_empty() && !wire.is_busy()) || Instant::now() > last {
                break;
            }
            if let Some(close) = self.write(wire, frames).await? {
                return Ok(close);
            }
        }
        self.subs.moved().for_each(drop);
        let after_ms = self.stream.reconnect_after_ms(close);
        let goaway = frames::goaway(after_ms, self.subs.places());
        wire.send(Message::Text(goaway.into())).await?;
        Ok(close)
    }

    /// Does what the client says, and what it is answered; `None` when that is no command.
    async fn obey(&mut self, text: &str) -> Option<String> {
        match Command::parse(self.admitted.grant.audience, text) {
            Err(Fault::NoCommand) => None,
            Err(Fault::Refused { id, code, detail }) => Some(frames::error(&id, code, &detail)),
            Ok(Command::Ping { id }) => Some(frames::pong(&id)),
            Ok(Command::Unsubscribe { id, sub }) => Some(if self.subs.remove(&sub) {
                frames::ok(&id)
            } else {
                frames::error(&id, "unknown_subscription", "there is none of that name")
            }),
            Ok(Command::Auth(Auth { id, token })) => Some(match self.renew(token.expose()).await {
                Ok(expires_at_ms) => frames::authorized(&id, expires_at_ms),
                Err(problem) => refused(&id, &problem),
            }),
            Ok(Command::Subscribe { id, sub, wish }) => {
                if self.subs.has(&sub) {
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
        if let Some((sub, _)) = self.subs.filters().find(|(_, filter)| !grant.covers(filter)) {
            let detail = format!("the stream token does not allow all of {sub:?}");
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
