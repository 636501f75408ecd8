//! The bare handler that capacity is measured against: reads the body, answers 202, does nothing.
//!
//! It runs as a process of its own (`loadgen baseline`), so that its CPU time can be read like that of
//! the system under test.

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::post;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;

/// As long as a real answer, so that both sides write the same number of bytes.
const ANSWER: &str = r#"{"status":"success","message":"Event accepted for processing","data":{"id":"00000000-0000-4000-8000-000000000000","deviceId":"00000000-0000-4000-8000-000000000000","timestamp":1700000000000}}"#;

/// Serves `POST /v1/events` until dropped.
///
/// # Errors
/// The listener broke.
pub async fn serve(listener: TcpListener) -> std::io::Result<()> {
    let app = Router::new().route("/v1/events", post(accept));
    // Nagle's delay is off on the product's sockets too. A socket that refuses the option is served
    // slowly rather than not at all.
    let listener = listener.tap_io(|stream| {
        let _slow = stream.set_nodelay(true).is_err();
    });
    axum::serve(listener, app).await
}

async fn accept(
    _body: Bytes,
) -> (StatusCode, [(axum::http::HeaderName, &'static str); 1], &'static str) {
    (StatusCode::ACCEPTED, [(CONTENT_TYPE, "application/json")], ANSWER)
}
