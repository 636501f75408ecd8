//! A Kafka of a test's own, to be hung and killed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use pulsestream_e2e::client::PATIENCE;
use pulsestream_shared::testing::wait_for;
use tokio::process::Command;

/// Its data live in a scratch folder; it ends with this value.
pub(crate) struct OwnKafka {
    /// Its address.
    pub(crate) brokers: String,
    folder: tempfile::TempDir,
}

impl OwnKafka {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let printed = services(folder.path(), &["up", "kafka"]).await;
        let line = printed.lines().find_map(|line| line.strip_prefix("export KAFKA_BROKERS="));
        Self { brokers: line.expect("an address").to_owned(), folder }
    }

    /// Makes it tell its clients this address instead of its own, so that all they say passes there.
    pub(crate) async fn advertise(&mut self, address: SocketAddr) {
        let folder = self.folder.path().join("kafka");
        let settings = folder.join("server.properties");
        let text = std::fs::read_to_string(&settings).expect("settings");
        let changed = text.lines().map(|line| match line.split_once('=') {
            Some(("advertised.listeners", _)) => {
                format!("advertised.listeners=PLAINTEXT://{address}\n")
            }
            _ => format!("{line}\n"),
        });
        std::fs::write(&settings, changed.collect::<String>()).expect("settings");
        let pid = std::fs::read_to_string(folder.join("pid")).expect("a pid");
        self.kill().await;
        let process = format!("/proc/{}/cwd", pid.trim());
        wait_for("its end", PATIENCE, async || std::fs::read_link(&process).is_err()).await;
        self.restart().await;
    }

    /// Sends a signal by name, such as `STOP`.
    pub(crate) async fn signal(&self, name: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join("kafka/pid")).expect("a pid");
        let signal = format!("-{name}");
        let sent = Command::new("kill").args([&signal, pid.trim()]).status().await;
        assert!(sent.expect("kill runs").success());
    }

    /// `kill -9`; its data stay.
    pub(crate) async fn kill(&mut self) {
        self.signal("KILL").await;
    }

    /// Starts it again on its data and port; returns when it answers.
    pub(crate) async fn restart(&mut self) {
        services(self.folder.path(), &["up", "kafka"]).await;
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        let mut down = std::process::Command::new(script());
        down.arg("down").env("PULSESTREAM_SERVICES_DIR", self.folder.path());
        let _ended = down.stdout(Stdio::null()).status();
    }
}

async fn services(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(script());
    command.args(arguments).env("PULSESTREAM_SERVICES_DIR", folder).stderr(Stdio::inherit());
    let output = command.output().await.expect("the script runs");
    assert!(output.status.success(), "{arguments:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

fn script() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/services")
}
