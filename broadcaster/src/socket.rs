//! One plain WebSocket: each event is one text frame holding the event's JSON, and nothing else is sent
//! as text (the original system's contract). What the client sends is read and ignored. It cannot be told of
//! a gap, so it is closed instead.

use std::sync::Arc;

use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::access::Admitted;
use crate::close::{self, Close};
use crate::dialect::Dialect;
use crate::group::wait_until;
use crate::heart::Heart;
use crate::resume::Start;
use crate::stream::Stream;
use crate::subs::{Stop, Subs};
use crate::wire::{Gone, Stuck, Wire};
use crate::wish::Wish;

pub(crate) struct Socket {
    stream: Arc<Stream>,
    /// By whom it was opened.
    admitted: Admitted,
    ended: CancellationToken,
    subs: Subs,
}

impl Socket {
    pub(crate) fn new(stream: Arc<Stream>, admitted: Admitted, wish: Wish, start: Start) -> Self {
        let ended = admitted.grant.ended();
        let mut subs = Subs::new(stream.clone());
        let delivery = stream.subscribe(wish, start, &subs.bell);
        subs.add(Dialect::Plain, delivery);
        Self { stream, admitted, ended, subs }
    }

    /// Serves the socket until either side ends it.
    pub(crate) async fn run(mut self, websocket: WebSocket) {
        let stream = self.stream.clone();
        let _open = stream.metrics.open("websocket");
        let wire = Arc::new(Wire::new(websocket));
        let served = self.serve(&wire).await;
        // Nothing is written to it any more.
        drop(self.subs);
        if let (Ok(close), Some(wire)) = (served, Arc::into_inner(wire)) {
            if close == Close::Missed {
                stream.metrics.dropped.with_label_values(&["slow"]).inc();
            }
            close.tell(&mut wire.into_inner(), &stream.metrics).await;
        }
    }

    async fn serve(&mut self, wire: &Arc<Wire>) -> Result<Close, Gone> {
        let mut heart = Heart::new(&self.stream.config);
        loop {
            // Cancel safe: the stream keeps what it has read, and a bell rings until it is heard.
            tokio::select! {
                biased;
                () = self.ended.cancelled() => return Ok(Close::Revoked),
                () = self.stream.drain.cancelled() => return self.go_away(wire).await,
                () = sleep_until(self.admitted.grant.until(heart.next)) => {
                    if self.admitted.grant.is_over(Instant::now()) {
                        return Ok(Close::Expired);
                    }
                    if !heart.beat() {
                        return Err(Gone);
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
                    Some(Err(error)) => return Close::of_fault(error),
                    Some(Ok(_)) => {}
                },
                () = wait_until(self.subs.due(), &self.subs.bell) => {
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

    /// Writes frames and what waits before them; says how to close when the client takes nothing, or its key
    /// ended meanwhile.
    async fn write(&self, wire: &Wire, frames: Vec<Utf8Bytes>) -> Result<Option<Close>, Gone> {
        if frames.is_empty() && !wire.is_busy() {
            return Ok(None);
        }
        let patience = self.stream.config.max_lag;
        // The library keeps what a write given up had handed to it, so the close frame comes after whole
        // frames.
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Ok(Some(Close::Revoked)),
            written = wire.write(frames.into_iter().map(Message::Text), patience) => match written? {
                Stuck::No => Ok(None),
                Stuck::Yes => Ok(Some(Close::Missed)),
            },
        }
    }

    /// Sends what is due.
    async fn go_away(&mut self, wire: &Arc<Wire>) -> Result<Close, Gone> {
        if self.subs.part().is_err() {
            return Ok(Close::Restart);
        }
        while let Ok(frames) = self.subs.pull(wire) {
            if frames.is_empty() && !wire.is_busy() {
                break;
            }
            if let Some(close) = self.write(wire, frames).await? {
                return Ok(close);
            }
        }
        Ok(Close::Restart)
    }
}
