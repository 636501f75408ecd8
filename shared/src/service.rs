//! The life of a service, written once: bind, answer probes, wait for what it needs, build, serve,
//! drain, stop.
//!
//! The listener answers from the first moment: `/livez` 200, `/readyz` naming what is waited for, and
//! 503 `starting` for everything else, until the service is built and its own routes take over.

use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use prometheus::{HistogramVec, Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::admin::{self, Dependency, Readiness};
use crate::config::Config;
use crate::engine::{Engine, OpenError};
use crate::metrics;
use crate::problem::{Code, Problem};
use crate::server::{self, Manners, Terms, Tls};
pub use crate::server::{Peer, Routes, TlsError, Upgraded};
use crate::shutdown::Shutdown;
use crate::traces::Traces;

/// What a service is built from.
#[derive(Clone)]
pub struct Context {
    /// Every setting.
    pub config: Arc<Config>,
    /// What stands behind the ports.
    pub engine: Engine,
    /// Where metrics go.
    pub registry: Registry,
    /// Time from acceptance to a later stage.
    pub freshness: HistogramVec,
    /// Where spans go.
    pub traces: Traces,
    /// Told by whoever notices that a dependency is down or up.
    pub readiness: Readiness,
    /// When to end.
    pub shutdown: Shutdown,
    /// Background tasks; each ends after `shutdown.stop`.
    pub tasks: TaskTracker,
    /// Cancelled by a task that cannot go on: the process ends with an error instead of half working.
    pub failed: CancellationToken,
}

impl Context {
    /// Runs a background task that must not end before `shutdown.stop`; if it does, the process ends.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_until(name, self.shutdown.stop.clone(), task);
    }

    /// Runs a background task that must not end before `end`; if it does, the process ends.
    pub fn spawn_until<F>(&self, name: &'static str, end: CancellationToken, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let failed = self.failed.clone();
        self.tasks.spawn(async move {
            let ended = tokio::spawn(task).await;
            if let Err(error) = &ended {
                tracing::error!(task = name, %error, "task failed");
            }
            if ended.is_err() || !end.is_cancelled() {
                tracing::error!(task = name, "task ended before its time: ending the process");
                failed.cancel();
            }
        });
    }
}

/// Why a service ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What it needs cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Its certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A background task could not go on; the log says which and why.
    #[error("a background task failed")]
    Task,
}

/// How the process names itself and what it cannot work without.
#[derive(Debug, Clone, Copy)]
pub struct Role {
    /// In `/health` and log lines.
    pub name: &'static str,
    /// What `/readyz` requires.
    pub required: &'static [Dependency],
}

/// Runs one process until `shutdown.drain` or failure. `build` makes its routes and spawns its tasks.
///
/// # Errors
/// [`RunError`], after everything was stopped.
pub async fn run<Build, Built>(
    role: Role,
    listener: TcpListener,
    config: Arc<Config>,
    registry: Registry,
    shutdown: Shutdown,
    build: Build,
) -> Result<(), RunError>
where
    Build: FnOnce(Context) -> Built,
    Built: Future<Output = Result<Routes, OpenError>>,
{
    let tls = Tls::open(&config.server).await?.map(Arc::new);
    let (traces, exporting) = Traces::start(&config.telemetry, role.name, &registry);
    let readiness = Readiness::new(&registry, role.required);
    let admin = admin::router(role.name, readiness.clone(), registry.clone());
    let app = Arc::new(App::starting(admin, Manners::new(&config.server)));
    let leaves = tokio::spawn({
        let (readiness, leave) = (readiness.clone(), shutdown.leave.clone());
        async move {
            leave.cancelled().await;
            readiness.draining();
        }
    });
    let certificate = tls
        .clone()
        .map(|tls| AbortOnDropHandle::new(tokio::spawn(async move { tls.follow_files().await })));
    let terms = Terms::new(app.clone(), tls, &config.server, &shutdown);
    let server = tokio::spawn({
        let config = config.clone();
        async move { server::serve(listener, terms, &config.server).await }
    });
    let tasks = TaskTracker::new();
    let failed = CancellationToken::new();
    let opened = tokio::select! {
        opened = Engine::open(&config, &readiness, &registry) => Some(opened),
        () = shutdown.leave.cancelled() => None, // nobody is served yet
        () = shutdown.drain.cancelled() => None,
    };
    let mut to_close = None;
    let outcome = match opened {
        None => Ok(()),
        Some(Err(error)) => Err(RunError::from(error)),
        Some(Ok(engine)) => {
            to_close = Some(engine.clone());
            let context = Context {
                config: config.clone(),
                freshness: metrics::freshness(&registry),
                traces,
                engine,
                registry,
                readiness: readiness.clone(),
                shutdown: shutdown.clone(),
                tasks: tasks.clone(),
                failed: failed.clone(),
            };
            serve_until_end(context, &app, build).await
        }
    };
    leaves.abort();
    readiness.draining();
    shutdown.drain.cancel();
    if let Err(error) = server.await {
        tracing::error!(%error, "listener failed");
    }
    drop(certificate);
    shutdown.stop.cancel();
    tasks.close();
    if tokio::time::timeout(config.server.drain_timeout, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "background tasks did not end in time");
    }
    if let Some(engine) = to_close {
        engine.close().await;
    }
    exporting.finish().await;
    outcome
}

async fn serve_until_end<Build, Built>(
    context: Context,
    app: &App,
    build: Build,
) -> Result<(), RunError>
where
    Build: FnOnce(Context) -> Built,
    Built: Future<Output = Result<Routes, OpenError>>,
{
    let (shutdown, failed) = (context.shutdown.clone(), context.failed.clone());
    let readiness = context.readiness.clone();
    context.engine.spawn_upkeep(&context);
    app.built(build(context).await?);
    readiness.started();
    tokio::select! {
        () = shutdown.drain.cancelled() => Ok(()),
        () = failed.cancelled() => Err(RunError::Task),
    }
}

/// What answers requests: the probes alone until the service is built, then one router for both. One and
/// not two within each other: every layer of routers costs a request about a microsecond.
pub(crate) struct App {
    admin: Router,
    starting: Routes,
    built: OnceLock<Routes>,
    manners: Manners,
}

impl App {
    pub(crate) fn starting(admin: Router, manners: Manners) -> Self {
        let starting = admin.clone().fallback(async || Problem::from(Code::Starting));
        Self { admin, starting: starting.into(), built: OnceLock::new(), manners }
    }

    fn built(&self, service: Routes) {
        if self.built.set(service.merge(self.admin.clone().into())).is_err() {
            tracing::error!("built twice");
        }
    }

    /// The answer of the routes of this moment, on a connection that may be `closing` by then.
    pub(crate) async fn answer(&self, request: Request, closing: &AtomicBool) -> Response {
        let routes = self.built.get().unwrap_or(&self.starting);
        self.manners.answer(routes, request, closing).await
    }
}

/// How often upkeep looks whether dependencies answer.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(2);
