//! The answers every service gives about itself: `/livez`, `/readyz`, `/health`, `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use prometheus::{IntGaugeVec, Registry, TextEncoder};
use schemars::JsonSchema;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::metrics::Metrics;
use crate::openapi::{Answer, Operation};
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
    seen: BTreeMap<Dependency, Witnesses>,
}

/// What was last heard of a dependency, and from whom. It is down while anybody says so.
type Witnesses = BTreeMap<Witness, Result<(), String>>;

/// The most telling first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Witness {
    Work,
    Probe,
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
        self.hear(dependency, Witness::Probe, seen);
    }

    /// Notes whether a dependency did what the service is there for. A database that is full or read-only answers
    /// every probe: it is down until it takes the next rows.
    pub fn note_work(&self, dependency: Dependency, done: Result<(), String>) {
        self.hear(dependency, Witness::Work, done);
    }

    fn hear(&self, dependency: Dependency, witness: Witness, said: Result<(), String>) {
        let mut state = self.lock();
        let witnesses = state.seen.entry(dependency).or_default();
        let was_up = fault(witnesses).is_none();
        witnesses.insert(witness, said);
        let fault = fault(witnesses);
        self.up.with_label_values(&[dependency.as_str()]).set(i64::from(fault.is_none()));
        match fault {
            Some(reason) if was_up => {
                tracing::warn!(dependency = dependency.as_str(), %reason, "dependency down");
            }
            None if !was_up => {
                tracing::info!(dependency = dependency.as_str(), "dependency up again");
            }
            _ => {}
        }
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

    fn report(&self) -> Report {
        let state = self.lock();
        let checks = state.seen.iter().map(|(dependency, witnesses)| {
            let status = fault(witnesses).unwrap_or("up").to_owned();
            let required = state.required.contains(dependency);
            (dependency.as_str(), Check { status, required })
        });
        let checks = checks.collect();
        let status = match (state.draining, state.started, state.is_ready()) {
            (true, ..) => Phase::Draining,
            (_, false, _) => Phase::Starting,
            (.., true) => Phase::Up,
            _ => Phase::Down,
        };
        Report { status, checks }
    }
}

fn fault(witnesses: &Witnesses) -> Option<&str> {
    witnesses.values().find_map(|said| said.as_ref().err()).map(String::as_str)
}

/// Whether work may be sent here, and what was last heard of everything this service depends on.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Readiness")]
struct Report {
    status: Phase,
    /// By name: `log`, `store`, `cache`, `bus`.
    checks: BTreeMap<&'static str, Check>,
}

/// Only `UP` is answered with 200.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(rename = "ReadinessStatus")]
enum Phase {
    Up,
    Down,
    Starting,
    Draining,
}

#[derive(Serialize, JsonSchema)]
struct Check {
    /// `up`, or what is wrong.
    status: String,
    /// Whether this service is ready only while it is up.
    required: bool,
}

/// That the process runs, and which one it is.
#[derive(Serialize, JsonSchema)]
struct Health {
    /// Always `UP`.
    status: &'static str,
    /// `pulsestream`, `gateway`, `consumer` or `broadcaster`.
    service: &'static str,
    version: &'static str,
    /// The server's time, RFC 3339.
    timestamp: String,
}

impl Seen {
    fn is_ready(&self) -> bool {
        let up = |dependency| self.seen.get(dependency).and_then(fault).is_none();
        self.started && !self.draining && self.required.iter().all(up)
    }
}

const ALIVE: &str = "ok\n";
const TEXT: &str = "text/plain; charset=utf-8";

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
        .route("/livez", probe(get(|| async { ALIVE })))
        .route("/readyz", probe(get(readyz)))
        .route("/health", probe(get(health)))
        .route("/metrics", probe(get(metrics)))
        .with_state(Admin { service, readiness, registry })
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let report = admin.readiness.report();
    let ready = report.status == Phase::Up;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report)).into_response()
}

async fn health(State(admin): State<Admin>) -> Response {
    let timestamp = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    Json(Health::of(admin.service, timestamp)).into_response()
}

impl Health {
    fn of(service: &'static str, timestamp: String) -> Self {
        Self { status: "UP", service, version: env!("CARGO_PKG_VERSION"), timestamp }
    }
}

const METRICS_TYPE: &str = "text/plain; version=0.0.4";

async fn metrics(State(admin): State<Admin>) -> Response {
    match TextEncoder::new().encode_to_string(&admin.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics not encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The four routes, for the API's description.
pub fn operations() -> Vec<Operation> {
    let check = |status: &str, required| Check { status: status.to_owned(), required };
    let ready = |status, log: &str| Report {
        status,
        checks: [("log", check(log, true)), ("cache", check("up", false))].into(),
    };
    let ok = |about: &str| Answer::new(StatusCode::OK, about);
    let unready = Answer::new(StatusCode::SERVICE_UNAVAILABLE, "Send no work here now.");
    vec![
        Operation::get("/livez", "livez", "Does the process run?")
            .about("Answers from the first moment to the last, whatever is behind this server.")
            .answer(ok("It runs.").text(TEXT).example("alive", "It runs", &ALIVE)),
        Operation::get("/readyz", "readyz", "May work be sent here?")
            .about("For load balancers. Not ready: starting, draining, or without what it requires.")
            .answer(
                ok("It may.")
                    .json::<Report>()
                    .example("ready", "Everything required is up", &ready(Phase::Up, "up")),
            )
            .answer(unready.json::<Report>().example(
                "not_ready",
                "Not built yet",
                &ready(Phase::Starting, "connection refused"),
            )),
        Operation::get("/health", "health", "What is this?")
            .about("The original system's probe: always 200 while the process runs.")
            .answer(ok("Name and version.").json::<Health>().example(
                "up",
                "The all-in-one process",
                &Health::of("pulsestream", "2026-11-20T17:09:29.018Z".to_owned()),
            )),
        Operation::get("/metrics", "metrics", "Figures for Prometheus")
            .about("In the text format; names begin with `pulsestream_`.")
            .answer(ok("Every metric there is.").text(METRICS_TYPE).example(
                "figures",
                "A few lines of many",
                &"# TYPE pulsestream_dependency_up gauge\npulsestream_dependency_up{dependency=\"log\"} 1\n",
            )),
    ]
    .into_iter()
    .map(|operation| operation.tag("process"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_and_does_not_work_is_down_until_it_works() {
        let readiness = Readiness::new(&Registry::new(), &[Dependency::Store]);
        readiness.started();
        readiness.note(Dependency::Store, Ok(()));
        readiness.note_work(Dependency::Store, Err("read-only".to_owned()));
        readiness.note(Dependency::Store, Ok(()));
        assert!(!readiness.is_ready());
        assert_eq!(readiness.report().checks["store"].status, "read-only");
        readiness.note_work(Dependency::Store, Ok(()));
        assert!(readiness.is_ready());
        readiness.note(Dependency::Store, Err("gone".to_owned()));
        assert!(!readiness.is_ready());
    }
}
