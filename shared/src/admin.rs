//! The answers every service gives about itself: `/livez`, `/readyz`, `/health`, `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use prometheus::{IntGaugeVec, Registry, TextEncoder};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::metrics::Metrics;
use crate::problem::not_allowed;

/// What a service depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the ports' names")]
pub enum Dependency {
    Log,
    Store,
    Cache,
    Bus,
}

impl Dependency {
    /// The word in `/readyz`, in logs and in the metric.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Store => "store",
            Self::Cache => "cache",
            Self::Bus => "bus",
        }
    }
}

/// Whether the service can do its work, dependency by dependency.
#[derive(Clone)]
pub struct Readiness {
    state: Arc<Mutex<Seen>>,
    up: IntGaugeVec,
}

#[derive(Default)]
struct Seen {
    started: bool,
    draining: bool,
    required: Vec<Dependency>,
    seen: BTreeMap<Dependency, Result<(), String>>,
}

impl Readiness {
    /// Not ready before [`Readiness::started`], and then only while every `required` one is up.
    pub fn new(registry: &Registry, required: &[Dependency]) -> Self {
        let help = "1 while the dependency answers, 0 while it does not.";
        let up = Metrics(registry).gauges("dependency_up", help, &["dependency"]);
        let state = Seen { required: required.to_vec(), ..Seen::default() };
        Self { state: Arc::new(Mutex::new(state)), up }
    }

    /// Notes whether a dependency answered; logs when that changes.
    pub fn note(&self, dependency: Dependency, seen: Result<(), String>) {
        self.up.with_label_values(&[dependency.as_str()]).set(i64::from(seen.is_ok()));
        let mut state = self.lock();
        let before = state.seen.get(&dependency);
        match (&seen, before) {
            (Err(reason), None | Some(Ok(()))) => {
                tracing::warn!(dependency = dependency.as_str(), %reason, "dependency down");
            }
            (Ok(()), Some(Err(_))) => {
                tracing::info!(dependency = dependency.as_str(), "dependency up again");
            }
            _ => {}
        }
        state.seen.insert(dependency, seen);
    }

    /// The service is built.
    pub fn started(&self) {
        self.lock().started = true;
    }

    /// The service takes nothing new.
    pub fn draining(&self) {
        self.lock().draining = true;
    }

    /// True when work may be sent here.
    pub fn is_ready(&self) -> bool {
        self.lock().is_ready()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> (bool, serde_json::Value) {
        let state = self.lock();
        let checks: serde_json::Map<_, _> = state
            .seen
            .iter()
            .map(|(dependency, seen)| {
                let required = state.required.contains(dependency);
                let status = seen.as_ref().err().map_or("up", String::as_str);
                (dependency.as_str().to_owned(), json!({"status": status, "required": required}))
            })
            .collect();
        let status = match (state.draining, state.started, state.is_ready()) {
            (true, ..) => "DRAINING",
            (_, false, _) => "STARTING",
            (.., true) => "UP",
            _ => "DOWN",
        };
        (state.is_ready(), json!({"status": status, "checks": checks}))
    }
}

impl Seen {
    fn is_ready(&self) -> bool {
        let up = |dependency| matches!(self.seen.get(dependency), None | Some(Ok(())));
        self.started && !self.draining && self.required.iter().all(up)
    }
}

#[derive(Clone)]
struct Admin {
    service: &'static str,
    readiness: Readiness,
    registry: Registry,
}

fn probe(route: MethodRouter<Admin>) -> MethodRouter<Admin> {
    route.fallback_service(not_allowed("GET, HEAD"))
}

/// The four routes.
pub fn router(service: &'static str, readiness: Readiness, registry: Registry) -> Router {
    let help = "Always 1; the label names the running version.";
    let build = Metrics(&registry).gauges("build_info", help, &["version"]);
    build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    Router::new()
        .route("/livez", probe(get(|| async { "ok\n" })))
        .route("/readyz", probe(get(readyz)))
        .route("/health", probe(get(health)))
        .route("/metrics", probe(get(metrics)))
        .with_state(Admin { service, readiness, registry })
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let (ready, report) = admin.readiness.report();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

async fn health(State(admin): State<Admin>) -> Response {
    let timestamp = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    Json(json!({
        "status": "UP",
        "service": admin.service,
        "version": env!("CARGO_PKG_VERSION"),
        "timestamp": timestamp,
    }))
    .into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match TextEncoder::new().encode_to_string(&admin.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics not encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
