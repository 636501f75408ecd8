//! Servers that are away: at the start, or under traffic.

use std::time::Duration;

use pulsestream_e2e::client::{Client, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, start_gateway};
use pulsestream_e2e::process::Process;
use pulsestream_shared::event::EventId;
use pulsestream_shared::testing::proxy::TcpProxy;
use pulsestream_shared::testing::wait_for;
use tokio::time::Instant;
use uuid::Uuid;

use crate::own_kafka::OwnKafka;
use crate::support::{Log, Site, counter, devices};

/// Puts a proxy before the server that a variable names.
pub(crate) async fn proxied(site: &mut Site, variable: &str) -> TcpProxy {
    let url = &site.home.variables[variable];
    let (_, rest) = url.split_once("://").expect("a URL");
    let authority = rest.split('/').next().unwrap_or(rest);
    let server = authority.rsplit('@').next().unwrap_or(authority).to_owned();
    let proxy = TcpProxy::start(server.clone()).await.expect("a proxy");
    let url = url.replace(&server, &proxy.addr().to_string());
    site.home.variables.insert(variable.to_owned(), url);
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_accepted_while_the_database_is_gone_and_stored_when_it_is_back() {
    let mut site = Site::new(Engines::Servers).await;
    let devices = devices(4);
    let database = proxied(&mut site, "DATABASE_URL").await;
    let gateway = start_gateway(&site.home).await;
    let consumer = site.consumer().await;
    let mut expected = site.post(&gateway, &devices, 2).await;
    site.stored(expected.len()).await;

    database.kill();
    let gone_until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < gone_until {
        expected.extend(site.post(&gateway, &devices, 1).await);
    }
    let stored = site.tables.count_events().await.expect("a count");
    assert_eq!(stored, 8, "stored without a database");
    database.restore();

    let log = Log::attach(&site.home).await;
    site.stored_exactly(&expected, &log).await;
    assert_eq!(counter(&consumer.registry, "dead_letters_total", None), 0);
    log.close().await;
    consumer.stop().await;
    gateway.stop().await;
    site.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_waits_for_an_absent_database() {
    let mut site = Site::new(Engines::Servers).await;
    let database = proxied(&mut site, "DATABASE_URL").await;
    database.kill();
    let process = Process::start("gateway", &site.home.variables).await;
    names_what_it_waits_for(&process, "store").await;
    database.restore();
    process.ready().await;
    Client::new(&process.url, &site.key).accept(Uuid::new_v4(), 1.0).await;
    drop(process);
    site.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_without_redis_says_so_and_uses_it_when_it_comes() {
    let mut site = Site::new(Engines::Servers).await;
    let redis = proxied(&mut site, "REDIS_URL").await;
    redis.kill();
    let process = Process::start("gateway", &site.home.variables).await;
    let client = Client::new(&process.url, &site.key);
    wait_for("it to be ready", PATIENCE, async || {
        let Ok(answer) = client.get("/readyz").await else { return false };
        assert_ne!(answer.body["checks"]["cache"]["status"], "up", "{answer:?}");
        answer.status == 200
    })
    .await;
    let answer = client.post(Uuid::new_v4(), &event(Uuid::new_v4(), 1.0)).await;
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.header("idempotency-status")), (202, "local"));
    let cache_is_up = async || {
        let answer = client.get("/readyz").await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["checks"]["cache"]["status"] == "up"
    };
    redis.restore();
    wait_for("/readyz to see it", PATIENCE, cache_is_up).await;
    wait_for("shared locks", PATIENCE, async || {
        let answer = client.post(Uuid::new_v4(), &event(Uuid::new_v4(), 1.0)).await;
        answer.expect("an answer").header("idempotency-status") != "local"
    })
    .await;
    drop(process);
    site.remove().await;
}

/// `/livez` says 200, `/readyz` says 503 and why.
async fn names_what_it_waits_for(process: &Process, dependency: &str) {
    let client = Client::new(&process.url, "");
    wait_for("/readyz to name it", PATIENCE, async || {
        let Ok(answer) = client.get("/readyz").await else { return false };
        assert_eq!(answer.status, 503, "{answer:?}");
        answer.body["status"] == "STARTING"
            && answer.body["checks"][dependency]["status"].as_str().is_some_and(|s| s != "up")
    })
    .await;
    assert_eq!(client.get("/livez").await.expect("an answer").status, 200);
    let refused = client.post(Uuid::new_v4(), &event(Uuid::new_v4(), 1.0)).await;
    assert_eq!(refused.expect("an answer").status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_absent_hung_and_back_loses_nothing_and_answers_fast() {
    let kafka = OwnKafka::start().await;
    let site = Site::with(Engines::Servers, &[("KAFKA_BROKERS", &kafka.brokers)]).await;

    kafka.kill().await;
    let process = Process::start("gateway", &site.home.variables).await;
    names_what_it_waits_for(&process, "log").await;
    kafka.restart().await;
    process.ready().await;

    let device = devices(1)[0];
    let client = Client::new(&process.url, &site.key);
    let mut accepted = vec![EventId(client.accept(device, 1.0).await)];

    kafka.signal("STOP").await;
    let first = Instant::now();
    let answer = client.post(Uuid::new_v4(), &event(device, 2.0)).await.expect("an answer");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    eprintln!("Kafka hung: the first answer took {:?}", first.elapsed());
    refuses_fast(&client, device).await;

    kafka.signal("CONT").await;
    let back = Instant::now();
    let again = accept_at_last(&client, device).await;
    eprintln!("Kafka back: accepted again after {:?}", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    accepted.push(again);
    accepted.push(EventId(client.accept(device, 4.0).await));

    let consumer = site.consumer().await;
    wait_for("every acknowledged event to be stored", PATIENCE, async || {
        let stored = site.stored_ids().await;
        accepted.iter().all(|id| stored.contains(id))
    })
    .await;
    assert_eq!(counter(&consumer.registry, "dead_letters_total", None), 0);
    consumer.stop().await;
    drop(process);
    site.remove().await;
}

/// With the breaker open an answer takes no time, but for the one probe that passes it.
pub(crate) async fn refuses_fast(client: &Client, device: Uuid) {
    let asked = (0..20).map(|_| async {
        let started = Instant::now();
        let answer = client.post(Uuid::new_v4(), &event(device, 3.0)).await.expect("an answer");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
        started.elapsed()
    });
    let mut took = futures_util::future::join_all(asked).await;
    took.sort_unstable();
    eprintln!("Kafka hung: answers took {:?} to {:?}", took[0], took[19]);
    assert!(took[18] < Duration::from_millis(100), "{took:?}");
}

/// Posts events of their own until one is accepted.
pub(crate) async fn accept_at_last(client: &Client, device: Uuid) -> EventId {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let id = Uuid::new_v4();
        let answer = client.post(id, &event(device, 5.0)).await.expect("an answer");
        if answer.status == 202 {
            return EventId(id);
        }
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(Instant::now() < deadline, "never accepted again: {answer:?}");
    }
}
