//! One POST of OTLP over HTTP/1.1, without TLS: the collector is on this machine or in this cluster.
//!
//! A connection for each POST: there is one a second at most, and none that lies open can be stale.

use std::time::Duration;

use axum::http::{Request, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

/// How long one POST may take, name resolution included.
const POST_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of an answer; what is refused is told in a few.
const MOST_ANSWER_BYTES: usize = 64 << 10;

/// Where spans are sent.
pub(crate) struct Collector {
    host: String,
    port: u16,
    path: String,
}

/// Why spans were not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    #[error("not reached: {0}")]
    Connect(#[from] std::io::Error),
    #[error("connection lost: {0}")]
    Exchange(#[from] hyper::Error),
    #[error("answer not read: {0}")]
    Answer(Box<dyn std::error::Error + Send + Sync>),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("no answer within 5 s")]
    Late(#[from] tokio::time::error::Elapsed),
}

impl Collector {
    /// The collector at that endpoint (`http://HOST[:PORT][/PATH]`); `None` when it is not one, or empty.
    pub(crate) fn at(endpoint: &str) -> Option<Self> {
        let url = Url::parse(endpoint).ok().filter(|url| url.scheme() == "http")?;
        Some(Self {
            host: url.host_str()?.trim_matches(['[', ']']).to_owned(),
            port: url.port_or_known_default()?,
            path: format!("{}/v1/traces", url.path().trim_end_matches('/')),
        })
    }

    /// Posts an encoded request; returns the encoded answer.
    pub(super) async fn post(&self, body: Bytes) -> Result<Bytes, PostError> {
        timeout(POST_WITHIN, self.exchange(body)).await?
    }

    async fn exchange(&self, body: Bytes) -> Result<Bytes, PostError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::post(&self.path)
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|error| PostError::Answer(error.into()))?;
        let exchange = async move {
            let answer = sender.send_request(request).await?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, MOST_ANSWER_BYTES).collect().await;
            let body = body.map_err(PostError::Answer)?.to_bytes();
            if parts.status.is_success() { Ok(body) } else { Err(PostError::Status(parts.status)) }
        };
        // The connection moves while it is polled, and ends with the exchange.
        let (answer, _) = tokio::join!(exchange, connection);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_where_paths_of_the_protocol_begin() {
        let at = |text| Collector::at(text).map(|found| (found.host, found.port, found.path));
        let found = |host: &str, port, path: &str| Some((host.to_owned(), port, path.to_owned()));
        assert_eq!(at("http://otel:4000"), found("otel", 4000, "/v1/traces"));
        assert_eq!(at("http://[::1]/base/"), found("::1", 80, "/base/v1/traces"));
        for none in ["", "otel:4318", "https://otel:4318", "grpc://otel:4317"] {
            assert_eq!(at(none), None, "{none}");
        }
    }
}
