//! Keys made, rotated and revoked by commands beside running processes, which hear of it at once.

use std::time::Duration;

use pulsestream_e2e::client::{Client, Dashboard, PATIENCE, event, refusal};
use pulsestream_e2e::harness::Engines;
use pulsestream_e2e::on_both;
use pulsestream_e2e::process::Process;
use pulsestream_shared::testing::wait_for;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use crate::support::{Ended, Site, run};

/// What is promised.
const AT_ONCE: Duration = Duration::from_millis(250);

on_both!(
    a_key_made_beside_a_running_pipeline_works_until_it_is_revoked,
    a_change_is_heard_at_once_whether_the_key_was_known_or_refused,
    a_stream_is_closed_when_its_key_is_revoked_or_expires,
    a_rotated_key_hands_over_to_its_successor,
);

/// A gateway and a broadcaster, in one process or two.
struct Running {
    site: Site,
    gateway: Process,
    broadcaster: Option<Process>,
}

impl Running {
    async fn start(engines: Engines) -> Self {
        let site = Site::new(engines).await;
        let variables = &site.home.variables;
        let (gateway, broadcaster) = match engines {
            Engines::Embedded => (Process::start("up", variables).await, None),
            Engines::Servers => {
                let broadcaster = Process::start("broadcaster", variables).await;
                broadcaster.ready().await;
                (Process::start("gateway", variables).await, Some(broadcaster))
            }
        };
        gateway.ready().await;
        Self { site, gateway, broadcaster }
    }

    async fn command(&self, arguments: &[&str]) -> Ended {
        run(arguments, &self.site.home.variables).await
    }

    /// Runs a command that succeeds and prints JSON.
    async fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.command(&[arguments, &["--json"]].concat()).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("JSON")
    }

    /// What a command that fails says.
    async fn refused(&self, arguments: &[&str]) -> String {
        let ended = self.command(arguments).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        ended.stderr
    }

    async fn status(&self, key: &str) -> u16 {
        let client = Client::new(&self.gateway.url, key);
        let answer = client.post(Uuid::new_v4(), &event(Uuid::new_v4(), 1.0)).await;
        answer.expect("an answer").status
    }

    /// How long it takes from now until a post with the key is answered so.
    async fn until_status(&self, key: &str, status: u16) -> Duration {
        let from = Instant::now();
        wait_for(&format!("the answer {status}"), PATIENCE, async || {
            self.status(key).await == status
        })
        .await;
        from.elapsed()
    }

    async fn watch(&self, key: &str) -> Dashboard {
        let url = self.stream_url();
        Dashboard::connect(url, key, "").await.expect("connected")
    }

    fn stream_url(&self) -> &str {
        &self.broadcaster.as_ref().unwrap_or(&self.gateway).url
    }

    async fn remove(self) {
        drop((self.gateway, self.broadcaster));
        self.site.remove().await;
    }
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().expect("text")
}

#[track_caller]
fn assert_at_once(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    eprintln!("{what}: {took:?}");
    // The middle one: this machine may be busy with other things for a moment.
    assert!(took[took.len() / 2] < AT_ONCE, "{what}: {took:?}");
}

async fn a_key_made_beside_a_running_pipeline_works_until_it_is_revoked(engines: Engines) {
    let running = Running::start(engines).await;
    let created = running.json(&["keys", "create", "--client", "acme"]).await;
    let (key, prefix) = (text(&created, "key"), text(&created, "prefix"));
    assert_eq!(running.status(key).await, 202);

    let listed = running.command(&["keys", "list"]).await.stdout;
    assert!(listed.contains(prefix) && listed.contains("tenant") && !listed.contains(key));
    let listed = running.json(&["keys", "list", "--client", "acme"]).await;
    assert_eq!(listed.as_array().expect("a list").len(), 1);
    assert_eq!((text(&listed[0], "prefix"), text(&listed[0], "state")), (prefix, "valid"));

    let revoked = running.json(&["keys", "revoke", prefix]).await;
    assert_eq!(text(&revoked, "state"), "revoked");
    running.until_status(key, 401).await;
    let again = running.json(&["keys", "revoke", prefix]).await;
    assert_eq!(again, revoked, "again is harmless");
    let unknown = running.refused(&["keys", "revoke", "ps_no_such"]).await;
    assert!(unknown.contains("ps_no_such: no key has this prefix"), "{unknown}");
    running.remove().await;
}

