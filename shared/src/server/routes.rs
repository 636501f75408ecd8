//! What answers requests: a router, and one busy route found without it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::response::Response;
use tower::ServiceExt as _;

/// The routes of a service.
#[derive(Clone)]
pub struct Routes {
    router: Router,
    shortcut: Option<Shortcut>,
}

/// A `POST` route known by comparing its path. What the router does to find a handler (a tree of paths,
/// extensions, a service boxed for the route and a future boxed for the answer) took a request 1.5 us,
/// a tenth of what the whole gateway spends on it in its own threads.
#[derive(Clone)]
struct Shortcut {
    path: &'static str,
    handler: Arc<dyn Fn(Request) -> Answering + Send + Sync>,
}

type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

impl Routes {
    /// Sends each `POST` of exactly this path to the handler, past the router, which must have the same
    /// route for whoever asks it in another way.
    #[must_use]
    pub fn with_shortcut<Handler, Answer>(self, path: &'static str, handler: Handler) -> Self
    where
        Handler: Fn(Request) -> Answer + Send + Sync + 'static,
        Answer: Future<Output = Response> + Send + 'static,
    {
        let handler = Arc::new(move |request| Box::pin(handler(request)) as Answering);
        Self { shortcut: Some(Shortcut { path, handler }), ..self }
    }

    /// These and the others. Paths nobody knows are answered as these do it.
    #[must_use]
    pub fn merge(self, others: Self) -> Self {
        Self {
            router: self.router.merge(others.router.reset_fallback()),
            shortcut: self.shortcut.or(others.shortcut),
        }
    }

    pub(crate) async fn answer(&self, request: Request) -> Response {
        if let Some(Shortcut { path, handler }) = &self.shortcut
            && request.method() == Method::POST
            && request.uri().path() == *path
        {
            return handler(request).await;
        }
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

impl From<Router> for Routes {
    fn from(router: Router) -> Self {
        Self { router, shortcut: None }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::response::IntoResponse as _;
    use axum::routing::{get, post};

    use super::*;

    async fn asked(routes: &Routes, method: Method, target: &str) -> String {
        let request = Request::builder().method(method).uri(target).body(Body::empty());
        let answer = routes.answer(request.expect("a request")).await;
        let body = axum::body::to_bytes(answer.into_body(), 1_000).await.expect("a body");
        String::from_utf8_lossy(&body).into_owned()
    }

    #[tokio::test]
    async fn only_posts_of_the_very_path_take_the_shortcut() {
        let router = Router::new()
            .route("/busy", get(async || "get").post(async || "routed"))
            .route("/busy/more", post(async || "more"))
            .fallback(async || "unknown");
        let others = Router::new().route("/other", get(async || "other")).fallback(async || "no");
        let routes = Routes::from(router)
            .with_shortcut("/busy", async |_: Request| "short".into_response())
            .merge(others.into());
        assert_eq!(asked(&routes, Method::POST, "/busy").await, "short");
        assert_eq!(asked(&routes, Method::POST, "/busy?x=1").await, "short");
        assert_eq!(asked(&routes, Method::GET, "/busy").await, "get");
        assert_eq!(asked(&routes, Method::POST, "/busy/more").await, "more");
        assert_eq!(asked(&routes, Method::GET, "/other").await, "other");
        for target in ["/busy/", "//busy", "/Busy", "/none"] {
            assert_eq!(asked(&routes, Method::POST, target).await, "unknown", "{target}");
        }
    }
}
