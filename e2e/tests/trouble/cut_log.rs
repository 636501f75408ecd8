//! Offsets have no identity: the log is cut, or is another log under the same name.

use std::path::Path;

use pulsestream_e2e::client::{Client, PATIENCE, event};
use pulsestream_e2e::harness::{Engines, start_gateway};
use pulsestream_e2e::on_both;
use pulsestream_e2e::process::Process;
use pulsestream_shared::engine::kafka_config;
use pulsestream_shared::event::EventId;
use pulsestream_shared::log::kafka::damage;
use pulsestream_shared::testing::wait_for;
use uuid::Uuid;

use crate::support::{Log, Site, counter, devices};

on_both!(
    a_log_shorter_than_the_stored_place_is_read_again_from_its_start,
    a_log_cut_and_grown_past_the_stored_place_is_read_again_from_its_start,
);

async fn a_log_shorter_than_the_stored_place_is_read_again_from_its_start(engines: Engines) {
    the_log_is_cut_and_then_grows_by(1, engines).await;
}

async fn a_log_cut_and_grown_past_the_stored_place_is_read_again_from_its_start(engines: Engines) {
    the_log_is_cut_and_then_grows_by(9, engines).await;
}

/// Six events of each device are stored; then the log loses the last three (Kafka: all) and gets others.
async fn the_log_is_cut_and_then_grows_by(growth: usize, engines: Engines) {
    let site = Site::new(engines).await;
    let devices = devices(6);
    let mut expected = site.accept(&devices, 3).await;
    let backup = tempfile::tempdir().expect("a folder");
    let folder = site.home.config().embedded.data_dir;
    if engines == Engines::Embedded {
        copy_log(&folder, backup.path());
    }
    expected.extend(site.accept(&devices, 3).await);
    site.store_all(expected.len()).await;
    let log = Log::open(&site.home).await;
    let epoch = log.identity().await.epoch;
    log.close().await;

    match engines {
        Engines::Embedded => copy_log(backup.path(), &folder),
        Engines::Servers => {
            damage::recreate_raw(&kafka_config(&site.home.config())).await.expect("recreated");
        }
    }
    expected.extend(site.accept(&devices, growth).await);

    let consumer = site.consumer().await;
    site.stored(expected.len()).await;
    assert_eq!(counter(&consumer.registry, "log_lost_records_total", None), 0);
    consumer.stop().await;
    let log = Log::open(&site.home).await;
    assert_ne!(log.identity().await.epoch, epoch, "the log is another one");
    site.stored_exactly(&expected, &log).await;
    log.close().await;
    site.remove().await;
}

/// An operator saves the log, or puts an old copy back.
fn copy_log(from: &Path, to: &Path) {
    for name in ["log.db", "log.db-wal", "log.db-shm"] {
        let _absent = std::fs::remove_file(to.join(name));
        if from.join(name).is_file() {
            std::fs::copy(from.join(name), to.join(name)).expect("copied");
        }
    }
}

