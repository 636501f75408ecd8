//! A process from its first start to its last signal, and the commands of an operator beside it.

use std::collections::BTreeMap;
use std::time::Duration;

use pulsestream_e2e::client::{Client, PATIENCE, event};
use pulsestream_e2e::harness::Engines;
use pulsestream_e2e::on_both;
use pulsestream_e2e::process::{Process, free_port};
use pulsestream_shared::event::EventId;
use pulsestream_shared::testing::wait_for;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::support::{Site, run, variables};

on_both!(sigterm_in_the_middle_of_traffic_loses_no_acknowledged_event,);

async fn sigterm_in_the_middle_of_traffic_loses_no_acknowledged_event(engines: Engines) {
    let site = Site::new(engines).await;
    let role = if engines == Engines::Embedded { "up" } else { "gateway" };
    let output = tempfile::tempdir().expect("a folder");
    let mut process = Process::start_logged(role, &site.home.variables, output.path()).await;
    process.ready().await;
    let mut senders = JoinSet::new();
    for _ in 0..16 {
        senders.spawn(post_until_the_end(Client::new(&process.url, &site.key)));
    }
    // In the middle: when some have their answers and more are under way.
    let metrics = format!("{}/metrics", process.url);
    wait_for("traffic", PATIENCE, async || {
        let text = reqwest::get(&metrics).await.expect("an answer").text().await.expect("text");
        let accepted = text.lines().find(|line| line.contains("status=\"202\""));
        accepted.is_some_and(|line| !line.ends_with(" 0"))
    })
    .await;
    let started = Instant::now();
    assert_eq!(process.terminate().await, Some(0), "{}", process.stderr());
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let accepted: Vec<EventId> = senders.join_all().await.into_iter().flatten().collect();
    assert!(!accepted.is_empty());

    let consumer = site.consumer().await;
    wait_for("every acknowledged event to be stored", PATIENCE, async || {
        let stored = site.stored_ids().await;
        accepted.iter().all(|id| stored.binary_search(id).is_ok())
    })
    .await;
    consumer.stop().await;
    let mut stored = site.stored_ids().await;
    let count = stored.len();
    stored.dedup();
    assert_eq!(stored.len(), count, "stored twice");
    site.remove().await;
}

