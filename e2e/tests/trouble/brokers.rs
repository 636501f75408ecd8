//! Three brokers of which one dies, freezes or hangs, or all are gone, under traffic.
//!
//! Promised: an event that was answered 202 is stored, once; no answer is later than the deadline of a
//! request; with the breaker open an answer takes no time; a broker that hangs costs only the devices of
//! the partitions it leads. Kafka itself makes every append wait until a dead replica is missed (here
//! 3 s), so figures of those seconds are told, not judged.

use std::collections::BTreeSet;
use std::time::Duration;

use pulsestream_e2e::client::{Answer, Client, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Running, start_gateway};
use pulsestream_shared::engine::kafka_config;
use pulsestream_shared::log::kafka::damage;
use pulsestream_shared::testing::proxy::{TcpProxy, Traffic};
use pulsestream_shared::testing::wait_for;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::load::{Load, Told, device_of, summary};
use crate::outage::accept_at_last;
use crate::own_kafka::{Node, OwnKafka};
use crate::support::{Site, counter, gauge};

const PARTITIONS: u32 = 6;
/// `ingest.request_timeout` and a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a broker is away, and by when others lead its partitions: Kafka misses it after 3 s, what was sent
/// to it until then waits 5 s more, and a busy machine took 10.2 s for both.
const AWAY: Duration = Duration::from_secs(20);
const TAKEN_OVER: Duration = Duration::from_secs(15);

/// A gateway and a consumer on three brokers.
struct Cluster {
    kafka: OwnKafka,
    site: Site,
    gateway: Running,
    consumer: Running,
    client: Client,
    /// The leader of each partition.
    leaders: Vec<i32>,
}

impl Cluster {
    async fn start() -> Self {
        let kafka = OwnKafka::cluster().await;
        let brokers = kafka.brokers.clone();
        Self::on(kafka, &brokers).await
    }

    async fn on(kafka: OwnKafka, brokers: &str) -> Self {
        let partitions = PARTITIONS.to_string();
        let variables = [
            ("KAFKA_BROKERS", brokers),
            ("PULSESTREAM__LOG__REPLICATION", "3"),
            ("PULSESTREAM__LOG__PARTITIONS", &partitions),
        ];
        let site = Site::with(Engines::Servers, &variables).await;
        let leaders = damage::leaders(&kafka_config(&site.home.config())).await.expect("leaders");
        let gateway = start_gateway(&site.home).await;
        let consumer = site.consumer().await;
        let client = Client::new(&gateway.url, &site.key);
        let cluster = Self { kafka, site, gateway, consumer, client, leaders };
        // Every partition was appended to once: from here on nothing has to be looked for.
        for partition in 0..PARTITIONS {
            let device = device_of(partition, PARTITIONS);
            accept_at_last(&cluster.client, device).await;
        }
        cluster
    }

    fn load(&self) -> Load {
        Load::start(&self.client, PARTITIONS, 3)
    }

    fn open_breakers(&self) -> usize {
        let open = gauge(&self.gateway.registry, "breakers_open", Some("log"));
        usize::try_from(open).expect("a count")
    }

    /// Splits answers by whether that broker led the partition.
    fn by_leader(&self, told: &[Told], broker: i32) -> (Vec<Told>, Vec<Told>) {
        told.iter().cloned().partition(|told| self.leaders[told.partition] == broker)
    }

    /// What the devices were told is true, and was told in time.
    async fn verify_and_end(self, told: &[Told]) {
        let longest = told.iter().map(|told| told.took).max();
        assert!(longest < Some(DEADLINE), "an answer took {longest:?}");
        stored_once(&self.site, &self.consumer, told).await;
        self.consumer.stop().await;
        self.gateway.stop().await;
        self.site.remove().await;
    }
}

/// What was accepted is stored, and nothing twice.
pub(crate) async fn stored_once(site: &Site, consumer: &Running, told: &[Told]) {
    let accepted: BTreeSet<_> =
        told.iter().filter(|told| told.status == 202).map(|told| told.id).collect();
    let verified = Instant::now();
    wait_for("every acknowledged event to be stored", 3 * PATIENCE, async || {
        let count = site.tables.count_events().await.expect("a count");
        count >= accepted.len() as u64 && {
            let stored: BTreeSet<_> = site.stored_ids().await.into_iter().collect();
            accepted.is_subset(&stored)
        }
    })
    .await;
    eprintln!("everything stored {:?} after the last answer", verified.elapsed());
    let stored = site.stored_ids().await;
    let distinct: BTreeSet<_> = stored.iter().copied().collect();
    assert_eq!(stored.len(), distinct.len(), "stored twice");
    assert_eq!(counter(&consumer.registry, "dead_letters_total", None), 0);
}

fn tell(what: &str, told: &[Told]) {
    eprintln!("{what}: {}", summary(told.iter()));
}

