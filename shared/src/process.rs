//! A process from its first line to its exit code, the same for every service.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use prometheus::Registry;
use tokio::net::{TcpListener, TcpSocket, lookup_host};

use crate::config::{self, Config, Server};
use crate::engine::OpenError;
use crate::service::{self, Context, Role, Routes, RunError};
use crate::shutdown::Shutdown;
use crate::telemetry;

/// The exit code for a configuration or a command line that cannot be used.
pub const EXIT_USAGE: u8 = 64;

/// Runs one service as a process of its own: configuration from the environment, logs to standard
/// error, one listener, drained by SIGTERM.
pub fn main<Build, Built>(role: Role, port: fn(&Server) -> u16, build: Build) -> ExitCode
where
    Build: FnOnce(Context) -> Built,
    Built: Future<Output = Result<Routes, OpenError>>,
{
    let loaded = match config::load(None, std::env::vars(), &[]) {
        Ok(loaded) => loaded,
        Err(faults) => return complain(&faults, EXIT_USAGE),
    };
    if let Err(error) = telemetry::start(&loaded.config.telemetry) {
        return complain(&error, EXIT_USAGE);
    }
    let port = port(&loaded.config.server);
    match block_on(run(role, loaded.config, port, build, |_| {})) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => complain(&failure.reason, failure.code),
    }
}

/// Why a process ends: one sentence for a person, and an exit code.
#[derive(Debug)]
pub struct Failure {
    /// The sentence.
    pub reason: String,
    /// [`EXIT_USAGE`] when the settings must change, else 1.
    pub code: u8,
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self { reason, code: 1 }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let code = if matches!(error, RunError::Tls(_)) { EXIT_USAGE } else { 1 };
        Self { reason: error.to_string(), code }
    }
}

/// Runs a future to its end on a runtime of its own.
///
/// # Errors
/// The future's own; a runtime that cannot start is told the same way.
pub fn block_on<T, E: From<String>>(future: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime did not start: {error}"))?
        .block_on(future)
}

/// Binds, tells `listening` where, and serves until a signal.
///
/// # Errors
/// [`Failure`], after everything was stopped.
pub async fn run<Build, Built>(
    role: Role,
    config: Config,
    port: u16,
    build: Build,
    listening: impl FnOnce(std::net::SocketAddr),
) -> Result<(), Failure>
where
    Build: FnOnce(Context) -> Built,
    Built: Future<Output = Result<Routes, OpenError>>,
{
    let listener = bind(&config.server.host, port).await?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    listening(address);
    tracing::info!(service = role.name, %address, version = env!("CARGO_PKG_VERSION"), "listening");
    let shutdown = Shutdown::default();
    shutdown
        .on_signals(config.server.drain_grace)
        .map_err(|error| format!("signals cannot be caught: {error}"))?;
    let (config, registry) = (Arc::new(config), Registry::new());
    observe_process(&registry);
    let ended = service::run(role, listener, config, registry, shutdown, build).await;
    tracing::info!(service = role.name, "stopped");
    ended.map_err(Failure::from)
}

/// Connections that wait to be accepted, where the system allows so many (`net.core.somaxconn`). Of the usual 128
/// there is soon one too few when all dashboards come back at once, and whoever finds no room asks again after a
/// second: 5,000 took 15 s.
const BACKLOG: u32 = 4_096;

async fn bind(host: &str, port: u16) -> Result<TcpListener, String> {
    try_bind(host, port).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "port {port} on {host} is taken by another program: stop it, or choose another with --port \
             or PORT"
        ),
        std::io::ErrorKind::PermissionDenied => {
            format!("port {port} on {host} is not for this user: choose one above 1023 with --port or PORT")
        }
        _ => format!("cannot listen on {host}:{port}: {error}"),
    })
}

/// Listens on the first address of the host that can be had.
async fn try_bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup_host((host, port)).await? {
        match listen(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A port whose last connections are not forgotten yet is free.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Memory, CPU and file descriptors of the process, by the library's own collector.
fn observe_process(registry: &Registry) {
    let collector = prometheus::process_collector::ProcessCollector::for_self();
    if let Err(error) = registry.register(Box::new(collector)) {
        tracing::warn!(%error, "process metrics not registered");
    }
}

/// Tells a person why the process ends.
pub fn complain(reason: &impl std::fmt::Display, code: u8) -> ExitCode {
    use std::io::Write as _;
    // Standard error may be closed; then the exit code has to do.
    if writeln!(std::io::stderr(), "pulsestream: {reason}").is_err() {
        return ExitCode::from(code);
    }
    ExitCode::from(code)
}
