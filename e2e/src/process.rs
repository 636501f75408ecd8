//! The product as processes that can be killed.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use pulsestream_shared::testing::wait_for;
use rand::RngExt as _;
use tokio::process::{Child, Command};

use crate::client::Client;

/// The product's binary, built beside this test or program.
///
/// # Panics
/// When it is not there.
pub fn binary() -> PathBuf {
    let own = std::env::current_exe().expect("a path");
    // target/PROFILE/deps/TEST, or target/PROFILE/PROGRAM.
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("pulsestream-under-test"));
    let built = beside.into_iter().find(|path| path.exists());
    built.expect("pulsestream-under-test is not built: cargo build -p pulsestream-e2e --bins")
}

/// A port nobody listens on now, and which no other caller in this process was given lately. Below the
/// range the system takes for outgoing connections: a client that tries a killed process's port from
/// there could meet itself, and hold the port.
///
/// # Panics
/// When the machine has none.
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 12_000..20_000;
    static NEXT: LazyLock<AtomicU16> =
        LazyLock::new(|| AtomicU16::new(rand::rng().random_range(PORTS)));
    let next =
        || PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS.end.abs_diff(PORTS.start);
    let mut ports = PORTS.map(|_| next());
    let free = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("a free port")
}

/// One process of the product; killed when dropped.
pub struct Process {
    /// Where it listens.
    pub url: String,
    role: String,
    port: u16,
    variables: BTreeMap<String, String>,
    /// Where standard output and error go; `None`: nowhere, and to the test's own.
    output: Option<PathBuf>,
    child: Child,
}

impl Process {
    /// Starts `pulsestream ROLE` with these settings on a free port, and does not wait.
    ///
    /// # Panics
    /// When it cannot be started at all.
    pub async fn start(role: &str, variables: &BTreeMap<String, String>) -> Self {
        Self::start_at(free_port(), role, variables, None).await
    }

    /// Like [`Process::start`]; what it prints is kept in files of that folder, by role.
    ///
    /// # Panics
    /// When it cannot be started at all.
    pub async fn start_logged(
        role: &str,
        variables: &BTreeMap<String, String>,
        folder: &Path,
    ) -> Self {
        Self::start_at(free_port(), role, variables, Some(folder.join(role))).await
    }

    /// Like [`Process::start`], on a port of the caller's choice; what it prints is kept in files whose
    /// names begin with `output`.
    ///
    /// # Panics
    /// When it cannot be started at all.
    pub async fn start_at(
        port: u16,
        role: &str,
        variables: &BTreeMap<String, String>,
        output: Option<PathBuf>,
    ) -> Self {
        let child = spawn(role, port, variables, output.as_deref()).await;
        Self {
            url: format!("http://127.0.0.1:{port}"),
            role: role.to_owned(),
            port,
            variables: variables.clone(),
            output,
            child,
        }
    }

    /// What a logged process wrote to standard error so far.
    ///
    /// # Panics
    /// When it is not logged.
    pub fn stderr(&self) -> String {
        self.printed("err")
    }

    /// What a logged process wrote to standard output so far.
    ///
    /// # Panics
    /// When it is not logged.
    pub fn stdout(&self) -> String {
        self.printed("out")
    }

    fn printed(&self, which: &str) -> String {
        let output = self.output.as_ref().expect("a logged process");
        std::fs::read_to_string(output.with_extension(which)).expect("its output")
    }

    /// Which service it is, as on the command line.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Waits for its end; its exit code, `None` when a signal ended it.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn ended(&mut self) -> Option<i32> {
        let ended = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await;
        let late = || panic!("{} does not end by itself", self.role);
        ended.unwrap_or_else(|_| late()).expect("a status").code()
    }

    /// Sends a signal by name, such as `TERM` or `STOP`.
    ///
    /// # Panics
    /// When the system refuses.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let signal = format!("-{name}");
        let sent = Command::new("kill").args([&signal, &pid]).status().await.expect("kill runs");
        assert!(sent.success());
    }

    /// Waits until `/readyz` says so.
    ///
    /// # Panics
    /// When it does not.
    pub async fn ready(&self) {
        let client = Client::new(&self.url, "");
        let what = format!("{} to be ready", self.role);
        wait_for(&what, Duration::from_secs(60), async || {
            client.get("/readyz").await.is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When the system refuses.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Starts it again, same port, same settings.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.role, self.port, &self.variables, self.output.as_deref()).await;
    }

    /// SIGTERM, then its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> Option<i32> {
        self.signal("TERM").await;
        self.ended().await
    }
}

/// A test that fails tells what its processes said: many a failure comes about once in fifty runs.
impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "for whoever reads the test's output")]
    fn drop(&mut self) {
        if std::thread::panicking() && self.output.is_some() {
            eprintln!("--- {} wrote:\n{}", self.role, self.stderr());
        }
    }
}

async fn spawn(
    role: &str,
    port: u16,
    variables: &BTreeMap<String, String>,
    output: Option<&Path>,
) -> Child {
    let mut command = Command::new(binary());
    command
        .arg(role)
        .args(["--port", &port.to_string()])
        .env_clear()
        // No load balancer has to hear of it; a test of the grace itself sets its own.
        .env("PULSESTREAM__SERVER__DRAIN_GRACE", "0s")
        .envs(variables)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    if let Some(output) = output {
        // Appended to: what a killed process wrote is still wanted when it runs again.
        let file = |kind: &str| {
            let path = output.with_extension(kind);
            std::fs::File::options().create(true).append(true).open(path).expect("a file")
        };
        command.stdout(file("out")).stderr(file("err"));
    }
    command.spawn().expect("it starts")
}
