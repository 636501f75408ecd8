//! One WebSocket, plain or framed: one task, and no queue of its own.
//!
//! It pulls from its subscriptions what is due and writes it; those that joined a fan-out are written to by
//! that. It pings, and does what the client says; answers to commands and pongs go out before events.
//!
//! Plain is the original system's contract: each event is one text frame holding the event's JSON, nothing
//! else is sent as text, and what the client sends is read and ignored. It cannot be told of a gap, so it is
//! closed instead.

use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};
use tungstenite::Message;

use crate::access::Admitted;
use crate::close::{self, Close};
use crate::dialect::Dialect;
use crate::frame;
use crate::frames;
use crate::heart::Heart;
use crate::line::WebSocket;
use crate::resume::Start;
use crate::stream::Stream;
use crate::subs::Subs;
use crate::wire::{Gone, STUCK, Stuck, Wire};
use crate::wish::Wish;

/// How long what is due is still sent when the server ends.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The name of the query's subscription, one for all sockets: a fan-out compares names for each of them.
static MAIN: LazyLock<Arc<str>> = LazyLock::new(|| "main".into());

#[derive(Clone, Copy, PartialEq, Eq)]
enum Contract {
    Plain,
    Framed,
}

pub(crate) struct Socket {
    pub(crate) stream: Arc<Stream>,
    /// By whom it was opened.
    pub(crate) admitted: Admitted,
    pub(crate) subs: Subs,
    contract: Contract,
    /// Sent first.
    greeting: Vec<String>,
}

impl Socket {
    pub(crate) fn plain(stream: Arc<Stream>, admitted: Admitted, wish: Wish, start: Start) -> Self {
        let mut socket = Self::new(stream, admitted, Contract::Plain);
        socket.add(Dialect::Plain, wish, start);
        socket
    }

    pub(crate) fn framed(
        stream: Arc<Stream>,
        admitted: Admitted,
        wish: Wish,
        start: Start,
    ) -> Self {
        let hello = frames::hello(&start, stream.heartbeat_ms());
        let mut socket = Self::new(stream, admitted, Contract::Framed);
        socket.greeting.push(hello);
        socket.add(Dialect::Framed(MAIN.clone()), wish, start);
        socket
    }

    /// Answers the command by which the client said who it is, after `hello`.
    pub(crate) fn answering(mut self, id: &Value) -> Self {
        self.greeting.push(frames::authorized(id, self.admitted.grant.expires_at_ms()));
        self
    }

    fn new(stream: Arc<Stream>, admitted: Admitted, contract: Contract) -> Self {
        let subs = Subs::new(stream.fan_outs.clone());
        Self { stream, admitted, subs, contract, greeting: Vec::new() }
    }

    pub(crate) fn add(&mut self, dialect: Dialect, wish: Wish, start: Start) {
        let delivery = self.stream.subscribe(wish, start, &self.subs.bell);
        self.subs.add(dialect, delivery);
    }

    /// Serves the socket until either side ends it.
    pub(crate) async fn run(mut self, websocket: WebSocket) {
        let stream = self.stream.clone();
        let _open = stream.metrics.open(match self.contract {
            Contract::Plain => "websocket",
            Contract::Framed => "framed",
        });
        let wire = Arc::new(Wire::new(websocket));
        let served = self.serve(&wire).await;
        if matches!((self.contract, &served), (Contract::Plain, Ok(Close::Missed))) {
            stream.metrics.dropped.with_label_values(&["slow"]).inc();
        }
        // Nothing is written to it any more.
        drop(self.subs);
        if let (Ok(close), Some(wire)) = (served, Arc::into_inner(wire)) {
            Box::pin(close.tell(&mut wire.into_inner(), &stream.metrics)).await;
        }
    }

    async fn serve(&mut self, wire: &Arc<Wire>) -> Result<Close, Gone> {
        let greeting = std::mem::take(&mut self.greeting);
        Box::pin(self.say(wire, greeting)).await?;
        let mut heart = Heart::new(&self.stream.config, self.stream.feed.begun_at);
        let end_at = Instant::now() + self.stream.lifetime();
        // Kept from turn to turn: made anew they would take the locks of two tokens and of the timers.
        let drain = self.stream.drain.clone();
        let mut drained = pin!(drain.cancelled());
        let mut ended = pin!(self.admitted.grant.ended().cancelled_owned());
        let mut alarm = pin!(sleep_until(heart.next));
        loop {
            let next = self.next_look(&heart, end_at);
            if alarm.deadline() != next {
                alarm.as_mut().reset(next);
            }
            // Cancel safe: the stream keeps what it has read, and a bell rings until it is heard.
            tokio::select! {
                biased;
                () = ended.as_mut() => return Ok(Close::Revoked),
                () = drained.as_mut() => return Box::pin(self.go_away(wire, Close::Restart)).await,
                message = wire.next() => match message {
                    Some(Ok(Message::Pong(_))) => heart.answered(),
                    Some(Ok(Message::Close(_))) => {
                        Box::pin(close::answer(wire.messages())).await;
                        return Err(Gone);
                    }
                    None => return Err(Gone),
                    Some(Err(error)) => return Close::of_fault(error),
                    Some(Ok(message)) => {
                        // In a box, as all that is rare: a socket that is silent does not keep room for it.
                        if let Some(close) = Box::pin(self.hear(wire, message)).await? {
                            return Ok(close);
                        }
                        // By a command it may go on with another token.
                        ended.set(self.admitted.grant.ended().cancelled_owned());
                    }
                },
                () = alarm.as_mut() => {
                    if let Some(close) = Box::pin(self.keep_time(wire, &mut heart, end_at)).await? {
                        return Ok(close);
                    }
                    if let Some(close) = Box::pin(self.show(wire)).await? {
                        return Ok(close);
                    }
                }
                () = self.subs.bell.notified() => {
                    if let Some(close) = Box::pin(self.show(wire)).await? {
                        return Ok(close);
                    }
                }
            }
        }
    }

