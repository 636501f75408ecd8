//! A WebSocket whose client is not known when it is opened: one that says by its first message who it is,
//! and one that is told why it may not stay.

use std::sync::Arc;

use futures_util::StreamExt as _;
use pulsestream_shared::problem::{Code, Problem};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tungstenite::Message;

use crate::access::{Admitted, Shown};
use crate::close::{self, Close};
use crate::commands::Auth;
use crate::doors::Arrival;
use crate::line::WebSocket;
use crate::socket::Socket;
use crate::stream::Stream;
use crate::wire::Gone;
use crate::wish::Wish;

/// Sockets of nobody known, at once: strangers take no more memory than these.
const STRANGERS: usize = 1_000;

/// The places of those who are not known yet.
pub(crate) struct Porch(Arc<Semaphore>);

/// One of them.
pub(crate) struct Place(
    #[expect(dead_code, reason = "given back when dropped")] OwnedSemaphorePermit,
);

impl Default for Porch {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(STRANGERS)))
    }
}

impl Porch {
    /// # Errors
    /// 503 when all places are taken.
    pub(crate) fn enter(&self) -> Result<Place, Problem> {
        self.0.clone().try_acquire_owned().map(Place).map_err(|_| Code::Overloaded.into())
    }
}

/// One that has not said who it is. Nothing is shown to it, and nothing else is done for it.
pub(crate) struct Newcomer {
    pub(crate) stream: Arc<Stream>,
    pub(crate) arrival: Arrival,
    pub(crate) query: String,
    pub(crate) place: Place,
}

/// What becomes of it.
enum Heard {
    Auth(Auth),
    Close(Close),
}

impl Newcomer {
    /// Serves the socket until either side ends it.
    pub(crate) async fn run(self, mut websocket: WebSocket) {
        let stream = self.stream.clone();
        let close = match self.listen(&mut websocket).await {
            Err(Gone) => return,
            Ok(Heard::Close(close)) => close,
            Ok(Heard::Auth(auth)) => match self.become_known(&auth).await {
                Ok(socket) => return socket.run(websocket).await,
                Err(problem) => {
                    stream.metrics.refused(&problem);
                    Close::of(&problem).unwrap_or(Close::Busy)
                }
            },
        };
        close.tell(&mut websocket, &stream.metrics).await;
    }

    async fn listen(&self, websocket: &mut WebSocket) -> Result<Heard, Gone> {
        tokio::select! {
            heard = timeout(self.stream.config.auth_timeout, first_word(websocket)) => Ok(match heard {
                Ok(heard) => heard?,
                Err(_) => Heard::Close(Close::BadToken),
            }),
            () = self.stream.drain.cancelled() => Ok(Heard::Close(Close::Restart)),
        }
    }

    async fn become_known(self, auth: &Auth) -> Result<Socket, Problem> {
        let Self { stream, arrival, query, place } = self;
        let grant = stream.access.grant(&Shown::Token(auth.token.expose().into())).await?;
        let admitted = Admitted::new(grant, arrival)?;
        let grant = &admitted.grant;
        let wish = grant.narrow(Wish::parse(grant.audience, &query)?)?;
        let start = stream.judge(&wish, "framed").await?;
        drop(place);
        Ok(Socket::framed(stream, admitted, wish, start).answering(&auth.id))
    }
}

/// The first message; pings and pongs before it are the library's to answer.
async fn first_word(websocket: &mut WebSocket) -> Result<Heard, Gone> {
    loop {
        match websocket.next().await {
            Some(Ok(Message::Text(text))) => {
                return Ok(Auth::parse(&text).map_or(Heard::Close(Close::BadToken), Heard::Auth));
            }
            Some(Ok(Message::Binary(_))) => return Ok(Heard::Close(Close::BadToken)),
            Some(Ok(Message::Close(_))) => {
                close::answer(websocket).await;
                return Err(Gone);
            }
            None => return Err(Gone),
            Some(Err(error)) => return Close::of_fault(error).map(Heard::Close),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_have_so_many_places_and_no_more() {
        let porch = Porch::default();
        let mut places: Vec<_> = (0..STRANGERS).map(|_| porch.enter().unwrap()).collect();
        assert_eq!(porch.enter().map(drop).unwrap_err().code(), Code::Overloaded);
        places.pop();
        assert!(porch.enter().is_ok());
    }
}
