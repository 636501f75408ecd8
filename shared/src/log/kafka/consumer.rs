//! A member of a consumer group: what its owner holds.
//!
//! The member itself is a thread ([`super::member`]) that polls for as long as the owner keeps the
//! handle; the two meet in an [`Inbox`] under a lock that neither holds across a wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use async_trait::async_trait;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use tokio::sync::{Notify, oneshot};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::client::{REQUEST_TIMEOUT, unavailable};
use super::inbox::Inbox;
use super::member;
use super::rebalances::Rebalances;
use super::statistics::Told;
use crate::log::{LogConsumer, LogError, LogEvent, Offset, Partition};

/// What the owner and the thread share.
#[derive(Default)]
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    /// Something came into the inbox.
    arrived: Notify,
}

impl Shared {
    /// The inbox, for a few instructions. No code of ours can panic while holding it half changed.
    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the owner.
    pub(super) fn arrived(&self) {
        self.arrived.notify_one();
    }
}

/// The owner's handle. Dropping it makes the thread send the last commits, leave the group and end;
/// nobody waits for that except [`super::KafkaLog::close`].
struct KafkaConsumer {
    shared: Arc<Shared>,
    thread: Thread,
    consumer: Arc<BaseConsumer<Rebalances>>,
    topic: String,
}

/// Starts a member. It finds the brokers, joins the group and stays in it by itself.
///
/// # Errors
/// [`LogError::Unavailable`] when no thread or no client can be made.
pub(super) async fn join(
    settings: ClientConfig,
    told: Arc<Told>,
    topic: &str,
    token: TaskTrackerToken,
) -> Result<impl LogConsumer + use<>, LogError> {
    let shared = Arc::new(Shared::default());
    let (started, starting) = oneshot::channel();
    let for_thread = (Arc::clone(&shared), topic.to_owned());
    let thread = std::thread::Builder::new()
        .name("kafka-member".to_owned())
        .spawn(move || {
            let (shared, topic) = for_thread;
            member::run(&settings, told, shared, topic, started);
            drop(token);
        })
        .map_err(unavailable)?;
    let consumer = starting.await.map_err(unavailable)?.map_err(unavailable)?;
    let thread = thread.thread().clone();
    Ok(KafkaConsumer { shared, thread, consumer, topic: topic.to_owned() })
}

#[async_trait]
impl LogConsumer for KafkaConsumer {
    async fn next(&mut self) -> Result<LogEvent, LogError> {
        loop {
            {
                let mut inbox = self.shared.inbox();
                let full = !inbox.roomy();
                if let Some(event) = inbox.pop() {
                    let relieved = full && inbox.roomy();
                    drop(inbox);
                    if relieved {
                        self.thread.unpark();
                    }
                    return Ok(event);
                }
                if let Some(cause) = &inbox.failed {
                    return Err(LogError::Unusable(cause.clone()));
                }
            }
            self.shared.arrived.notified().await;
        }
    }

    fn seek(&mut self, partition: Partition, offset: Offset) {
        self.shared.inbox().seek(partition, offset.max(0));
        self.thread.unpark();
    }

    fn pause(&mut self, partitions: &[Partition]) {
        self.shared.inbox().set_paused(partitions, true);
        self.thread.unpark();
    }

    fn resume(&mut self, partitions: &[Partition]) {
        self.shared.inbox().set_paused(partitions, false);
        self.thread.unpark();
    }

    fn commit(&mut self, partition: Partition, next: Offset) {
        self.shared.inbox().commit(partition, next);
    }

    async fn committed(
        &mut self,
        partitions: &[Partition],
    ) -> Result<Vec<Option<Offset>>, LogError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let consumer = Arc::clone(&self.consumer);
        let topic = self.topic.clone();
        let partitions = partitions.to_vec();
        // The question blocks its thread, and the member's own must go on polling.
        tokio::task::spawn_blocking(move || committed(&consumer, &topic, &partitions))
            .await
            .map_err(unavailable)?
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        self.shared.inbox().closed = true;
        self.thread.unpark();
    }
}

fn committed(
    consumer: &BaseConsumer<Rebalances>,
    topic: &str,
    partitions: &[Partition],
) -> Result<Vec<Option<Offset>>, LogError> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for &partition in partitions {
        list.add_partition(topic, partition);
    }
    let list = consumer.committed_offsets(list, REQUEST_TIMEOUT).map_err(unavailable)?;
    let place = |&partition: &Partition| {
        let Some(found) = list.find_partition(topic, partition) else { return Ok(None) };
        found.error().map_err(unavailable)?;
        match found.offset() {
            Place::Offset(next) => Ok(Some(next)),
            _ => Ok(None),
        }
    };
    partitions.iter().map(place).collect()
}
