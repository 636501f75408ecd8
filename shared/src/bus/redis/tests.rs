//! On a real Redis, through the proxy where it misbehaves.

use std::sync::Arc;

use redis::Value;
use tokio::time::Instant;

use super::*;
use crate::bus::BusEvent;
use crate::testing::bus::{BusUnderTest, hear, listen};
use crate::testing::faults::{FaultBus, Faults};
use crate::testing::proxy::{TcpProxy, Traffic};
use crate::testing::services::{namespace, redis_url};
use crate::testing::wait_for;

const PATIENCE: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_millis(200);

fn open_at(url: String) -> RedisBus {
    let timeout = Duration::from_millis(100);
    let config = RedisBusConfig { url, namespace: namespace(), timeout, heartbeat: HEARTBEAT };
    RedisBus::open(config).unwrap()
}

/// Patient, because a conformance suite on a busy machine is no test of timeouts.
fn open() -> BusUnderTest {
    let config = RedisBusConfig {
        url: redis_url(),
        namespace: namespace(),
        timeout: PATIENCE,
        heartbeat: PATIENCE,
    };
    BusUnderTest::new(Arc::new(RedisBus::open(config).unwrap()))
}

fn open_wrapped() -> BusUnderTest {
    let BusUnderTest { bus, keep } = open();
    BusUnderTest { bus: Arc::new(FaultBus::new(bus, Faults::default())), keep }
}

crate::bus_conformance!(on_redis, super::open());
crate::bus_conformance!(fault_bus, super::open_wrapped());

async fn proxied() -> (TcpProxy, RedisBus) {
    let url = redis_url();
    let target = url.trim_start_matches("redis://").trim_end_matches('/').to_owned();
    let proxy = TcpProxy::start(target).await.unwrap();
    let bus = open_at(format!("redis://{}", proxy.addr()));
    (proxy, bus)
}

fn keys(text: &'static str) -> BusEvent {
    BusEvent::Message(Channel::Keys, Bytes::from_static(text.as_bytes()))
}

async fn works_again(bus: &RedisBus, subscription: &mut dyn Subscription) {
    assert_eq!(hear(subscription).await, BusEvent::Restored);
    wait_for("a publish", PATIENCE, async || {
        bus.publish(&[(Channel::Keys, Bytes::from_static(b"again"))]).await.is_ok()
    })
    .await;
    assert_eq!(hear(subscription).await, keys("again"));
}

#[tokio::test]
async fn a_server_that_goes_is_a_cut_and_its_return_is_restored() {
    let (proxy, bus) = proxied().await;
    let mut subscription = listen(&bus, &[Channel::Live(0), Channel::Keys]).await;
    proxy.kill();
    assert_eq!(hear(&mut *subscription).await, BusEvent::Cut);
    assert!(bus.publish(&[(Channel::Keys, Bytes::new())]).await.is_err());
    proxy.restore();
    let start = Instant::now();
    works_again(&bus, &mut *subscription).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_server_that_falls_silent_is_a_cut() {
    let (proxy, bus) = proxied().await;
    let mut subscription = listen(&bus, &[Channel::Keys]).await;
    let start = Instant::now();
    proxy.set(Traffic::Pause);
    assert_eq!(hear(&mut *subscription).await, BusEvent::Cut);
    assert!(start.elapsed() < HEARTBEAT * 4, "{:?}", start.elapsed());
    proxy.restore();
    works_again(&bus, &mut *subscription).await;
}

#[tokio::test]
async fn an_idle_subscription_is_not_cut_by_its_own_heartbeat() {
    let (_proxy, bus) = proxied().await;
    let mut subscription = listen(&bus, &[Channel::Keys]).await;
    let quiet = tokio::time::timeout(HEARTBEAT * 5, subscription.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_subscription_waits_for_a_server_that_is_not_there_yet() {
    let (proxy, bus) = proxied().await;
    proxy.kill();
    let mut subscription = bus.subscribe(&[Channel::Keys]).await;
    let early = tokio::time::timeout(HEARTBEAT, subscription.next()).await;
    assert!(early.is_err(), "{early:?}");
    proxy.restore();
    works_again(&bus, &mut *subscription).await;
}

#[tokio::test]
async fn a_dropped_subscription_leaves_no_subscriber_behind() {
    let bus = open_at(redis_url());
    let subscribers = async || {
        let mut count = redis::cmd("PUBSUB");
        count.arg("NUMSUB").arg(bus.name(Channel::Keys));
        match bus.link.call_one(count).await.unwrap() {
            Value::Array(answer) => matches!(answer.get(1), Some(Value::Int(1))),
            Value::Map(answer) => matches!(answer.first(), Some((_, Value::Int(1)))),
            other => panic!("{other:?}"),
        }
    };
    let subscription = listen(&bus, &[Channel::Keys]).await;
    assert!(subscribers().await);
    drop(subscription);
    wait_for("the subscriber to go", PATIENCE, async || !subscribers().await).await;
}
