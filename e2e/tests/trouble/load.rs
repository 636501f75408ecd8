//! Devices that go on sending whatever happens, each one event after another, and what they were told.

use std::time::Duration;

use pulsestream_e2e::client::{Client, PATIENCE, event};
use pulsestream_shared::event::EventId;
use pulsestream_shared::log::partition_of;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Between a device's events, and before it sends one again.
const PAUSE: Duration = Duration::from_millis(20);
const AGAIN: Duration = Duration::from_millis(250);

/// One answer to one device.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) id: EventId,
    pub(crate) partition: usize,
    /// When it was asked for.
    pub(crate) at: Instant,
    pub(crate) took: Duration,
    pub(crate) status: u16,
    /// Of a problem; else empty.
    pub(crate) code: String,
}

/// Devices at work.
pub(crate) struct Load {
    stop: CancellationToken,
    devices: JoinSet<Vec<Told>>,
}

impl Load {
    /// So many devices on each partition.
    pub(crate) fn start(client: &Client, partitions: u32, devices: usize) -> Self {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for partition in 0..partitions {
            for _ in 0..devices {
                tasks.spawn(send(
                    client.clone(),
                    device_of(partition, partitions),
                    partition,
                    stop.clone(),
                ));
            }
        }
        Self { stop, devices: tasks }
    }

    /// Lets every device send its last event until it is accepted; every answer there was, in the order
    /// they were asked for.
    pub(crate) async fn stop(mut self) -> Vec<Told> {
        self.stop.cancel();
        let mut all = Vec::new();
        while let Some(told) = self.devices.join_next().await {
            all.extend(told.expect("a device that gives up"));
        }
        all.sort_by_key(|told| told.at);
        all
    }
}

/// A device whose events go to that partition.
pub(crate) fn device_of(partition: u32, partitions: u32) -> Uuid {
    let here = |device: &Uuid| {
        u32::try_from(partition_of(device.to_string().as_bytes(), partitions)) == Ok(partition)
    };
    std::iter::repeat_with(Uuid::new_v4).find(here).expect("there is no end of them")
}

/// Sends events, each again and again until it is accepted.
async fn send(client: Client, device: Uuid, partition: u32, stop: CancellationToken) -> Vec<Told> {
    let mut all = Vec::new();
    let partition = usize::try_from(partition).expect("a small number");
    while !stop.is_cancelled() {
        let (id, body) = (Uuid::new_v4(), event(device, 1.0));
        let first = Instant::now();
        loop {
            let at = Instant::now();
            let answer = client.post(id, &body).await.expect("an answer");
            let code = answer.body["code"].as_str().unwrap_or_default().to_owned();
            let (took, status) = (at.elapsed(), answer.status);
            all.push(Told { id: EventId(id), partition, at, took, status, code });
            if status == 202 {
                break;
            }
            assert!(matches!(status, 503 | 409), "{answer:?}");
            assert!(first.elapsed() < 3 * PATIENCE, "never accepted: {answer:?}");
            tokio::time::sleep(AGAIN).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
    all
}

/// Of answers: how many, how many of each kind, and how long they took.
pub(crate) fn summary<'a>(told: impl Iterator<Item = &'a Told>) -> String {
    let (mut took, mut kinds) = (Vec::new(), std::collections::BTreeMap::<_, usize>::new());
    for told in told {
        took.push(told.took);
        *kinds.entry((told.status, told.code.as_str())).or_default() += 1;
    }
    took.sort_unstable();
    let at = |share: usize| took.get(took.len() * share / 1_000).or(took.last()).copied();
    let [half, p99, last] = [500, 990, 1_000].map(at).map(Option::unwrap_or_default);
    format!("{kinds:?}; p50 {half:.1?}, p99 {p99:.1?}, longest {last:.1?}")
}
