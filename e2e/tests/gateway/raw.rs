//! HTTP by hand, for requests that no client library would send.

use std::time::Duration;

use pulsestream_e2e::client::PATIENCE;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One connection to a server.
pub(crate) struct Raw(TcpStream);

/// What the server sent until it closed, or until its body was whole.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Heard {
    /// A header's value, empty when absent.
    pub(crate) fn header(&self, name: &str) -> String {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    }
}

/// The head of a POST of an event; the caller ends it with an empty line.
pub(crate) fn head(key: &str, id: impl std::fmt::Display, length: usize) -> String {
    format!(
        "POST /v1/events HTTP/1.1\r\nhost: test\r\nx-api-key: {key}\r\nidempotency-key: {id}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n"
    )
}

impl Raw {
    pub(crate) async fn connect(url: &str) -> Self {
        let address = url.trim_start_matches("http://");
        Self(TcpStream::connect(address).await.expect("connected"))
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("sent");
    }

    /// Reads one whole answer.
    pub(crate) async fn answer(&mut self) -> Heard {
        self.answer_or_end().await.expect("an answer before the end")
    }

    /// Reads one whole answer; `None` when the server closes before.
    pub(crate) async fn answer_or_end(&mut self) -> Option<Heard> {
        let mut bytes = Vec::new();
        loop {
            if let Some(heard) = parse(&bytes) {
                return Some(heard);
            }
            let read = timeout(PATIENCE, self.0.read_buf(&mut bytes)).await;
            if read.expect("an answer in time").is_ok_and(|count| count > 0) {
                continue;
            }
            return None;
        }
    }

    /// Waits until the server closes; fails when it sends anything or takes longer than `most`.
    pub(crate) async fn closed_within(&mut self, most: Duration) {
        let mut bytes = Vec::new();
        match timeout(most, self.0.read_to_end(&mut bytes)).await {
            Ok(Ok(_)) => assert!(bytes.is_empty(), "{:?}", String::from_utf8_lossy(&bytes)),
            Ok(Err(reset)) => assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset),
            Err(_) => panic!("still open after {most:?}"),
        }
    }
}

/// All that a server says to a `GET`, byte for byte but for the time of day.
pub(crate) async fn said_to_get(url: &str, path: &str, key: &str, headers: &str) -> String {
    let mut raw = Raw::connect(url).await;
    let head = format!("GET {path} HTTP/1.1\r\nhost: test\r\nx-request-id: same\r\n");
    raw.send(format!("{head}x-api-key: {key}\r\n{headers}\r\n")).await;
    let mut bytes = Vec::new();
    timeout(PATIENCE, raw.0.read_to_end(&mut bytes)).await.expect("in time").expect("read");
    let text = String::from_utf8(bytes).expect("text");
    text.split_inclusive("\r\n").filter(|line| !line.starts_with("date: ")).collect()
}

fn parse(bytes: &[u8]) -> Option<Heard> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut heard = Heard { status, head: head.to_owned(), body: Value::Null };
    let length: usize = heard.header("content-length").parse().unwrap_or(0);
    if body.len() < length {
        return None;
    }
    heard.body = serde_json::from_str(body).unwrap_or_default();
    Some(heard)
}
