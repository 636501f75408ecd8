//! A PostgreSQL of a test's own, to be restarted, frozen, filled, crowded, barred and broken. The pipeline comes to it
//! with a password, and owns the database; the administrator needs none.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use pulsestream_e2e::client::PATIENCE;
use pulsestream_shared::testing::wait_for;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::own_services::{self, OwnServices, gone, signal, up_with};

/// Of the connections there are, some are the administrator's alone.
const OPTIONS: [(&str, &str); 1] =
    [("PULSESTREAM_POSTGRES", "-c max_connections=40 -c superuser_reserved_connections=5")];
const CONNECTIONS_FOR_ALL: usize = 35;
/// Nothing is left but what is the administrator's, whose question this is.
const IS_CROWDED: &str = "count(*) > 35 and count(*) filter (where usename = 'pulsestream') = 0
   from pg_stat_activity where backend_type = 'client backend'";
/// When one of a crowd looks again whether a connection is free.
const TRIES_AGAIN: Duration = Duration::from_millis(50);
const DISK_BYTES: usize = 48 << 20;
/// With which the pipeline comes at first.
pub(crate) const PASSWORD: &str = "first";

/// Its data live in a scratch folder; it ends with this value.
pub(crate) struct OwnPostgres {
    /// As the administrator.
    pub(crate) admin_url: String,
    services: OwnServices,
    /// Unmounted when the server has ended.
    disk: Option<SmallDisk>,
}

impl OwnPostgres {
    pub(crate) async fn start() -> Self {
        let services = OwnServices::new();
        let printed = up_with(services.root(), &["postgres"], &OPTIONS).await;
        let admin_url = own_services::exported(&printed, "DATABASE_URL");
        let postgres = Self { admin_url, services, disk: None };
        let access =
            "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(postgres.data().join("pg_hba.conf"), access).expect("written");
        postgres.run("select pg_reload_conf()").await;
        for role in ["pulsestream", "others"] {
            postgres.run(&format!("create role {role} login password '{PASSWORD}'")).await;
        }
        postgres.run("alter database pulsestream owner to pulsestream").await;
        postgres
    }

    /// One whose tables live on a small disk; `None` where nobody may mount one.
    pub(crate) async fn on_a_small_disk() -> Option<Self> {
        let disk = SmallDisk::mount().await?;
        let mut postgres = Self::start().await;
        let (owner, place) = (std::fs::metadata(postgres.data()).expect("data"), disk.0.path());
        chown(place, Some(owner.uid()), Some(owner.gid())).expect("given to the server");
        postgres.run(&format!("create tablespace small location '{}'", place.display())).await;
        postgres.run("grant create on tablespace small to pulsestream").await;
        postgres.run("alter role pulsestream set default_tablespace = small").await;
        postgres.disk = Some(disk);
        Some(postgres)
    }

    /// As the pipeline.
    pub(crate) fn url(&self, password: &str) -> String {
        self.admin_url.replace("postgres@", &format!("pulsestream:{password}@"))
    }

    /// Runs a statement as the administrator.
    pub(crate) async fn run(&self, sql: &str) -> String {
        let output = psql(&self.admin_url, sql).output().await.expect("psql runs");
        assert!(output.status.success(), "{sql}: {output:?}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// Ends every connection of a role.
    pub(crate) async fn terminate(&self, role: &str) {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity where usename =";
        self.run(&format!("{sql} '{role}'")).await;
    }

    /// Ends without a word to anybody and starts again, as `pg_ctl restart -m immediate` does: it recovers from its
    /// log.
    pub(crate) async fn restart_immediately(&self) {
        let pid = self.pid();
        signal("QUIT", std::slice::from_ref(&pid)).await;
        gone(&pid).await;
        up_with(self.services.root(), &["postgres"], &OPTIONS).await;
    }

    /// Stops every process of it.
    pub(crate) async fn freeze(&self) {
        // The one that makes the others first.
        signal("STOP", &[self.pid()]).await;
        signal("STOP", &self.children()).await;
    }

    /// Lets them go on.
    pub(crate) async fn thaw(&self) {
        signal("CONT", &self.children()).await;
        signal("CONT", &[self.pid()]).await;
    }

    /// Becomes what a failed-over primary is to those who still talk to it, or a primary again.
    pub(crate) async fn only_read(&self, only: bool) {
        let to = if only { "= on" } else { "= off" };
        self.run(&format!("alter system set default_transaction_read_only {to}")).await;
        self.run("select pg_reload_conf()").await;
    }

    /// Lets other programs take every connection that anybody may have.
    pub(crate) async fn crowd(&self) -> Crowd {
        let url = self.admin_url.replace("postgres@", &format!("others:{PASSWORD}@"));
        let mut crowd = JoinSet::new();
        for _ in 0..CONNECTIONS_FOR_ALL {
            let url = url.clone();
            crowd.spawn(async move {
                loop {
                    let mut stay = psql(&url, "select pg_sleep(600)");
                    let _ended = stay.stderr(Stdio::null()).status().await;
                    tokio::time::sleep(TRIES_AGAIN).await;
                }
            });
        }
        wait_for("others to have every connection", PATIENCE, async || {
            self.terminate("pulsestream").await;
            self.run(&format!("select {IS_CROWDED}")).await == "t"
        })
        .await;
        Crowd(crowd)
    }

    /// Fills what is left of the small disk.
    pub(crate) fn fill_disk(&self) {
        let ballast = std::fs::File::create(self.ballast());
        let written = ballast.expect("a file").write_all(&vec![0; DISK_BYTES]);
        assert_eq!(written.expect_err("full").kind(), std::io::ErrorKind::StorageFull);
    }

    /// Makes that space free again.
    pub(crate) fn free_disk(&self) {
        std::fs::remove_file(self.ballast()).expect("removed");
    }

    fn ballast(&self) -> PathBuf {
        self.disk.as_ref().expect("a small disk").0.path().join("ballast")
    }

    fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    fn folder(&self) -> PathBuf {
        own_services::folder(self.services.root(), "postgres")
    }

    fn pid(&self) -> String {
        own_services::noted(self.services.root(), "postgres", "pid")
    }

    fn children(&self) -> Vec<String> {
        let pid = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.expect("its children").split_whitespace().map(str::to_owned).collect()
    }
}

/// A frozen server does not end when it is told to.
impl Drop for OwnPostgres {
    fn drop(&mut self) {
        let pid = self.pid();
        let _sent = std::process::Command::new("kill").args(["-CONT", &pid]).status();
    }
}

/// Programs that hold a connection each.
pub(crate) struct Crowd(JoinSet<()>);

impl Crowd {
    /// They go, and their connections with them: the server would learn of it only when it answers them.
    pub(crate) async fn leaves(mut self, postgres: &OwnPostgres) {
        self.0.shutdown().await;
        postgres.terminate("others").await;
    }
}

/// A disk in memory.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    async fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let options = format!("size={DISK_BYTES},mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path());
        let mounted = mount.stderr(Stdio::null()).status().await;
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

fn psql(url: &str, sql: &str) -> Command {
    let mut psql = Command::new("psql");
    psql.args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql, url]).kill_on_drop(true);
    psql.stdin(Stdio::null()).stdout(Stdio::piped());
    psql
}
