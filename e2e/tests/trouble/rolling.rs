//! Two gateways behind a real load balancer, restarted one after the other under load: what an upgrade is.
//!
//! Only on servers: two gateways cannot share an embedded log.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pulsestream_e2e::client::{Client, PATIENCE, event};
use pulsestream_e2e::harness::Engines;
use pulsestream_e2e::process::{Process, free_port};
use pulsestream_shared::testing::wait_for;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::Site;

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_behind_haproxy_fails_no_request() {
    let site = Site::with(Engines::Servers, &[("PULSESTREAM__SERVER__DRAIN_GRACE", "3s")]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut gateways = Vec::new();
    for name in ["a", "b"] {
        let output = Some(folder.path().join(name));
        let settings = &site.home.variables;
        gateways.push(Process::start_at(free_port(), "gateway", settings, output).await);
    }
    for gateway in &gateways {
        gateway.ready().await;
    }
    let (url, _haproxy) = balance(&gateways, folder.path()).await;
    let (end, mut senders) = (CancellationToken::new(), JoinSet::new());
    for _ in 0..8 {
        senders.spawn(post_until(end.clone(), Client::new(&url, &site.key)));
    }
    for gateway in &mut gateways {
        takes_traffic(gateway).await;
        assert_eq!(gateway.terminate().await, Some(0), "{}", gateway.stderr());
        gateway.restart().await;
        takes_traffic(gateway).await;
    }
    end.cancel();
    let answered: usize = senders.join_all().await.into_iter().sum();
    assert!(answered > 100, "no load to speak of: {answered}");
    eprintln!("{answered} requests, none failed");
    site.remove().await;
}

/// Posts one event after the other; the number of them. Every one must be accepted at its first attempt.
async fn post_until(end: CancellationToken, client: Client) -> usize {
    let (device, mut accepted) = (Uuid::new_v4(), 0);
    while !end.is_cancelled() {
        let answer = client.post(Uuid::new_v4(), &event(device, 1.0)).await;
        let answer = answer.unwrap_or_else(|error| panic!("after {accepted}: {error:?}"));
        assert_eq!(answer.status, 202, "after {accepted}: {answer:?}");
        accepted += 1;
    }
    accepted
}

/// Waits until the load balancer sends requests to this process.
async fn takes_traffic(gateway: &Process) {
    let client = Client::new(&gateway.url, "");
    wait_for("requests from the load balancer", PATIENCE, async || accepted(&client).await > 0)
        .await;
}

/// Requests this process has accepted.
async fn accepted(client: &Client) -> u64 {
    let text = client.get_text("/metrics").await.unwrap_or_default();
    let line = text.lines().find(|line| line.contains("status=\"202\""));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// haproxy before these gateways: it asks `/readyz` and, unlike by default, retries nothing, so that whatever
/// fails shows.
async fn balance(gateways: &[Process], folder: &Path) -> (String, Child) {
    let port = free_port();
    let servers: String = (0..)
        .zip(gateways)
        .map(|(n, gateway)| {
            format!("  server g{n} {}\n", gateway.url.trim_start_matches("http://"))
        })
        .collect();
    let settings = format!(
        "defaults\n  mode http\n  timeout connect 1s\n  timeout client 30s\n  timeout server 30s\n  retries 0\n\
         frontend devices\n  bind 127.0.0.1:{port}\n  default_backend gateways\n\
         backend gateways\n  balance roundrobin\n  option httpchk GET /readyz\n  \
         default-server check inter 200ms fall 1 rise 1\n{servers}"
    );
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, settings).expect("written");
    let haproxy = Command::new("haproxy")
        .args(["-db", "-f"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("haproxy runs; scripts/test installs it");
    let url = format!("http://127.0.0.1:{port}");
    let client = Client::new(&url, "");
    wait_for("haproxy", PATIENCE, async || {
        client.get("/readyz").await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    (url, haproxy)
}

/// The first thing after SIGTERM: nobody new is sent here, and whoever is here is served.
#[tokio::test(flavor = "multi_thread")]
async fn in_its_grace_a_process_is_not_ready_and_serves_on() {
    let grace = [("PULSESTREAM__SERVER__DRAIN_GRACE", "60s")];
    let site = Site::with(Engines::Embedded, &grace).await;
    let mut process = Process::start("up", &site.home.variables).await;
    process.ready().await;
    let client = Client::new(&process.url, &site.key);
    process.signal("TERM").await;
    wait_for("/readyz to tell", Duration::from_secs(2), async || {
        client.get("/readyz").await.expect("it listens").status == 503
    })
    .await;
    let answer = client.post(Uuid::new_v4(), &event(Uuid::new_v4(), 1.0)).await.expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (202, "close"), "{answer:?}");
    process.signal("TERM").await;
    assert_eq!(process.ended().await, Some(143));
}

/// What a client without a load balancer sees of a stop: each of its connections ends with an answer.
#[tokio::test(flavor = "multi_thread")]
async fn in_its_grace_a_process_fails_no_request_of_clients_that_connect_anew_when_asked() {
    let grace = [("PULSESTREAM__SERVER__DRAIN_GRACE", "60s")];
    let site = Site::with(Engines::Embedded, &grace).await;
    let mut process = Process::start("up", &site.home.variables).await;
    process.ready().await;
    let (end, mut senders) = (CancellationToken::new(), JoinSet::new());
    for _ in 0..8 {
        senders.spawn(post_until(end.clone(), Client::new(&process.url, &site.key)));
    }
    takes_traffic(&process).await;
    process.signal("TERM").await;
    let client = Client::new(&process.url, "");
    wait_for("the grace", PATIENCE, async || {
        client.get("/readyz").await.expect("it listens").status == 503
    })
    .await;
    let before = accepted(&client).await;
    wait_for("more requests", PATIENCE, async || accepted(&client).await > before + 200).await;
    end.cancel();
    senders.join_all().await;
    process.signal("TERM").await;
    assert_eq!(process.ended().await, Some(143));
}
