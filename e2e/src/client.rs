//! A device and a dashboard, as tests see them.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use pulsestream_shared::clock;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use uuid::Uuid;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An answer of the gateway.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The body, `null` when it is not JSON.
    pub body: Value,
}

impl Answer {
    /// A header's text, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// Posts events with one key.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: String,
}

/// A good body of now.
pub fn event(device: Uuid, value: f64) -> Value {
    json!({
        "deviceId": device,
        "eventType": "temperature",
        "value": value,
        "timestamp": clock::unix_ms(),
    })
}

impl Client {
    /// Talks to the gateway at `url`.
    pub fn new(url: &str, key: &str) -> Self {
        let http = reqwest::Client::builder()
            .timeout(PATIENCE)
            .build()
            .expect("a client without TLS always builds");
        Self { http, url: url.to_owned(), key: key.to_owned() }
    }

    /// The same device at another gateway.
    #[must_use]
    pub fn at(&self, url: &str) -> Self {
        Self { url: url.to_owned(), ..self.clone() }
    }

    /// The same gateway with another key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    /// `POST /v1/events`.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub async fn post(&self, id: Uuid, body: &Value) -> reqwest::Result<Answer> {
        let request = self
            .http
            .post(format!("{}/v1/events", self.url))
            .header("x-api-key", &self.key)
            .header("idempotency-key", id.to_string())
            .header("content-type", "application/json")
            .body(body.to_string());
        answer(request).await
    }

    /// Posts a good event and expects 202.
    ///
    /// # Panics
    /// When it is not accepted.
    #[track_caller]
    pub fn accept(&self, device: Uuid, value: f64) -> impl Future<Output = Uuid> {
        let caller = std::panic::Location::caller();
        async move {
            let id = Uuid::new_v4();
            let answer = self.post(id, &event(device, value)).await.expect("an answer");
            assert_eq!(answer.status, 202, "{caller}: {answer:?}");
            id
        }
    }

    /// A request of any kind, built by the test, with the key.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub async fn send(
        &self,
        build: impl FnOnce(&reqwest::Client, &str) -> reqwest::RequestBuilder,
    ) -> reqwest::Result<Answer> {
        answer(build(&self.http, &self.url).header("x-api-key", &self.key)).await
    }

    /// `POST` of JSON to a path, with the key.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub async fn post_json(&self, path: &str, body: &Value) -> reqwest::Result<Answer> {
        self.send(|http, url| {
            let request = http.post(format!("{url}{path}"));
            request.header("content-type", "application/json").body(body.to_string())
        })
        .await
    }

    /// `GET` of a path, without a key.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub async fn get(&self, path: &str) -> reqwest::Result<Answer> {
        answer(self.http.get(format!("{}{path}", self.url))).await
    }
}

impl Client {
    /// The text of a page, such as `/metrics`, without a key.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub async fn get_text(&self, path: &str) -> reqwest::Result<String> {
        self.http.get(format!("{}{path}", self.url)).send().await?.text().await
    }

    /// The value of a series of `/metrics`, all its labels named as they stand there; `None` when it is not there.
    ///
    /// # Panics
    /// When there is no answer, or the value is no whole number.
    pub async fn figure(&self, series: &str) -> Option<u64> {
        let text = self.get_text("/metrics").await.expect("metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(value.parse().expect("a whole number"))
    }
}

async fn answer(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await?;
    Ok(Answer { status, headers, body: serde_json::from_str(&text).unwrap_or_default() })
}

/// The status of a server that refused a socket.
///
/// # Panics
/// When it did not refuse, or did not answer at all.
#[track_caller]
pub fn refusal(connected: Result<Dashboard, WsError>) -> u16 {
    match connected.map(drop) {
        Err(WsError::Http(answer)) => answer.status().as_u16(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// A dashboard's socket.
pub struct Dashboard {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The subprotocol the server took; empty when none was.
    pub protocol: String,
}

impl Dashboard {
    /// Connects to `/v1/stream` with that query.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn connect(url: &str, key: &str, query: &str) -> Result<Self, WsError> {
        Self::open(url, query, &[("x-api-key", key)]).await
    }

    /// The same with these headers, such as a browser's; empty ones are left out.
    ///
    /// # Errors
    /// When the server refuses, or takes none of the offered subprotocols.
    pub async fn open(
        url: &str,
        query: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, WsError> {
        let url = format!("{}/v1/stream?{query}", url.replacen("http", "ws", 1));
        let mut request = url.into_client_request()?;
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request.headers_mut().insert(*name, value.parse()?);
        }
        let (socket, answer) = connect_async(request).await?;
        let protocol = answer.headers().get("sec-websocket-protocol");
        let protocol = protocol.and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok(Self { socket, protocol: protocol.to_owned() })
    }

    /// Sends a text.
    ///
    /// # Panics
    /// When the socket is closed.
    pub async fn say(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.expect("sent");
    }

    /// The next event.
    ///
    /// # Panics
    /// When none comes in time, or the socket ends.
    pub async fn next(&mut self) -> Value {
        match self.next_message().await {
            Message::Text(text) => serde_json::from_str(&text).expect("an event's JSON"),
            other => panic!("expected an event, got {other:?}"),
        }
    }

    /// The next frame; `None` when the socket ends in whatever way, or nothing comes.
    ///
    /// # Panics
    /// When it is no JSON.
    pub async fn next_frame(&mut self) -> Option<Value> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.socket.next()).await;
            match next.ok().flatten()?.ok()? {
                Message::Text(text) => return Some(serde_json::from_str(&text).expect("JSON")),
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// The next event, or none for so long.
    ///
    /// # Panics
    /// When the socket ends.
    pub async fn next_within(&mut self, time: Duration) -> Option<Value> {
        tokio::time::timeout(time, self.next()).await.ok()
    }

    /// The next `count` events.
    ///
    /// # Panics
    /// When they do not come in time, or the socket ends.
    pub async fn take(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.next().await);
        }
        events
    }

    /// Closes the socket; the code of the server's answer, none when it only ends.
    ///
    /// # Panics
    /// When neither comes in time.
    pub async fn close(&mut self) -> Option<u16> {
        let code = 1000.into();
        self.socket.close(Some(CloseFrame { code, reason: "".into() })).await.expect("sent");
        let ended = async {
            loop {
                match self.socket.next().await? {
                    Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("an end in time")
    }

    /// The close code the server sends, after any number of events.
    ///
    /// # Panics
    /// When it does not close in time.
    pub async fn close_code(&mut self) -> u16 {
        self.read_to_the_end().await.1
    }

    /// Every event until the server closes, and its close code.
    ///
    /// # Panics
    /// When it does not close in time.
    pub async fn read_to_the_end(&mut self) -> (Vec<Value>, u16) {
        let mut events = Vec::new();
        loop {
            match self.next_message().await {
                Message::Text(text) => {
                    events.push(serde_json::from_str(&text).expect("an event's JSON"));
                }
                Message::Close(frame) => {
                    return (events, frame.map_or(1005, |frame| frame.code.into()));
                }
                other => panic!("expected an event or the end, got {other:?}"),
            }
        }
    }

    /// Pings in between do not lengthen the wait.
    async fn next_message(&mut self) -> Message {
        let wanted = async {
            loop {
                match self.socket.next().await.expect("an open socket").expect("a frame") {
                    Message::Ping(_) | Message::Pong(_) => {}
                    message => return message,
                }
            }
        };
        tokio::time::timeout(PATIENCE, wanted).await.expect("a frame in time")
    }
}
