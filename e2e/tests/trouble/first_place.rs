//! The first place of a partition.

use pulsestream_e2e::client::PATIENCE;
use pulsestream_e2e::harness::{self, Engines};
use pulsestream_e2e::on_both;
use pulsestream_shared::testing::wait_for;

use crate::support::{Log, Site, assigned, counter, devices};

on_both!(events_accepted_before_any_consumer_ever_ran_are_stored);

async fn events_accepted_before_any_consumer_ever_ran_are_stored(engines: Engines) {
    let site = Site::new(engines).await;
    let expected = site.accept(&devices(8), 3).await;
    let consumer = site.consumer().await;
    site.stored(expected.len()).await;
    assert_eq!(counter(&consumer.registry, "log_lost_records_total", None), 0);
    assert_eq!(counter(&consumer.registry, "consumer_fenced_total", None), 0);
    consumer.stop().await;
    let log = Log::open(&site.home).await;
    site.stored_exactly(&expected, &log).await;
    log.close().await;
    site.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_first_consumers_at_once_do_not_fence_each_other_for_ever() {
    let site = Site::new(Engines::Servers).await;
    let devices = devices(16);
    let mut expected = site.accept(&devices, 3).await;
    let (one, two) = tokio::join!(site.consumer(), site.consumer());
    wait_for("both to share the partitions", PATIENCE, async || {
        let (one, two) = (assigned(&one.registry), assigned(&two.registry));
        one > 0 && two > 0 && one + two == 4
    })
    .await;
    let gateway = harness::start_gateway(&site.home).await;
    expected.extend(site.post(&gateway, &devices, 3).await);
    let log = Log::attach(&site.home).await;
    site.stored_exactly(&expected, &log).await;
    let fenced = |it: &harness::Running| counter(&it.registry, "consumer_fenced_total", None);
    // A partition that changes hands may cost each side one batch, no more.
    assert!(fenced(&one) + fenced(&two) <= 8, "{} {}", fenced(&one), fenced(&two));
    log.close().await;
    for service in [gateway, one, two] {
        service.stop().await;
    }
    site.remove().await;
}
