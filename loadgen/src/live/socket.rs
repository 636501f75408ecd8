//! One dashboard: connects, reads, checks, connects again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use rand::RngExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::{Message, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::check::Seen;
use super::frame::Event;
use super::{Plan, Received, Target};
use crate::clock::unix_ms;

type Stream = WebSocketStream<TcpStream>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const NO_CODE: u16 = 1005;
const CUT: u16 = 1006;

/// One socket over all its connections.
pub(super) struct Socket {
    plan: Arc<Plan>,
    number: usize,
    /// Connections tried and made so far.
    attempts: usize,
    connections: u64,
    seen: Seen,
}

impl Socket {
    pub(super) fn new(plan: Arc<Plan>, number: usize) -> Self {
        Self { plan, number, attempts: 0, connections: 0, seen: Seen::default() }
    }

    /// Holds a connection until the run is stopped; without reconnecting, until the first one ends.
    pub(super) async fn run(mut self) {
        let plan = Arc::clone(&self.plan);
        let mut failures = 0;
        let mut stream = None;
        let hold = async {
            loop {
                match self.connect().await {
                    Some(connected) => {
                        failures = 0;
                        self.read_to_end(stream.insert(connected)).await;
                        stream = None;
                    }
                    None => failures += 1,
                }
                plan.control.add_problem();
                if !plan.options.reconnect {
                    return;
                }
                sleep(pause(failures)).await;
            }
        };
        // Stopping drops the socket's work wherever it stands; counted events stay counted.
        tokio::select! {
            () = hold => {}
            () = plan.control.stopped() => {}
        }
        if let Some(stream) = stream {
            say_goodbye(stream).await;
        }
    }

    /// One handshake. A failure is counted here.
    async fn connect(&mut self) -> Option<Stream> {
        let plan = Arc::clone(&self.plan);
        // The semaphore is never closed; a permit that cannot be had would be a failed connect.
        let _permit = plan.handshakes.acquire().await.ok()?;
        // A socket that was closed or refused goes on at the next broadcaster.
        let target = &plan.targets[(self.number + self.attempts) % plan.targets.len()];
        self.attempts += 1;
        let result = timeout(CONNECT_TIMEOUT, handshake(target, plan.options.key.as_deref())).await;
        match result {
            Ok(Ok(stream)) => {
                self.connections += 1;
                self.seen.reconnected();
                plan.tally().connected(self.connections == 1, &plan);
                plan.control.opened();
                return Some(stream);
            }
            Ok(Err(Error::Http(answer))) => {
                *plan.tally().refused.entry(answer.status().as_u16()).or_default() += 1;
            }
            Ok(Err(_)) | Err(_) => plan.tally().connect_errors += 1,
        }
        None
    }

    /// Reads until the connection ends and counts how it ended.
    async fn read_to_end(&mut self, stream: &mut Stream) {
        let code = loop {
            match stream.next().await {
                Some(Ok(Message::Text(text))) => self.take(text.as_str()),
                Some(Ok(Message::Binary(_))) => self.plan.tally().undecodable("a binary frame"),
                // The library answers it at the next read.
                Some(Ok(Message::Ping(_))) => self.plan.tally().pings += 1,
                Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(frame))) => {
                    // The next read sends our half of the goodbye.
                    let _gone = timeout(CLOSE_TIMEOUT, stream.next()).await.is_err();
                    break frame.map_or(NO_CODE, |frame| frame.code.into());
                }
                Some(Err(error)) => {
                    let cut = ProtocolError::ResetWithoutClosingHandshake;
                    if !matches!(&error, Error::Io(_)) && !is_protocol(&error, &cut) {
                        self.plan.tally().protocol_errors += 1;
                    }
                    break CUT;
                }
                None => break CUT,
            }
        };
        *self.plan.tally().closes.entry(code).or_default() += 1;
        self.plan.control.closed();
    }

    fn take(&mut self, text: &str) {
        let now_ms = unix_ms();
        let Ok(event) = Event::parse(text) else {
            self.plan.tally().undecodable(text);
            return;
        };
        let (event_number, device_number) = self.plan.interner().numbers(event.id, event.device_id);
        let verdict = self.seen.check(event_number, device_number, event.seq());
        let latency = Duration::from_millis(now_ms.saturating_sub(event.timestamp));
        self.plan.tally().event(&verdict, latency);
        self.plan.control.add_done();
        if let Some(record) = &self.plan.record {
            record.write(&Received {
                socket: self.number,
                connection: self.connections,
                id: event.id,
                device: event.device_id,
                seq: event.seq(),
                at: now_ms,
            });
        }
    }
}

fn is_protocol(error: &Error, wanted: &ProtocolError) -> bool {
    matches!(error, Error::Protocol(fault) if fault == wanted)
}

async fn handshake(target: &Target, key: Option<&str>) -> Result<Stream, Error> {
    let mut request: Request = target.url.as_str().into_client_request()?;
    if let Some(key) = key {
        request.headers_mut().insert("x-api-key", HeaderValue::from_str(key)?);
    }
    let tcp = target.origin.connect().await?;
    // The default read buffer of 128 KiB would be all the memory there is at some thousand sockets.
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
    let (stream, _) = client_async_with_config(request, tcp, Some(config)).await?;
    Ok(stream)
}

/// The run ends: closes politely. A server that does not answer in time is just left.
async fn say_goodbye(mut stream: Stream) {
    let _gone = timeout(CLOSE_TIMEOUT, stream.close(None)).await.is_err();
}

/// 50 ms doubled per failure in a row up to 1 s, half of it random.
fn pause(failures: u32) -> Duration {
    let full_ms = (50_u64 << failures.min(5)).min(1_000);
    Duration::from_millis(full_ms / 2 + rand::rng().random_range(0..=full_ms / 2))
}
