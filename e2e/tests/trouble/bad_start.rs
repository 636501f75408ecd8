//! Starts that cannot work: the exit code, and one sentence that says what to do.

use std::path::Path;
use std::process::Stdio;

use pulsestream_e2e::harness::Engines;
use pulsestream_e2e::process::{Process, free_port};
use pulsestream_shared::testing::services;
use tokio::process::Command;

use crate::own_redis::OwnRedis;
use crate::support::{Ended, Site, run, variables};

/// The last line of standard error is the sentence for a person; the log lines come before it.
#[track_caller]
fn refused(ended: &Ended, code: i32, sentence: &str) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    let said = ended.stderr.lines().last().unwrap_or_default();
    assert!(said.starts_with("pulsestream: ") && said.contains(sentence), "{ended:?}");
}

async fn up(folder: &Path, port: u16) -> Ended {
    let port = port.to_string();
    let folder = folder.display().to_string();
    run(&["up", "--port", &port, "--data-dir", &folder], &variables(&[])).await
}

#[tokio::test]
async fn a_taken_port_is_named_with_the_way_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let sentence = format!("port {port} on 127.0.0.1 is taken by another program");
    refused(&up(folder.path(), port).await, 1, &sentence);
}

#[tokio::test]
async fn a_folder_of_another_pipeline_is_refused_with_its_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().display().to_string();
    let first = Process::start("up", &variables(&[("DATA_DIR", &dir)])).await;
    first.ready().await;
    let owner = first.pid().expect("it runs");
    let sentence = format!("is in use by process {owner}");
    refused(&up(folder.path(), free_port()).await, 1, &sentence);
    first.ready().await;
}

#[tokio::test]
async fn a_data_folder_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    refused(&up(file.path(), free_port()).await, 1, "is not a folder");
}

#[tokio::test]
async fn a_log_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().display().to_string();
    let mut first = Process::start("up", &variables(&[("DATA_DIR", &dir)])).await;
    first.ready().await;
    assert_eq!(first.terminate().await, Some(0));
    // Bytes 60 to 63 of an SQLite file are its `user_version`.
    let path = folder.path().join("log.db");
    let mut bytes = std::fs::read(&path).expect("the file");
    bytes[60..64].copy_from_slice(&9_999_u32.to_be_bytes());
    std::fs::write(&path, bytes).expect("written");
    refused(&up(folder.path(), free_port()).await, 1, "was written by a newer version");
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let site = Site::new(Engines::Servers).await;
    let database = site.home.database.as_ref().expect("a database");
    let later = "insert into _sqlx_migrations (version, description, success, checksum, execution_time) \
                 values (99990101000000, 'later', true, '', 0)";
    database.execute(later).await.expect("executed");
    for role in ["gateway", "consumer", "broadcaster", "migrate"] {
        let ended = run(&[role, "--port", &free_port().to_string()], &site.home.variables).await;
        refused(&ended, 1, "newer pulsestream: update this binary");
    }
    site.remove().await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_refused() {
    let Some(mount) = ReadOnly::mount().await else {
        return eprintln!("not tried: this machine lets nobody mount a read-only folder");
    };
    refused(&up(mount.0.path(), free_port()).await, 1, "cannot be written");
}

/// A folder that even root cannot write to.
struct ReadOnly(tempfile::TempDir);

impl ReadOnly {
    async fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "ro,size=1m", "tmpfs"]).arg(folder.path());
        let mounted = mount.stderr(Stdio::null()).status().await;
        mounted.is_ok_and(|status| status.success()).then_some(Self(folder))
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _unmounted = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn an_unknown_setting_is_refused_with_the_near_one() {
    let ended = run(&["up"], &variables(&[("PULSESTREAM__SERVER__PROT", "1")])).await;
    assert_eq!(ended.code, Some(64));
    let sentence = "PULSESTREAM__SERVER__PROT: unknown setting, did you mean server.port?";
    assert!(ended.stderr.contains(sentence), "{ended:?}");
}

#[tokio::test]
async fn three_faults_are_reported_together() {
    let faults = [("PORT", "eighty"), ("MAX_EVENT_AGE", "soon"), ("RETENTION_DAYS", "1")];
    let ended = run(&["up"], &variables(&faults)).await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    for (name, _) in faults {
        assert!(ended.stderr.contains(&format!("\n  {name}: ")), "{name}: {ended:?}");
    }
}

