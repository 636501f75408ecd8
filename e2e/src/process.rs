//! The product as processes that can be killed.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pulsestream_shared::testing::wait_for;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use crate::client::Client;

/// The `pulsestream` binary, built for this run if need be.
///
/// # Panics
/// When it does not build.
pub async fn binary() -> PathBuf {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    BUILT.get_or_init(build).await.clone()
}

async fn build() -> PathBuf {
    let release = !cfg!(debug_assertions);
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "pulsestream", "--bin", "pulsestream"]);
    if release {
        cargo.arg("--release");
    }
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().await.expect("cargo runs");
    assert!(status.success(), "the binary does not build");
    let test = std::env::current_exe().expect("a path");
    let folder = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST");
    folder.join("pulsestream")
}

/// A port nobody listens on now.
///
/// # Panics
/// When the machine has none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// One process of the product; killed when dropped.
pub struct Process {
    /// Where it listens.
    pub url: String,
    role: String,
    port: u16,
    variables: BTreeMap<String, String>,
    child: Child,
}

impl Process {
    /// Starts `pulsestream ROLE` with these settings on a free port, and does not wait.
    ///
    /// # Panics
    /// When it cannot be started at all.
    pub async fn start(role: &str, variables: &BTreeMap<String, String>) -> Self {
        let port = free_port();
        let child = spawn(role, port, variables).await;
        Self {
            url: format!("http://127.0.0.1:{port}"),
            role: role.to_owned(),
            port,
            variables: variables.clone(),
            child,
        }
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
        self.child = spawn(&self.role, self.port, &self.variables).await;
    }

    /// SIGTERM, then its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().await.expect("kill runs");
        assert!(sent.success());
        let ended = tokio::time::timeout(Duration::from_secs(40), self.child.wait()).await;
        ended.expect("it ends in time").expect("a status").code()
    }
}

async fn spawn(role: &str, port: u16, variables: &BTreeMap<String, String>) -> Child {
    let mut command = Command::new(binary().await);
    command
        .arg(role)
        .args(["--port", &port.to_string()])
        .env_clear()
        .envs(variables)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    command.spawn().expect("it starts")
}
