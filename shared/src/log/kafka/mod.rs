//! The log on brokers that speak the Kafka protocol.
//!
//! | file | what |
//! |---|---|
//! | `client` | settings, log lines and errors every client shares |
//! | `topics` | `migrate`, and the identity record in `metrics.meta` |
//! | `producer`, `ballots` | append: one producer, one completion a batch |
//! | `consumer`, `member`, `inbox` | a member of a group: its owner's handle, its thread, what they share |
//! | `rebalances` | what a member is called back for |
//! | `reader` | reads and questions outside any group |
//! | `record` | librdkafka's messages become records |
//! | `statistics` | what the clients tell of themselves, as metrics |
//! | `damage` | for tests: what happens to topics behind the pipeline's back |
//!
//! librdkafka runs threads of its own and is polled from threads of ours; nothing here blocks the
//! runtime. An absent broker is waited for everywhere except in a call that must answer, which then
//! answers [`LogError::Unavailable`] within a few seconds.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{
    AppendResult, Bounds, EventLog, Identity, LogConsumer, LogError, LogIdentity, NewRecord,
    Offset, Partition, ReadLimit, Record, Topic,
};

mod ballots;
mod client;
mod consumer;
#[cfg(feature = "testing")]
pub mod damage;
mod inbox;
mod member;
mod producer;
mod reader;
mod rebalances;
mod record;
mod statistics;
#[cfg(test)]
mod tests;
mod topics;

pub use statistics::ClientMetrics;
use statistics::{Client, Told};
pub use topics::migrate;

/// How to reach the brokers, and how to treat them. Plain values; the caller read and checked them.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// Comma list of `host:port`; one that answers is enough.
    pub brokers: String,
    /// Put before every topic and group name, so that pipelines can share brokers. Empty in production.
    pub namespace: String,
    /// How long [`EventLog::append`] waits before what is not settled is unknown. More than
    /// `message_timeout`: the producer's own verdict is better than none.
    pub append_timeout: Duration,
    /// How long the producer goes on trying to deliver a record; rounded to milliseconds.
    pub message_timeout: Duration,
    /// How long a record waits for company of its partition, rounded to microseconds.
    pub linger: Duration,
    /// Partitions of a topic that [`migrate`] makes. Of no effect on one that is there.
    pub partitions: u32,
    /// Replicas of a partition that [`migrate`] makes; 3 in production.
    pub replication: i32,
    /// How long [`migrate`] lets [`Topic::Raw`] keep a record.
    pub retention: Duration,
    /// How a group's partitions are dealt anew. One for all members of a group.
    pub rebalance_protocol: RebalanceProtocol,
    /// The name that a process keeps over its restarts, in every group it is a member of; empty: none.
    pub group_instance_id: String,
    /// How long a member may be silent before its partitions go to others.
    pub session_timeout: Duration,
}

/// Who stops when the members of a group change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RebalanceProtocol {
    /// Everybody gives everything back, and is dealt a contiguous range of partitions.
    Eager,
    /// Who has too many gives the surplus back, and keeps the rest without a pause.
    Cooperative,
}

/// The names of a pipeline's topics, with its namespace.
#[derive(Debug, Clone)]
struct Names {
    raw: String,
    dlq: String,
    meta: String,
}

impl Names {
    fn of(config: &KafkaConfig) -> Self {
        let name = |topic: &str| format!("{}{topic}", config.namespace);
        Self {
            raw: name(Topic::Raw.name()),
            dlq: name(Topic::Dlq.name()),
            meta: name(topics::META_TOPIC),
        }
    }

    fn get(&self, topic: Topic) -> &str {
        match topic {
            Topic::Raw => &self.raw,
            Topic::Dlq => &self.dlq,
        }
    }
}

/// The Kafka engine of [`EventLog`] and [`LogIdentity`].
///
/// Dropping it lets what was appended go out and its threads end by themselves; [`KafkaLog::close`]
/// waits for that.
pub struct KafkaLog {
    config: KafkaConfig,
    names: Names,
    /// Of [`Topic::Raw`] and [`Topic::Dlq`], from the identity; a topic never changes its count.
    partitions: u32,
    producer: producer::Producer,
    metrics: ClientMetrics,
    readers: Arc<reader::Readers>,
    /// Every thread that must be let finish before the process ends.
    threads: TaskTracker,
}

impl KafkaLog {
    /// Connects and checks that the log is the one `migrate` made.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when no broker answers within a few seconds: try again.
    /// [`LogError::Unusable`] when topics or identity are missing, or the partition count differs.
    pub async fn open(config: KafkaConfig, metrics: ClientMetrics) -> Result<Self, LogError> {
        let names = Names::of(&config);
        let readers = reader::Readers::new(&config);
        let identity = topics::identity(&readers, &names).await?;
        let threads = TaskTracker::new();
        let producer = producer::Producer::start(&config, &metrics, threads.token())?;
        let partitions = identity.partitions;
        Ok(Self { config, names, partitions, producer, metrics, readers, threads })
    }

    /// Takes no more appends, lets the accepted ones go out and dropped consumers leave their groups.
    /// Returns whether all of that was done `within` the time.
    pub async fn close(&self, within: Duration) -> bool {
        self.producer.stop();
        self.threads.close();
        tokio::time::timeout(within, self.threads.wait()).await.is_ok()
    }

    fn all_partitions(&self) -> Vec<Partition> {
        topics::partition_numbers(self.partitions).collect()
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    async fn append(&self, topic: Topic, records: Vec<NewRecord>) -> Vec<AppendResult> {
        self.producer.append(self.names.get(topic), &records).await
    }

    /// Each has its own leader.
    fn partitions_fail_alone(&self) -> bool {
        true
    }

    async fn consume(&self, group: &str) -> Result<Box<dyn LogConsumer>, LogError> {
        let told = Told::new(Client::of_group(group), &self.metrics);
        let settings = member::settings(&self.config, group);
        let member = consumer::join(settings, told, &self.names.raw, self.threads.token()).await?;
        Ok(Box::new(member))
    }

    async fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Record>, LogError> {
        self.readers.read(self.names.get(topic), partition, from, limit).await
    }

    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, LogError> {
        self.readers.bounds(self.names.get(topic), self.all_partitions()).await
    }

    async fn locate(&self, logged_at_ms: i64) -> Result<Vec<Offset>, LogError> {
        self.readers.locate(&self.names.raw, self.all_partitions(), logged_at_ms).await
    }
}

#[async_trait]
impl LogIdentity for KafkaLog {
    async fn identity(&self) -> Result<Identity, LogError> {
        topics::identity(&self.readers, &self.names).await
    }

    async fn renew(&self, seen: Uuid) -> Result<Identity, LogError> {
        let present = self.identity().await?;
        if present.epoch != seen {
            return Ok(present);
        }
        let renewed = Identity { epoch: Uuid::new_v4(), ..present };
        topics::write_identity(&self.producer, &self.names.meta, renewed).await?;
        self.identity().await
    }
}