    /// When there is something to do that nobody rings for.
    fn next_look(&self, heart: &Heart, end_at: Instant) -> Instant {
        let next = self.admitted.grant.until(heart.next);
        let next = if self.contract == Contract::Framed { next.min(end_at) } else { next };
        self.subs.due().map_or(next, |due| due.min(next))
    }

    /// Ends what is over, and pings when it is time.
    async fn keep_time(
        &mut self,
        wire: &Arc<Wire>,
        heart: &mut Heart,
        end_at: Instant,
    ) -> Result<Option<Close>, Gone> {
        let now = Instant::now();
        if self.admitted.grant.is_over(now) {
            return Ok(Some(Close::Expired));
        }
        if self.contract == Contract::Framed && end_at <= now {
            return Box::pin(self.go_away(wire, Close::Lifetime)).await.map(Some);
        }
        if heart.next > now {
            return Ok(None);
        }
        if !heart.beat() {
            return Err(Gone);
        }
        let moved = self.subs.moved();
        if let Some(close) = self.write(wire, moved).await? {
            return Ok(Some(close));
        }
        wire.send(Message::Ping(Bytes::new())).await?;
        Ok(None)
    }

    /// Does what the client says.
    async fn hear(&mut self, wire: &Wire, message: Message) -> Result<Option<Close>, Gone> {
        match (self.contract, message) {
            (Contract::Framed, Message::Text(text)) => match self.obey(&text).await {
                Some(answer) => self.say(wire, [answer]).await.map(|()| None),
                None => Ok(Some(Close::BadCommand)),
            },
            (Contract::Framed, Message::Binary(_)) => Ok(Some(Close::BadCommand)),
            _ => Ok(None),
        }
    }

    /// Sends what is due.
    async fn show(&mut self, wire: &Arc<Wire>) -> Result<Option<Close>, Gone> {
        match self.subs.pull(wire) {
            Ok(frames) => self.write(wire, frames).await,
            Err(stop) => stop.close().map(Some),
        }
    }

    /// Writes frames and what waits before them; says how to close when the client takes nothing, or its key
    /// ended meanwhile.
    async fn write(&self, wire: &Wire, frames: Vec<Bytes>) -> Result<Option<Close>, Gone> {
        if frames.is_empty() && !wire.is_busy() {
            return Ok(None);
        }
        let patience = match self.contract {
            // It would be told of a gap after that, if it could be told.
            Contract::Plain => self.stream.config.max_lag,
            Contract::Framed => STUCK,
        };
        let ended = self.admitted.grant.ended();
        // What a write given up had begun is written before the close frame, which comes after whole frames.
        tokio::select! {
            biased;
            () = ended.cancelled() => Ok(Some(Close::Revoked)),
            written = wire.write(frames, patience) => match written? {
                Stuck::No => Ok(None),
                Stuck::Yes => Ok(Some(Close::Missed)),
            },
        }
    }

    /// Writes texts that are no events.
    async fn say(&self, wire: &Wire, texts: impl IntoIterator<Item = String>) -> Result<(), Gone> {
        let frames: Vec<_> = texts.into_iter().map(|text| frame::text(&text)).collect();
        wire.write(frames, STUCK).await?.or_gone()
    }

    /// Sends what is due, and where to go on.
    async fn go_away(&mut self, wire: &Arc<Wire>, close: Close) -> Result<Close, Gone> {
        if let Err(stop) = self.subs.part() {
            return stop.close();
        }
        let last = Instant::now() + LAST_WORDS;
        while Instant::now() < last {
            let frames = match self.subs.pull(wire) {
                Ok(frames) if frames.is_empty() && !wire.is_busy() => break,
                Ok(frames) => frames,
                Err(stop) => return stop.close(),
            };
            if let Some(close) = self.write(wire, frames).await? {
                return Ok(close);
            }
        }
        if self.contract == Contract::Framed {
            // Told by what follows.
            drop(self.subs.moved());
            let after_ms = self.stream.reconnect_after_ms(close);
            let goaway = frames::goaway(after_ms, self.subs.places());
            self.say(wire, [goaway]).await?;
        }
        Ok(close)
    }
}
