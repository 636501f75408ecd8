//! A scripted gateway: remembers every request it saw and answers each as the script says.
//!
//! It runs on axum, not on this crate's own HTTP code, so that a mistake there cannot hide.

use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) key: Option<String>,
    pub(crate) api_key: Option<String>,
    pub(crate) body: String,
    pub(crate) at: Instant,
}

impl Seen {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// What to do with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    Status(u16),
    /// 202 with `Idempotency-Replayed: true`.
    Replayed,
    /// This status with `Retry-After` in seconds.
    Later(u16, u64),
    /// Cut the connection without an answer.
    Drop,
    /// 202 after a pause.
    Stall(Duration),
}

/// Decides by the request and all that came before it.
type Script = dyn Fn(&Seen, &[Seen]) -> Reply + Send + Sync;

struct Shared {
    seen: Mutex<Vec<Seen>>,
    script: Box<Script>,
}

/// A running gateway; its tasks end with the test's runtime.
pub(crate) struct Server {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

impl Server {
    pub(crate) async fn start(
        script: impl Fn(&Seen, &[Seen]) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared { seen: Mutex::default(), script: Box::new(script) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().route("/v1/events", post(answer)).with_state(Arc::clone(&shared));
        tokio::spawn(accept(listener, app));
        Self { url, shared }
    }

    /// Every request so far, in order of arrival.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }
}

async fn accept(listener: TcpListener, app: Router) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let cut = Arc::new(Notify::new());
        let app = TowerToHyperService::new(app.clone().layer(Extension(Arc::clone(&cut))));
        tokio::spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            tokio::select! {
                served = builder.serve_connection(TokioIo::new(stream), app) => drop(served),
                () = cut.notified() => {}
            }
        });
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Extension(cut): Extension<Arc<Notify>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let request = Seen {
        key: text("idempotency-key"),
        api_key: text("x-api-key"),
        body: String::from_utf8(body.to_vec()).unwrap(),
        at: Instant::now(),
    };
    let reply = {
        let mut seen = shared.seen.lock().unwrap();
        let reply = (shared.script)(&request, &seen);
        seen.push(request);
        reply
    };
    let status = |code| StatusCode::from_u16(code).unwrap();
    match reply {
        Reply::Status(code) => (status(code), "because the script says so").into_response(),
        Reply::Replayed => (status(202), [("idempotency-replayed", "true")]).into_response(),
        Reply::Later(code, seconds) => {
            (status(code), [("retry-after", seconds.to_string())]).into_response()
        }
        Reply::Drop => {
            cut.notify_one();
            pending().await
        }
        Reply::Stall(pause) => {
            sleep(pause).await;
            status(202).into_response()
        }
    }
}
