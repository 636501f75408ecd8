//! How a request becomes a WebSocket (RFC 6455, 4.2), over HTTP/1.1.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::upgrade::OnUpgrade;
use pulsestream_shared::header_list;
use pulsestream_shared::service::Upgraded;
use tungstenite::handshake::derive_accept_key;

use crate::line::{Line, WebSocket};

/// A request that asks for a WebSocket as it should.
pub(crate) struct Upgrade {
    on: OnUpgrade,
    accept: HeaderValue,
    /// Of the subprotocols that were offered, the one that is taken.
    pub(crate) protocol: Option<HeaderValue>,
}

impl Upgrade {
    /// `None` when it asks for no WebSocket, or cannot be one.
    pub(crate) fn of(headers: &HeaderMap, on: Option<OnUpgrade>) -> Option<Self> {
        let asked = names(headers, header::CONNECTION, "upgrade")
            && names(headers, header::UPGRADE, "websocket")
            && headers.get(header::SEC_WEBSOCKET_VERSION)? == "13";
        let key = headers.get(header::SEC_WEBSOCKET_KEY)?;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok()?;
        asked.then_some(Self { on: on?, accept, protocol: None })
    }

    /// The answer; the WebSocket is served once it was sent.
    pub(crate) fn start<F>(self, serve: impl FnOnce(WebSocket) -> F + Send + 'static) -> Response
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let on = self.on;
        tokio::spawn(async move {
            match on.await {
                Ok(upgraded) => {
                    let (connection, begun) = Upgraded::of(upgraded);
                    serve(Line::open(connection, begun).await).await;
                }
                // The client's doing.
                Err(error) => tracing::debug!(%error, "no WebSocket came of a handshake"),
            }
        });
        let headers = [
            (header::CONNECTION, HeaderValue::from_static("upgrade")),
            (header::UPGRADE, HeaderValue::from_static("websocket")),
            (header::SEC_WEBSOCKET_ACCEPT, self.accept),
        ];
        let protocol = self.protocol.map(|taken| [(header::SEC_WEBSOCKET_PROTOCOL, taken)]);
        (StatusCode::SWITCHING_PROTOCOLS, headers, protocol, Body::empty()).into_response()
    }
}

/// Whether the header's list has that word.
fn names(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    header_list::items(headers, name).any(|item| item.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(changed: &[(HeaderName, &'static str)]) -> HeaderMap {
        let asked = [
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::UPGRADE, "WebSocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let mut headers = HeaderMap::new();
        for (name, value) in asked.iter().chain(changed) {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers
    }

    fn is_asked(headers: &HeaderMap) -> bool {
        let mut request = hyper::Request::new(());
        Upgrade::of(headers, Some(hyper::upgrade::on(&mut request))).is_some()
    }

    #[test]
    fn what_the_protocol_demands_of_a_handshake_is_demanded() {
        assert!(is_asked(&headers(&[])));
        for wrong in [
            (header::CONNECTION, "keep-alive"),
            (header::UPGRADE, "h2c"),
            (header::SEC_WEBSOCKET_VERSION, "8"),
        ] {
            assert!(!is_asked(&headers(std::slice::from_ref(&wrong))), "{wrong:?}");
        }
        let mut without = headers(&[]);
        without.remove(header::SEC_WEBSOCKET_KEY);
        assert!(!is_asked(&without));
        assert!(Upgrade::of(&headers(&[]), None).is_none(), "a connection that cannot change");
    }

    #[test]
    fn the_answer_is_that_of_the_standards_example() {
        let mut request = hyper::Request::new(());
        let upgrade = Upgrade::of(&headers(&[]), Some(hyper::upgrade::on(&mut request))).unwrap();
        assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
