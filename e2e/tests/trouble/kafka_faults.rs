//! Kafka behind a network that refuses, resets, half-closes, delays, trickles and swallows: who posts is
//! answered in time, and what was acknowledged is stored, once.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use pulsestream_e2e::client::{Answer, Client, event};
use pulsestream_e2e::harness::{Engines, start_gateway};
use pulsestream_shared::event::EventId;
use pulsestream_shared::testing::proxy::{TcpProxy, Traffic};
use pulsestream_shared::testing::wait_for;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::outage::{accept_at_last, refuses_fast};
use crate::own_kafka::OwnKafka;
use crate::support::{Site, counter, devices};

/// Every request is answered after 8 s at the latest; the rest is for a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long events are posted into each trouble, and how often it strikes in that time.
const TROUBLE: Duration = Duration::from_secs(4);
const STRIKE_EVERY: Duration = Duration::from_millis(400);

/// What may be answered while it lasts.
#[derive(Debug, PartialEq, Eq)]
enum Promise {
    /// 202, late as it may be.
    Accepted,
    /// 202 or 503.
    Either,
    /// 503; at once when the gateway has noticed.
    Refused,
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_network_to_kafka_does_answers_are_in_time_and_nothing_acknowledged_is_lost() {
    let kafka = OwnKafka::start().await;
    let proxy = TcpProxy::start(kafka.brokers.clone()).await.expect("a proxy");
    kafka.node(1).be_called(proxy.addr()).await;
    let brokers = proxy.addr().to_string();
    let site = Site::with(Engines::Servers, &[("KAFKA_BROKERS", &brokers)]).await;
    let gateway = start_gateway(&site.home).await;
    let consumer = site.consumer().await;
    let devices = devices(4);
    let mut acknowledged = site.post(&gateway, &devices, 1).await;

    let client = Client::new(&gateway.url, &site.key);
    for (trouble, promise) in [
        (Traffic::Delay(Duration::from_millis(150)), Promise::Accepted),
        (Traffic::Trickle(20_000), Promise::Either),
        (Traffic::Trickle(100), Promise::Either),
        (Traffic::Pause, Promise::Refused),
    ] {
        proxy.set(trouble);
        acknowledged.extend(posts_into(&format!("{trouble:?}"), &client, &devices, promise).await);
        acknowledged.extend(recovers(&proxy, &client, &devices).await);
    }
    proxy.kill();
    acknowledged.extend(posts_into("Refuse", &client, &devices, Promise::Refused).await);
    acknowledged.extend(recovers(&proxy, &client, &devices).await);
    for (name, strike) in [
        ("Cut", TcpProxy::cut as fn(&TcpProxy)),
        ("HalfClose", TcpProxy::half_close as fn(&TcpProxy)),
    ] {
        let striking = async {
            loop {
                strike(&proxy);
                sleep(STRIKE_EVERY).await;
            }
        };
        tokio::select! {
            posted = posts_into(name, &client, &devices, Promise::Either) => {
                acknowledged.extend(posted);
            }
            () = striking => {}
        }
        acknowledged.extend(recovers(&proxy, &client, &devices).await);
    }

    wait_for("every acknowledged event to be stored", DEADLINE * 3, async || {
        let stored = site.stored_ids().await;
        acknowledged.iter().all(|id| stored.contains(id))
    })
    .await;
    let mut stored = site.stored_ids().await;
    let rows = stored.len();
    stored.dedup();
    assert_eq!(stored.len(), rows, "an event is stored twice");
    assert_eq!(counter(&consumer.registry, "dead_letters_total", None), 0);
    consumer.stop().await;
    gateway.stop().await;
    site.remove().await;
}

/// Posts for a while, one event at a time of each device; the ids of what was acknowledged.
async fn posts_into(
    trouble: &str,
    client: &Client,
    devices: &[Uuid],
    promise: Promise,
) -> Vec<EventId> {
    let end = Instant::now() + TROUBLE;
    let posting = devices.iter().map(|device| async move {
        let mut posted = Vec::new();
        while Instant::now() < end {
            let (id, begun) = (Uuid::new_v4(), Instant::now());
            let answer = client.post(id, &event(*device, 1.0)).await.expect("an answer");
            posted.push((EventId(id), answer, begun.elapsed()));
        }
        posted
    });
    let posted: Vec<_> = join_all(posting).await.into_iter().flatten().collect();
    tell(trouble, &posted);
    for (_, answer, took) in &posted {
        assert!(*took < DEADLINE, "{trouble}: {took:?}");
        let refused = answer.status == 503 && !answer.header("retry-after").is_empty();
        match promise {
            Promise::Accepted => assert_eq!(answer.status, 202, "{trouble}: {answer:?}"),
            Promise::Either => assert!(answer.status == 202 || refused, "{trouble}: {answer:?}"),
            Promise::Refused => assert!(refused, "{trouble}: {answer:?}"),
        }
    }
    if promise == Promise::Refused {
        refuses_fast(client, devices[0]).await;
    }
    let accepted = posted.into_iter().filter(|(_, answer, _)| answer.status == 202);
    accepted.map(|(id, ..)| id).collect()
}

fn tell(trouble: &str, posted: &[(EventId, Answer, Duration)]) {
    let mut by_status = BTreeMap::<u16, Vec<Duration>>::new();
    for (_, answer, took) in posted {
        by_status.entry(answer.status).or_default().push(*took);
    }
    for (status, mut took) in by_status {
        took.sort_unstable();
        let (count, median, most) = (took.len(), took[took.len() / 2], took[took.len() - 1]);
        eprintln!("{trouble}: {count} answers {status}, median {median:?}, longest {most:?}");
    }
}

/// The network is well again: each device is served soon. Returns what was acknowledged.
async fn recovers(proxy: &TcpProxy, client: &Client, devices: &[Uuid]) -> Vec<EventId> {
    proxy.restore();
    let begun = Instant::now();
    let again = join_all(devices.iter().map(|device| accept_at_last(client, *device))).await;
    eprintln!("well again: every device was served after {:?}", begun.elapsed());
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
    again
}