/// Posts until nobody listens any more; what was acknowledged.
async fn post_until_the_end(client: Client) -> Vec<EventId> {
    let (device, mut accepted, mut closed) = (Uuid::new_v4(), Vec::new(), false);
    loop {
        let id = Uuid::new_v4();
        match client.post(id, &event(device, 1.0)).await {
            Ok(answer) if answer.status == 202 => accepted.push(EventId(id)),
            Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
            // Sent on a connection that was idle, in the moment in which it was closed: nobody read it.
            Err(error) if !error.is_connect() && !error.is_timeout() && !closed => closed = true,
            Err(error) if error.is_connect() => return accepted,
            Err(error) => panic!("a request that was taken got no answer: {error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_at_once() {
    let site = Site::new(Engines::Embedded).await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = Process::start_logged("up", &site.home.variables, folder.path()).await;
    process.ready().await;
    // A request whose body never ends keeps the drain going.
    let address = process.url.trim_start_matches("http://");
    let mut open = tokio::net::TcpStream::connect(address).await.expect("connected");
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\nidempotency-key: {}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n",
        site.key,
        Uuid::new_v4()
    );
    open.write_all(head.as_bytes()).await.expect("written");
    // The server asks for the body when it begins to read it.
    let mut asked = [0; 25];
    open.read_exact(&mut asked).await.expect("an interim answer");
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    process.signal("TERM").await;
    wait_for("the drain", PATIENCE, async || process.stderr().contains("draining")).await;
    let started = Instant::now();
    process.signal("TERM").await;
    assert_eq!(process.ended().await, Some(143));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_prints_a_command_that_works_and_where_the_live_page_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("data").display().to_string();
    let settings = variables(&[("DATA_DIR", &dir)]);
    let process = Process::start_logged("up", &settings, folder.path()).await;
    let started = Instant::now();
    process.ready().await;
    eprintln!("first start: ready after {:?}", started.elapsed());
    wait_for("the banner", PATIENCE, async || process.stdout().contains("curl")).await;
    let banner = process.stdout();
    let curl = banner.lines().find(|line| line.starts_with("curl ")).expect("a command");
    let bash = tokio::process::Command::new("bash").args(["-c", curl]).output().await;
    let answer = String::from_utf8(bash.expect("bash runs").stdout).expect("text");
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}\n{banner}");
    let page = banner.lines().find_map(|line| line.strip_prefix("live page:")).expect("a page");
    let page = reqwest::get(page.trim()).await.expect("an answer").text().await.expect("text");
    assert!(page.contains("<title>PulseStream live</title>"), "{page}\n{banner}");
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_is_0_when_ready_and_1_when_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().display().to_string();
    let process = Process::start("up", &variables(&[("DATA_DIR", &dir)])).await;
    process.ready().await;
    let none = BTreeMap::new();
    let healthy = run(&["healthcheck", "--url", &process.url], &none).await;
    assert_eq!(healthy.code, Some(0), "{healthy:?}");
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let ended = run(&["healthcheck", "--url", &nobody], &none).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_gives_freed_memory_back_soon_unless_it_is_told_when() {
    let site = Site::new(Engines::Servers).await;
    for (told, delay) in [(None, "100"), (Some("50"), "50")] {
        let setting = told.map(|delay| ("MIMALLOC_PURGE_DELAY".to_owned(), delay.to_owned()));
        let variables = site.home.variables.clone().into_iter().chain(setting).collect();
        let mut consumer = Process::start("consumer", &variables).await;
        consumer.ready().await;
        let pid = consumer.pid().expect("it runs");
        let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("its environment");
        let expected = format!("MIMALLOC_PURGE_DELAY={delay}");
        assert!(environment.split(|byte| *byte == 0).any(|each| each == expected.as_bytes()));
        assert_eq!(consumer.terminate().await, Some(0));
    }
    site.remove().await;
}

#[tokio::test]
async fn config_show_hides_secrets_and_tells_where_values_came_from() {
    let settings = variables(&[
        ("DATABASE_URL", "postgres://me:hush@db/x"),
        ("REDIS_URL", "redis://:hush@cache"),
        ("PULSESTREAM__KEYS__PEPPER", "hush"),
    ]);
    let shown = run(&["config", "show"], &settings).await;
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(!shown.stdout.contains("hush"), "{shown:?}");
    assert!(shown.stdout.contains("# DATABASE_URL") && shown.stdout.contains("# default"));
    assert_eq!(run(&["config", "check"], &settings).await.code, Some(0));
}

#[tokio::test]
async fn completions_are_printed() {
    let script = run(&["completions", "bash"], &BTreeMap::new()).await;
    assert_eq!(script.code, Some(0));
    assert!(script.stdout.contains("complete -F _pulsestream"), "{script:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_after_a_kill_tells_what_it_found_and_one_after_a_clean_end_does_not() {
    let site = Site::new(Engines::Embedded).await;
    let output = tempfile::tempdir().expect("a folder");
    let mut process = Process::start_logged("up", &site.home.variables, output.path()).await;
    process.ready().await;
    let client = Client::new(&process.url, &site.key);
    for value in [1.0, 2.0, 3.0] {
        client.accept(Uuid::new_v4(), value).await;
    }
    process.kill().await;
    process.restart().await;
    process.ready().await;
    let told = |process: &Process| {
        let said = process.stderr();
        said.lines()
            .filter(|line| line.contains("did not end cleanly"))
            .map(str::to_owned)
            .collect()
    };
    let lines: Vec<String> = told(&process);
    assert!(lines.len() == 1 && lines[0].contains("\"records\":3"), "{lines:?}");
    assert_eq!(process.terminate().await, Some(0));
    process.restart().await;
    process.ready().await;
    assert_eq!(told(&process), lines);
    site.remove().await;
}