/// A consumer of its own process that has stored three events of each device.
async fn consumer_at_work(site: &Site, devices: &[Uuid], output: &Path) -> (Process, Vec<EventId>) {
    let accepted = site.accept(devices, 3).await;
    let consumer = Process::start_logged("consumer", &site.home.variables, output).await;
    site.stored(accepted.len()).await;
    (consumer, accepted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_recreated_under_a_running_consumer_is_read_from_its_start() {
    let site = Site::new(Engines::Servers).await;
    let devices = devices(6);
    let output = tempfile::tempdir().expect("a folder");
    let (mut consumer, mut expected) = consumer_at_work(&site, &devices, output.path()).await;
    damage::recreate_raw(&kafka_config(&site.home.config())).await.expect("recreated");
    // More than before, so that every old place lies inside the new topic.
    expected.extend(site.accept(&devices, 9).await);
    site.stored(expected.len()).await;
    let log = Log::attach(&site.home).await;
    site.stored_exactly(&expected, &log).await;
    log.close().await;
    assert_eq!(consumer.terminate().await, Some(0), "{}", consumer.stderr());
    site.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_away_for_a_moment_does_not_end_a_running_consumer() {
    let site = Site::new(Engines::Servers).await;
    let devices = devices(6);
    let output = tempfile::tempdir().expect("a folder");
    let (mut consumer, mut expected) = consumer_at_work(&site, &devices, output.path()).await;
    let config = kafka_config(&site.home.config());
    damage::delete_raw(&config).await.expect("deleted");
    wait_for("the consumer to miss the topic", PATIENCE, async || {
        consumer.stderr().contains("\"revoked\"")
    })
    .await;
    damage::create_raw(&config).await.expect("made");
    expected.extend(site.accept(&devices, 2).await);
    site.stored(expected.len()).await;
    assert_eq!(consumer.terminate().await, Some(0), "{}", consumer.stderr());
    site.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_another_partition_count_is_refused_at_start() {
    let site = Site::new(Engines::Servers).await;
    damage::add_partitions(&kafka_config(&site.home.config()), 6).await.expect("added");
    let output = tempfile::tempdir().expect("a folder");
    for role in ["gateway", "consumer", "broadcaster", "migrate"] {
        let mut process = Process::start_logged(role, &site.home.variables, output.path()).await;
        assert_eq!(process.ended().await, Some(1), "{role}");
        names_both_numbers(role, &process.stderr());
    }
    site.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_under_running_processes_end_them() {
    let site = Site::new(Engines::Servers).await;
    let output = tempfile::tempdir().expect("a folder");
    let mut processes = Vec::new();
    for role in ["gateway", "consumer", "broadcaster"] {
        processes
            .push((role, Process::start_logged(role, &site.home.variables, output.path()).await));
    }
    for (_, process) in &processes {
        process.ready().await;
    }
    damage::add_partitions(&kafka_config(&site.home.config()), 6).await.expect("added");
    for (role, process) in &mut processes {
        assert_eq!(process.ended().await, Some(1), "{role}");
        names_both_numbers(role, &process.stderr());
    }
    site.remove().await;
}

fn names_both_numbers(role: &str, stderr: &str) {
    let sentence = "has 6 partitions where this log was made with 4";
    assert!(stderr.contains(sentence), "{role}: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_log_of_another_partition_count_is_refused_at_start() {
    let mut site = Site::new(Engines::Embedded).await;
    site.accept(&devices(1), 1).await;
    site.home.variables.insert("PULSESTREAM__LOG__PARTITIONS".into(), "6".into());
    let output = tempfile::tempdir().expect("a folder");
    let mut process = Process::start_logged("up", &site.home.variables, output.path()).await;
    assert_eq!(process.ended().await, Some(1));
    let stderr = process.stderr();
    assert!(stderr.contains("has 12 partitions, the configuration says 6"), "{stderr}");
    site.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_runs_while_the_topic_is_recreated_goes_on() {
    let site = Site::new(Engines::Servers).await;
    let devices = devices(4);
    let gateway = start_gateway(&site.home).await;
    let mut expected = site.post(&gateway, &devices, 3).await;
    site.store_all(expected.len()).await;
    damage::recreate_raw(&kafka_config(&site.home.config())).await.expect("recreated");
    let client = Client::new(&gateway.url, &site.key);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let id = Uuid::new_v4();
        let answer = client.post(id, &event(devices[0], 1.0)).await.expect("an answer");
        match answer.status {
            202 => break expected.push(EventId(id)),
            status => assert_eq!(status, 503, "{answer:?}"),
        }
        assert!(tokio::time::Instant::now() < deadline, "still {answer:?}");
    }
    gateway.stop().await;
    let consumer = site.consumer().await;
    // An event answered 503 may be in the log all the same.
    site.stored(expected.len()).await;
    let stored = site.stored_ids().await;
    assert!(expected.iter().all(|id| stored.contains(id)));
    consumer.stop().await;
    site.remove().await;
}
