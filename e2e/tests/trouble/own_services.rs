//! What the servers of a test's own have in common: `scripts/services` starts them in a folder of the test's.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pulsestream_shared::testing::wait_for;
use tokio::process::Command;

/// The folder; what runs in it ends with this value.
pub(crate) struct OwnServices(tempfile::TempDir);

impl OwnServices {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for OwnServices {
    fn drop(&mut self) {
        let mut down = std::process::Command::new(script());
        down.arg("down").env("PULSESTREAM_SERVICES_DIR", self.root());
        let _ended = down.stdout(Stdio::null()).status();
    }
}

/// Starts what does not run; returns what the script prints when all of it answers.
pub(crate) async fn up(root: &Path, names: &[&str]) -> String {
    up_with(root, names, &[]).await
}

/// The same with variables for the script.
pub(crate) async fn up_with(root: &Path, names: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(script());
    command.arg("up").args(names).envs(variables.iter().copied());
    command.env("PULSESTREAM_SERVICES_DIR", root).stderr(Stdio::inherit());
    let output = command.output().await.expect("the script runs");
    assert!(output.status.success(), "{names:?}: {}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// The value of a variable in what the script printed.
pub(crate) fn exported(printed: &str, name: &str) -> String {
    let start = format!("export {name}=");
    printed.lines().find_map(|line| line.strip_prefix(&start)).expect(name).to_owned()
}

/// Where the script keeps a service's data and notes.
pub(crate) fn folder(root: &Path, service: &str) -> PathBuf {
    let elsewhere = std::fs::read_to_string(root.join(service).with_extension("at"));
    elsewhere.map_or_else(|_| root.join(service), |path| path.trim().into())
}

/// What the script wrote down of a service.
pub(crate) fn noted(root: &Path, service: &str, what: &str) -> String {
    std::fs::read_to_string(folder(root, service).join(what)).expect(what).trim().to_owned()
}

/// Sends processes a signal by name, such as `STOP`.
pub(crate) async fn signal(name: &str, pids: &[String]) {
    let signal = format!("-{name}");
    let sent = Command::new("kill").arg(signal).args(pids).status().await;
    assert!(sent.expect("kill runs").success());
}

/// Waits for the end of a process: the script takes one that is still being ended for one that runs, and would
/// not start it again.
pub(crate) async fn gone(pid: &str) {
    let folder = format!("/proc/{pid}/cwd");
    let is_gone = async || std::fs::read_link(&folder).is_err();
    wait_for("the end of a server", Duration::from_secs(30), is_gone).await;
}

fn script() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/services")
}
