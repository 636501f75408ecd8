//! A reader of server-sent events, as tests see them.

use reqwest::Response;
use serde_json::Value;

use crate::client::PATIENCE;

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct SseMessage {
    /// Its name; empty for an event of a device.
    pub event: String,
    /// The cursor after it; empty when it names none.
    pub id: String,
    /// Its data; `null` when it has none.
    pub data: Value,
}

/// An open stream.
pub struct Sse {
    response: Response,
    text: String,
}

impl Sse {
    /// Asks for the stream, as `EventSource` does; `last_id` is empty the first time.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn connect(url: &str, key: &str, query: &str, last_id: &str) -> Self {
        Self::open(url, key, query, last_id).await.expect("an answer")
    }

    /// The same for a server that may be away.
    ///
    /// # Errors
    /// When there is no answer, or another than 200.
    pub async fn open(url: &str, key: &str, query: &str, last_id: &str) -> reqwest::Result<Self> {
        let mut request = reqwest::Client::new()
            .get(format!("{url}/v1/stream/sse?{query}"))
            .header("x-api-key", key)
            .header("accept", "text/event-stream");
        if !last_id.is_empty() {
            request = request.header("last-event-id", last_id);
        }
        let response = request.send().await?.error_for_status()?;
        Ok(Self { response, text: String::new() })
    }

    /// A header of the answer, empty when absent.
    pub fn header(&self, name: &str) -> &str {
        let value = self.response.headers().get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The next message; `None` at the end of the stream. Comments are left out.
    ///
    /// # Panics
    /// When neither comes in time.
    pub async fn next(&mut self) -> Option<SseMessage> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let message = read(block);
                self.text = rest.to_owned();
                if message.is_some() {
                    return message;
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk());
            let chunk = chunk.await.expect("a message in time").ok().flatten()?;
            self.text.push_str(std::str::from_utf8(&chunk).expect("whole lines of text"));
        }
    }

    /// The next `count` messages.
    ///
    /// # Panics
    /// When they do not come in time.
    pub async fn take(&mut self, count: usize) -> Vec<SseMessage> {
        let mut messages = Vec::with_capacity(count);
        while messages.len() < count {
            messages.push(self.next().await.expect("a message"));
        }
        messages
    }
}

/// A block of lines; `None` for a comment.
fn read(block: &str) -> Option<SseMessage> {
    let field = |name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.unwrap_or_default()
    };
    let (event, id) = (field("event").to_owned(), field("id").to_owned());
    let data = serde_json::from_str(field("data")).unwrap_or_default();
    let empty = event.is_empty() && id.is_empty() && data == Value::Null;
    (!empty).then_some(SseMessage { event, id, data })
}
