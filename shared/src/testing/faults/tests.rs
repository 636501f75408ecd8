use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::*;
use crate::bus::local::LocalBus;
use crate::bus::{Bus as _, BusEvent, Channel};
use crate::testing::bus::{BusUnderTest, hear, listen};
use crate::testing::wait_for;

const PATIENCE: Duration = Duration::from_secs(10);

async fn open() -> BusUnderTest {
    BusUnderTest::new(Arc::new(FaultBus::new(Arc::new(LocalBus::new()), Faults::default())))
}

crate::bus_conformance!(fault_bus, super::open().await);

fn bus() -> (Arc<FaultBus>, Faults) {
    let faults = Faults::default();
    (Arc::new(FaultBus::new(Arc::new(LocalBus::new()), faults.clone())), faults)
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test]
async fn before_means_that_nothing_happened_and_after_that_it_did() {
    let (bus, faults) = bus();
    let mut ear = listen(&*bus, &[Channel::Keys]).await;
    faults.next(Method::Publish, 1, Fault::Before);
    faults.next(Method::Publish, 2, Fault::After);
    for sent in ["before", "after 1", "after 2"] {
        assert!(bus.publish(&[(Channel::Keys, text(sent))]).await.is_err(), "{sent}");
    }
    bus.publish(&[(Channel::Keys, text("whole"))]).await.unwrap();
    for heard in ["after 1", "after 2", "whole"] {
        assert_eq!(hear(&mut *ear).await, BusEvent::Message(Channel::Keys, text(heard)));
    }
    assert_eq!(faults.calls(Method::Publish), 4);
}

#[tokio::test]
async fn a_hanging_call_goes_on_when_released_and_leaves_when_dropped() {
    let (bus, faults) = bus();
    let mut ear = listen(&*bus, &[Channel::Keys]).await;
    faults.next(Method::Publish, 2, Fault::HangBefore);
    faults.next(Method::Publish, 1, Fault::HangAfter);
    assert!(bus.publish(&[(Channel::Keys, text("dropped"))]).now_or_never().is_none());
    assert_eq!(faults.hanging(), 0);
    for sent in ["happens later", "has happened"] {
        let publisher = Arc::clone(&bus);
        let call =
            tokio::spawn(async move { publisher.publish(&[(Channel::Keys, text(sent))]).await });
        wait_for("the hang", PATIENCE, async || faults.hanging() == 1).await;
        let heard = ear.next().now_or_never().flatten();
        assert_eq!(heard.is_some(), sent == "has happened");
        faults.release();
        call.await.unwrap().unwrap();
        if heard.is_none() {
            assert_eq!(hear(&mut *ear).await, BusEvent::Message(Channel::Keys, text(sent)));
        }
    }
}

#[tokio::test]
async fn a_closure_runs_in_the_midst_of_the_call_and_decides() {
    let (bus, faults) = bus();
    let mut ear = listen(&*bus, &[Channel::Keys]).await;
    let inner = Arc::clone(&bus);
    let interloper = Fault::run(move || {
        let inner = Arc::clone(&inner);
        async move {
            inner.publish(&[(Channel::Keys, text("first"))]).await.unwrap();
            Verdict::FailAfter
        }
    });
    faults.next(Method::Publish, 1, interloper);
    assert!(bus.publish(&[(Channel::Keys, text("second"))]).await.is_err());
    for heard in ["first", "second"] {
        assert_eq!(hear(&mut *ear).await, BusEvent::Message(Channel::Keys, text(heard)));
    }
}

#[tokio::test]
async fn a_subscription_can_be_told_to_be_cut_or_to_lag() {
    let (bus, faults) = bus();
    let mut ear = listen(&*bus, &[Channel::Keys]).await;
    faults.next(Method::SubscriptionNext, 1, Fault::Before);
    assert_eq!(hear(&mut *ear).await, BusEvent::Cut);
    faults.next(Method::SubscriptionNext, 1, Fault::After);
    bus.publish(&[(Channel::Keys, text("lost"))]).await.unwrap();
    bus.publish(&[(Channel::Keys, text("kept"))]).await.unwrap();
    assert_eq!(hear(&mut *ear).await, BusEvent::Lagged);
    assert_eq!(hear(&mut *ear).await, BusEvent::Message(Channel::Keys, text("kept")));
}