/// The log takes records again long before the broker is back: another one leads its partitions.
#[track_caller]
fn others_took_over(told: &[Told], struck: Instant) {
    let late = |told: &&Told| told.status == 503 && told.at > struck + TAKEN_OVER;
    assert_eq!(told.iter().find(late).map(|told| told.at - struck), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_of_three_costs_no_acknowledged_event_and_no_answer_its_deadline() {
    a_broker_is_away("killed", AWAY, Node::kill, Node::restart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_of_three_costs_no_acknowledged_event_and_no_answer_its_deadline() {
    let (stop, go_on) = (
        async |node: &Node| node.signal("STOP").await,
        async |node: &Node| node.signal("CONT").await,
    );
    a_broker_is_away("frozen", AWAY, stop, go_on).await;
}

/// The leader of some partitions goes, and comes back after a while.
async fn a_broker_is_away(
    how: &str,
    away: Duration,
    strike: impl AsyncFn(&Node),
    bring_back: impl AsyncFn(&Node),
) {
    let cluster = Cluster::start().await;
    let broker = cluster.leaders[0];
    let load = cluster.load();
    tokio::time::sleep(Duration::from_secs(2)).await;
    strike(cluster.kafka.node(broker)).await;
    let struck = Instant::now();
    tokio::time::sleep(away).await;
    bring_back(cluster.kafka.node(broker)).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let told = load.stop().await;

    let (of_it, of_others) = cluster.by_leader(&told, broker);
    tell(&format!("{how}, its devices"), &of_it);
    tell(&format!("{how}, the others"), &of_others);
    others_took_over(&told, struck);
    cluster.verify_and_end(&told).await;
}

/// To clients and to the brokers that follow it. It goes on following them, so nothing but its own
/// partitions is slow, and it is never missed: they have no leader that answers until it does.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_answers_nobody_costs_only_the_devices_of_its_partitions() {
    let kafka = OwnKafka::cluster().await;
    let hung = kafka.node(1);
    let proxy = TcpProxy::start(hung.address()).await.expect("a proxy");
    hung.be_called(proxy.addr()).await;
    let brokers = kafka.brokers.replace(&hung.address(), &proxy.addr().to_string());
    let cluster = Cluster::on(kafka, &brokers).await;
    let load = cluster.load();
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.set(Traffic::Pause);
    let struck = Instant::now();
    wait_for("the breakers of its partitions", PATIENCE, async || {
        cluster.open_breakers() == cluster.leaders.iter().filter(|leader| **leader == 1).count()
    })
    .await;
    eprintln!("hung: breakers open after {:?}", struck.elapsed());
    let batch = one_event_for_each_partition();
    let answer = post_batch(&cluster.client, &batch).await;
    let led_by_others = cluster.leaders.iter().filter(|leader| **leader != 1).count();
    assert_eq!(answer.status, 207, "{answer:?}");
    assert_eq!(answer.body["accepted"], led_by_others, "{answer:?}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    proxy.restore();
    let back = Instant::now();
    wait_for("every breaker to close", PATIENCE, async || cluster.open_breakers() == 0).await;
    eprintln!("hung: breakers closed after {:?}", back.elapsed());
    wait_for("the rest of the batch", PATIENCE, async || {
        let answer = post_batch(&cluster.client, &batch).await;
        answer.status == 202 && answer.body["duplicates"].as_u64() >= Some(led_by_others as u64)
    })
    .await;
    let told = load.stop().await;

    let (of_it, of_others) = cluster.by_leader(&told, 1);
    tell("hung, its devices", &of_it);
    tell("hung, the others", &of_others);
    let failed = of_others.iter().find(|told| told.status != 202);
    assert!(!of_others.is_empty() && failed.is_none(), "{failed:?}");
    cluster.verify_and_end(&told).await;
}

fn one_event_for_each_partition() -> Value {
    let of = |partition| {
        let mut event = event(device_of(partition, PARTITIONS), 3.0);
        event["id"] = json!(Uuid::new_v4());
        event
    };
    (0..PARTITIONS).map(of).collect()
}

async fn post_batch(client: &Client, batch: &Value) -> Answer {
    let post = |http: &reqwest::Client, url: &str| {
        let request = http.post(format!("{url}/v1/events/batch"));
        request.header("content-type", "application/json").body(batch.to_string())
    };
    client.send(post).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn without_brokers_an_answer_takes_no_time_and_when_they_are_back_events_are_accepted() {
    let cluster = Cluster::start().await;
    let load = cluster.load();
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.kafka.kill().await;
    wait_for("every breaker to open", PATIENCE, async || {
        cluster.open_breakers() == PARTITIONS as usize
    })
    .await;
    refused_at_once(&cluster.client).await;
    cluster.kafka.restart().await;
    let back = Instant::now();
    wait_for("every breaker to close", PATIENCE, async || cluster.open_breakers() == 0).await;
    eprintln!("all back: breakers closed after {:?}", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    let told = load.stop().await;

    tell("all gone and back", &told);
    assert!(told.iter().any(|told| told.code == "outcome_unknown"), "no retry of an unknown event");
    cluster.verify_and_end(&told).await;
}

/// All but the probes: one at a time for each partition.
async fn refused_at_once(client: &Client) {
    let asked = (0..PARTITIONS * 10).map(|n| async move {
        let body = event(device_of(n % PARTITIONS, PARTITIONS), 2.0);
        let started = Instant::now();
        let answer = client.post(Uuid::new_v4(), &body).await.expect("an answer");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
        started.elapsed()
    });
    let mut took = futures_util::future::join_all(asked).await;
    took.sort_unstable();
    let quick = &took[..took.len() - PARTITIONS as usize];
    let (half, last) = (quick[quick.len() / 2], quick[quick.len() - 1]);
    eprintln!(
        "all gone: 503 after {half:.1?}, at most {last:.1?}; probes {:.1?}",
        &took[quick.len()..]
    );
    assert!(last < Duration::from_millis(100), "{took:?}");
}
