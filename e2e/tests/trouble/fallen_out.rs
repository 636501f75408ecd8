//! The consumer falls out of the log: records went before they were stored.

use pulsestream_e2e::client::PATIENCE;
use pulsestream_e2e::harness::Engines;
use pulsestream_e2e::on_both;
use pulsestream_e2e::process::Process;
use pulsestream_shared::codec::decode;
use pulsestream_shared::log::{STORE_GROUP, Topic};
use pulsestream_shared::testing::wait_for;

use crate::support::{Log, Site, assigned, counter, devices};

on_both!(lost_records_are_counted_exactly_and_what_is_left_is_stored);

async fn lost_records_are_counted_exactly_and_what_is_left_is_stored(engines: Engines) {
    let site = Site::new(engines).await;
    let devices = devices(8);
    let mut expected = site.accept(&devices, 2).await;
    site.store_all(expected.len()).await;
    let before = expected.len();
    let later = site.accept(&devices, 3).await;

    // Of every partition that has three unread records or more, all but the last two go.
    let log = Log::open(&site.home).await;
    let mut lost = 0;
    for place in site.tables.progress(STORE_GROUP).await.expect("progress") {
        let bounds = log.bounds().await[usize::try_from(place.partition).expect("a partition")];
        if bounds.next - place.next >= 3 {
            log.remove_below(place.partition, bounds.next - 2).await;
            lost += bounds.next - 2 - place.next;
        }
    }
    assert!(lost > 0);
    let left = log.records(Topic::Raw).await;
    let left = left.iter().map(|record| decode(record).expect("an event").event.id);
    expected.extend(left.filter(|id| later.contains(id)));
    assert_eq!(expected.len() as i64, (before + later.len()) as i64 - lost);
    log.close().await;

    let consumer = site.consumer().await;
    site.stored(expected.len()).await;
    assert_eq!(counter(&consumer.registry, "log_lost_records_total", None) as i64, lost);
    consumer.stop().await;
    let log = Log::open(&site.home).await;
    site.stored_exactly(&expected, &log).await;
    log.close().await;

    // What was counted once is not counted again.
    let consumer = site.consumer().await;
    wait_for("assignment", PATIENCE, async || assigned(&consumer.registry) > 0).await;
    assert_eq!(counter(&consumer.registry, "log_lost_records_total", None), 0);
    consumer.stop().await;
    site.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_is_an_error_line_with_its_place_and_number() {
    let site = Site::new(Engines::Servers).await;
    let device = devices(1);
    let stored = site.accept(&device, 2).await;
    site.store_all(stored.len()).await;
    site.accept(&device, 5).await;
    let log = Log::open(&site.home).await;
    let (partition, end) =
        (0..).zip(log.ends().await).find(|(_, end)| *end == 7).expect("one device, one partition");
    log.remove_below(partition, end - 1).await;
    log.close().await;

    let output = tempfile::tempdir().expect("a folder");
    let mut consumer = Process::start_logged("consumer", &site.home.variables, output.path()).await;
    site.stored(3).await;
    assert_eq!(consumer.terminate().await, Some(0));
    let stderr = consumer.stderr();
    let line = stderr.lines().find(|line| line.contains("never stored"));
    let line: serde_json::Value =
        serde_json::from_str(line.unwrap_or_else(|| panic!("no such line: {stderr}")))
            .expect("JSON");
    assert_eq!(line["level"], "ERROR", "{line}");
    let said = line.to_string();
    for part in [&format!("\"partition\":{partition}"), "\"records\":4", "\"from\":2", "\"to\":6"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    site.remove().await;
}