async fn a_change_is_heard_at_once_whether_the_key_was_known_or_refused(engines: Engines) {
    let running = Running::start(engines).await;
    let (mut worked, mut refused) = (Vec::new(), Vec::new());
    for number in 0..5 {
        let key = format!("imported-{}", Uuid::new_v4());
        assert_eq!(running.status(&key).await, 401);
        let client = format!("client {number}");
        let create = ["keys", "create", "--client", &client, "--key", &key];
        let created = running.json(&create).await;
        worked.push(running.until_status(&key, 202).await);
        running.json(&["keys", "revoke", text(&created, "prefix")]).await;
        refused.push(running.until_status(&key, 401).await);
        assert_eq!(running.status(&key).await, 401, "and stays refused");
    }
    assert_at_once("created after it was refused, works", worked);
    assert_at_once("revoked, is refused", refused);
    running.remove().await;
}

async fn a_stream_is_closed_when_its_key_is_revoked_or_expires(engines: Engines) {
    let running = Running::start(engines).await;
    let mut other = running.watch(&running.site.key).await;
    let mut closed = Vec::new();
    for _ in 0..3 {
        let created = running.json(&["keys", "create", "--client", "acme"]).await;
        let mut one = running.watch(text(&created, "key")).await;
        let mut two = running.watch(text(&created, "key")).await;
        running.json(&["keys", "revoke", text(&created, "prefix")]).await;
        let from = Instant::now();
        assert_eq!((one.close_code().await, two.close_code().await), (4010, 4010));
        closed.push(from.elapsed());
        let again = Dashboard::connect(running.stream_url(), text(&created, "key"), "").await;
        assert_eq!(refusal(again), 401);
    }
    assert_at_once("revoked, its streams are closed", closed);

    let create = ["keys", "create", "--client", "acme", "--expires", "2s"];
    let expiring = running.json(&create).await;
    let mut stream = running.watch(text(&expiring, "key")).await;
    let from = Instant::now();
    assert_eq!(stream.close_code().await, 4010);
    assert!(from.elapsed() < Duration::from_secs(5), "{:?}", from.elapsed());

    assert_eq!(running.status(&running.site.key).await, 202);
    assert_eq!(other.next().await["value"], 1, "another key's stream goes on");
    running.remove().await;
}

async fn a_rotated_key_hands_over_to_its_successor(engines: Engines) {
    let running = Running::start(engines).await;
    let create = ["keys", "create", "--client", "acme", "--scope", "events:write", "--rate", "50"];
    let first = running.json(&create).await;
    let second = running.json(&["keys", "rotate", text(&first, "prefix")]).await;
    for field in ["client", "clientId", "scopes", "rate", "burst", "expiresAt"] {
        assert_eq!(first[field], second[field], "{field}");
    }
    assert_eq!(text(&second["replaces"], "prefix"), text(&first, "prefix"));
    assert!(!second["replaces"]["expiresAt"].is_null(), "{second}");
    let (old, new) = (text(&first, "key"), text(&second, "key"));
    assert_ne!(old, new);
    assert_eq!((running.status(old).await, running.status(new).await), (202, 202));

    let needs_an_end = running.refused(&["keys", "rotate", text(&first, "prefix")]).await;
    assert!(needs_an_end.contains("--expires"), "{needs_an_end}");
    let short = ["keys", "rotate", text(&second, "prefix"), "--grace", "1s"];
    assert!(running.refused(&short).await.contains("at least 30 s"));

    let rotate = ["keys", "rotate", text(&second, "prefix"), "--grace", "0", "--expires", "30d"];
    let third = running.json(&rotate).await;
    assert_eq!(text(&third["replaces"], "state"), "revoked");
    running.until_status(new, 401).await;
    assert_eq!(running.status(text(&third, "key")).await, 202);
    let revoked = running.refused(&["keys", "rotate", text(&second, "prefix")]).await;
    assert!(revoked.contains("revoked at"), "{revoked}");
    let ambiguous = running.refused(&["keys", "rotate", "ps_live_"]).await;
    assert!(ambiguous.contains("3 keys begin with this"), "{ambiguous}");
    running.remove().await;
}