#[tokio::test]
async fn a_certificate_without_its_key_or_that_is_not_there_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().display().to_string();
    let cert = ("PULSESTREAM__SERVER__TLS_CERT", "/nowhere/cert.pem");
    let key = ("PULSESTREAM__SERVER__TLS_KEY", "/nowhere/key.pem");
    for (one, other) in [(cert, "tls_key"), (key, "tls_cert")] {
        let ended = run(&["up"], &variables(&[("DATA_DIR", &dir), one])).await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(
            ended.stderr.contains(&format!("server.{other}: must be set as well")),
            "{ended:?}"
        );
    }
    let both = variables(&[("DATA_DIR", &dir), ("PORT", "0"), cert, key]);
    let sentence = "server.tls_cert: /nowhere/cert.pem cannot be read";
    refused(&run(&["up"], &both).await, 64, sentence);
}

#[tokio::test]
async fn a_role_names_every_server_it_is_not_given() {
    for role in ["gateway", "consumer", "broadcaster"] {
        let none = run(&[role], &variables(&[])).await;
        refused(&none, 1, "needs KAFKA_BROKERS, DATABASE_URL (postgres://…), REDIS_URL");
        let given = variables(&[("REDIS_URL", "redis://127.0.0.1:1")]);
        let one = run(&[role], &given).await;
        refused(&one, 1, "needs KAFKA_BROKERS, DATABASE_URL (postgres://…);");
    }
}

#[tokio::test]
async fn kafka_without_redis_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().display().to_string();
    let given = [("KAFKA_BROKERS", services::kafka_brokers()), ("DATA_DIR", dir)];
    let given = given.iter().map(|(name, value)| (*name, value.as_str()));
    let namespace = services::namespace();
    let mut given: Vec<_> = given.collect();
    given.push(("PULSESTREAM__LOG__NAMESPACE", &namespace));
    let ended = run(&["up", "--port", &free_port().to_string()], &variables(&given)).await;
    refused(&ended, 1, "KAFKA_BROKERS is set but REDIS_URL is not");
}

#[tokio::test]
async fn a_database_nobody_migrated_is_refused_with_the_command() {
    let site = Site::new(Engines::Servers).await;
    let database = site.home.database.as_ref().expect("a database");
    database.execute("drop schema public cascade; create schema public").await.expect("emptied");
    let port = free_port().to_string();
    for role in ["gateway", "consumer", "broadcaster"] {
        let ended = run(&[role, "--port", &port], &site.home.variables).await;
        refused(&ended, 1, "run `pulsestream migrate`");
    }
    site.remove().await;
}

#[tokio::test]
async fn topics_nobody_made_are_refused_with_the_command() {
    let mut site = Site::new(Engines::Servers).await;
    let fresh = services::namespace();
    site.home.variables.insert("PULSESTREAM__LOG__NAMESPACE".into(), fresh);
    let port = free_port().to_string();
    for role in ["gateway", "consumer", "broadcaster"] {
        let ended = run(&[role, "--port", &port], &site.home.variables).await;
        refused(&ended, 1, "run `pulsestream migrate`");
    }
    site.remove().await;
}

#[tokio::test]
async fn a_wrong_database_password_is_refused_without_telling_it() {
    // The server of the tests trusts everybody, so the user is what it does not know.
    let mut site = Site::new(Engines::Servers).await;
    let url = site.home.variables["DATABASE_URL"].replace("postgres@", "nobody:hush@");
    site.home.variables.insert("DATABASE_URL".into(), url);
    let ended = run(&["gateway", "--port", &free_port().to_string()], &site.home.variables).await;
    refused(&ended, 1, "nobody");
    assert!(!ended.stderr.contains("hush"), "{ended:?}");
    site.remove().await;
}

#[tokio::test]
async fn a_redis_that_evicts_is_refused() {
    let mut site = Site::new(Engines::Servers).await;
    let redis = OwnRedis::with_policy("allkeys-lru").await;
    site.home.variables.insert("REDIS_URL".into(), redis.url());
    let ended = run(&["gateway", "--port", &free_port().to_string()], &site.home.variables).await;
    refused(&ended, 1, "noeviction");
    site.remove().await;
}
