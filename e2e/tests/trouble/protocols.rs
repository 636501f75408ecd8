//! A group whose members are changed, one by one, to the other way of dealing partitions anew.

use pulsestream_e2e::client::PATIENCE;
use pulsestream_e2e::harness::{Engines, start_gateway};
use pulsestream_e2e::process::Process;
use pulsestream_shared::testing::wait_for;

use crate::support::{Log, Site, assigned, devices};

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_another_protocol_waits_outside_says_so_and_takes_over_at_last() {
    let mut site = Site::new(Engines::Servers).await;
    let gateway = start_gateway(&site.home).await;
    let eager = site.consumer().await;
    wait_for("every partition", PATIENCE, async || assigned(&eager.registry) == 4).await;
    let protocol = ("PULSESTREAM__LOG__REBALANCE_PROTOCOL".into(), "cooperative".into());
    site.home.variables.extend([protocol]);
    let output = tempfile::tempdir().expect("a folder");
    let mut newer = Process::start_logged("consumer", &site.home.variables, output.path()).await;
    wait_for("the warning", PATIENCE, async || {
        newer.stderr().contains("members have another log.rebalance_protocol")
    })
    .await;
    let mut expected = site.post(&gateway, &devices(4), 2).await;
    site.stored(expected.len()).await;
    assert_eq!(assigned(&eager.registry), 4, "it was not disturbed");
    eager.stop().await;
    expected.extend(site.post(&gateway, &devices(4), 2).await);
    let log = Log::attach(&site.home).await;
    site.stored_exactly(&expected, &log).await;
    log.close().await;
    assert_eq!(newer.stderr().matches("another log.rebalance_protocol").count(), 1);
    assert_eq!(newer.terminate().await, Some(0));
    gateway.stop().await;
    site.remove().await;
}
