//! A log that lost what it had confirmed: the producer can no longer tell what is there, and gives up.

use std::path::Path;
use std::time::Duration;

use pulsestream_e2e::client::{Client, PATIENCE};
use pulsestream_e2e::harness::Engines;
use pulsestream_e2e::process::Process;
use pulsestream_shared::testing::wait_for;
use tokio::time::Instant;

use crate::brokers::stored_once;
use crate::load::{Load, device_of, summary};
use crate::outage::accept_at_last;
use crate::own_kafka::OwnKafka;
use crate::support::Site;

const PARTITIONS: u32 = 4;

/// As after a power cut of a broker that had not flushed, or an unclean election. The broker then refuses
/// the producer's next record as out of order, and librdkafka declares the producer dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_producer_is_replaced_and_what_it_had_outstanding_is_neither_accepted_nor_lost() {
    let kafka = OwnKafka::start().await;
    let site = Site::with(Engines::Servers, &[("KAFKA_BROKERS", &kafka.brokers)]).await;
    let output = tempfile::tempdir().expect("a folder");
    let gateway = Process::start_logged("gateway", &site.home.variables, output.path()).await;
    gateway.ready().await;
    let client = Client::new(&gateway.url, &site.key);
    let first = device_of(0, PARTITIONS);
    for n in 0..3 {
        client.accept(first, f64::from(n)).await;
    }

    kafka.kill().await;
    let namespace = &site.home.variables["PULSESTREAM__LOG__NAMESPACE"];
    let partition = format!("data/{namespace}metrics.raw-0");
    lose_last_batch(&kafka.node(1).path(&partition));
    kafka.restart().await;
    let load = Load::start(&client, PARTITIONS, 4);
    let started = Instant::now();
    wait_for("a new producer", PATIENCE, async || {
        gateway.stderr().contains("replaced the producer")
    })
    .await;
    eprintln!("a new producer after {:?}", started.elapsed());
    for partition in 0..PARTITIONS {
        accept_at_last(&client, device_of(partition, PARTITIONS)).await;
    }
    eprintln!("every partition takes events after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let told = load.stop().await;

    eprintln!("the producer died: {}", summary(told.iter()));
    let unknown = told.iter().filter(|told| told.partition == 0 && told.code == "outcome_unknown");
    assert!(unknown.count() > 0, "nothing was outstanding: {}", gateway.stderr());
    let consumer = site.consumer().await;
    stored_once(&site, &consumer, &told).await;
    consumer.stop().await;
    drop(gateway);
    site.remove().await;
}

/// Cuts the last batch off a partition whose broker is dead. A batch begins with its first offset (8
/// bytes) and the length of what follows (4 bytes).
fn lose_last_batch(folder: &Path) {
    let path = folder.join("00000000000000000000.log");
    let bytes = std::fs::read(&path).expect("a segment");
    let (mut last, mut next) = (0, 0);
    while let Some(length) = bytes.get(next + 8..next + 12) {
        last = next;
        let length = u32::from_be_bytes(length.try_into().expect("4 bytes"));
        next += 12 + usize::try_from(length).expect("a length");
    }
    assert!(last > 0, "fewer than two batches");
    let segment = std::fs::File::options().write(true).open(&path).expect("a segment");
    segment.set_len(last as u64).expect("cut");
}
