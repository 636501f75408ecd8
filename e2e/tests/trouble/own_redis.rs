//! A Redis of a test's own, to be emptied and killed.

use std::path::Path;
use std::process::Stdio;

use pulsestream_e2e::client::PATIENCE;
use pulsestream_shared::testing::wait_for;
use tokio::process::{Child, Command};

/// Its data live in a scratch folder; it ends with this value.
pub(crate) struct OwnRedis {
    port: u16,
    policy: &'static str,
    folder: tempfile::TempDir,
    server: Child,
}

impl OwnRedis {
    pub(crate) async fn start() -> Self {
        Self::with_policy("noeviction").await
    }

    /// One that does so when it is full.
    pub(crate) async fn with_policy(policy: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = pulsestream_e2e::process::free_port();
        let server = spawn(port, folder.path(), policy);
        let redis = Self { port, policy, folder, server };
        redis.answers().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Runs a command by `redis-cli`.
    pub(crate) async fn run(&self, command: &str) -> String {
        let mut cli = Command::new("redis-cli");
        let output = cli.args(["-p", &self.port.to_string(), command]).output().await;
        String::from_utf8(output.expect("redis-cli runs").stdout).expect("text")
    }

    /// `kill -9`, and another process on what was saved last.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.server.kill().await.expect("killed");
        self.server = spawn(self.port, self.folder.path(), self.policy);
        self.answers().await;
    }

    async fn answers(&self) {
        wait_for("Redis to answer", PATIENCE, async || self.run("PING").await == "PONG\n").await;
    }
}

fn spawn(port: u16, folder: &Path, policy: &str) -> Child {
    let mut server = Command::new("redis-server");
    server.args(["--bind", "127.0.0.1", "--save", "", "--maxmemory-policy", policy]);
    server.args(["--port", &port.to_string()]).arg("--dir").arg(folder);
    server.stdout(Stdio::null()).kill_on_drop(true).spawn().expect("redis-server runs")
}
