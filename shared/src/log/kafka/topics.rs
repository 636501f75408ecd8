//! The topics of a pipeline and the identity record.
//!
//! `metrics.meta` has one partition and is compacted. Its records with key `identity` hold
//! `{"epoch":"uuid","partitions":12}`; the last one is in force.

use std::time::Duration;

use bytes::Bytes;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::RDKafkaErrorCode;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::client::{self, Quiet, unavailable};
use super::producer::Producer;
use super::reader::Readers;
use super::{ClientMetrics, KafkaConfig, Names};
use crate::log::{Headers, Identity, LogError, NewRecord, Offset, Partition, ReadLimit};

/// Where the identity is kept.
pub(super) const META_TOPIC: &str = "metrics.meta";

const IDENTITY_KEY: &[u8] = b"identity";
pub(super) const CREATION_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const CREATION_LOOK: Duration = Duration::from_millis(20);

#[derive(Serialize, Deserialize)]
struct IdentityRecord {
    epoch: Uuid,
    partitions: u32,
}

/// Creates what is missing of the topics and the identity; changes nothing that is there. May be run at
/// any time, by any number of processes.
///
/// # Errors
/// [`LogError::Unavailable`] when the brokers do not answer or do not (yet) let the topics be made;
/// [`LogError::Unusable`] when a topic has another partition count than the identity, or, before there
/// is one, than `config` says.
pub async fn migrate(config: &KafkaConfig) -> Result<Identity, LogError> {
    let names = Names::of(config);
    create_topics(config, &names).await?;
    let readers = Readers::new(config);
    wait_for_topics(&readers, &names).await?;
    if let Some(present) = last_identity(&readers, &names.meta).await? {
        check_partitions(&readers, &names, present.partitions).await?;
        return Ok(present);
    }
    check_partitions(&readers, &names, config.partitions).await?;
    let identity = Identity { epoch: Uuid::new_v4(), partitions: config.partitions };
    let threads = TaskTracker::new();
    let producer = Producer::start(config, &ClientMetrics::unseen(), threads.token())?;
    write_identity(&producer, &names.meta, identity).await?;
    last_identity(&readers, &names.meta)
        .await?
        .ok_or_else(|| unavailable("the identity just written cannot be read back"))
}

/// The identity in force, after a look at the topics' partition counts.
pub(super) async fn identity(readers: &Readers, names: &Names) -> Result<Identity, LogError> {
    for topic in [&names.raw, &names.dlq, &names.meta] {
        if readers.topic(topic).await?.is_none() {
            return Err(missing(&format!("topic {topic}")));
        }
    }
    let identity = last_identity(readers, &names.meta)
        .await?
        .ok_or_else(|| missing(&format!("the identity record in topic {}", names.meta)))?;
    check_partitions(readers, names, identity.partitions).await?;
    Ok(identity)
}

/// Writes an identity durably.
pub(super) async fn write_identity(
    producer: &Producer,
    topic: &str,
    identity: Identity,
) -> Result<(), LogError> {
    let Identity { epoch, partitions } = identity;
    let value = serde_json::to_vec(&IdentityRecord { epoch, partitions }).map_err(unavailable)?;
    let record = NewRecord {
        partition: 0,
        key: Some(Bytes::from_static(IDENTITY_KEY)),
        value: value.into(),
        headers: Headers::default(),
        outcomes: Vec::new(),
    };
    for result in producer.append(topic, &[record]).await {
        result.map_err(unavailable)?;
    }
    Ok(())
}

/// The numbers of a topic's partitions.
pub(super) fn partition_numbers(count: u32) -> std::ops::Range<Partition> {
    0..Partition::try_from(count).unwrap_or(Partition::MAX)
}

fn missing(what: &str) -> LogError {
    LogError::Unusable(format!("{what} does not exist: run `pulsestream migrate`"))
}

pub(super) async fn create_topics(config: &KafkaConfig, names: &Names) -> Result<(), LogError> {
    let admin = AdminClient::from_config_and_context(&client::settings(config), Quiet)
        .map_err(unavailable)?;
    let partitions = i32::try_from(config.partitions).unwrap_or(i32::MAX);
    let retention_ms = config.retention.as_millis().to_string();
    let replicas = if config.replication >= 3 { "2" } else { "1" };
    let topic = |name, partitions| {
        NewTopic::new(name, partitions, TopicReplication::Fixed(config.replication))
            .set("min.insync.replicas", replicas)
            .set("unclean.leader.election.enable", "false")
            .set("message.timestamp.type", "LogAppendTime")
    };
    let topics = [
        topic(&names.raw, partitions)
            .set("cleanup.policy", "delete")
            .set("retention.ms", &retention_ms),
        topic(&names.dlq, partitions)
            .set("cleanup.policy", "delete")
            .set("retention.ms", "-1")
            .set("retention.bytes", "-1"),
        topic(&names.meta, 1).set("cleanup.policy", "compact"),
    ];
    let options = AdminOptions::new()
        .request_timeout(Some(client::REQUEST_TIMEOUT))
        .operation_timeout(Some(client::REQUEST_TIMEOUT));
    for result in admin.create_topics(&topics, &options).await.map_err(unavailable)? {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                return Err(unavailable(format!("topic {topic} was not created: {code}")));
            }
        }
    }
    Ok(())
}

/// A created topic is known to every broker only a moment later.
pub(super) async fn wait_for_topics(readers: &Readers, names: &Names) -> Result<(), LogError> {
    let deadline = Instant::now() + CREATION_TIMEOUT;
    for topic in [&names.raw, &names.dlq, &names.meta] {
        while !readers.topic(topic).await?.is_some_and(|state| state.led()) {
            if Instant::now() > deadline {
                return Err(unavailable(format!("topic {topic} was created but is not there")));
            }
            tokio::time::sleep(CREATION_LOOK).await;
        }
    }
    Ok(())
}

async fn check_partitions(readers: &Readers, names: &Names, wanted: u32) -> Result<(), LogError> {
    for topic in [&names.raw, &names.dlq] {
        let found = readers.topic(topic).await?.map_or(0, |state| state.partitions());
        if found != wanted {
            return Err(LogError::Unusable(format!(
                "topic {topic} has {found} partitions where this log was made with {wanted}; \
                 the count must never change, because a device would change its partition"
            )));
        }
    }
    Ok(())
}

async fn last_identity(readers: &Readers, topic: &str) -> Result<Option<Identity>, LogError> {
    let limit = ReadLimit { records: 1_000, bytes: 1 << 20 };
    let end = match readers.bounds(topic, vec![0]).await?.first() {
        Some(bounds) => bounds.next,
        None => 0,
    };
    let mut found = None;
    let mut from: Offset = 0;
    while from < end {
        let records = readers.read(topic, 0, from, limit).await?;
        let Some(last) = records.last() else { break };
        from = last.offset + 1;
        let identities =
            records.iter().filter(|record| record.key.as_deref() == Some(IDENTITY_KEY));
        if let Some(record) = identities.last() {
            let read: IdentityRecord = serde_json::from_slice(&record.value).map_err(|_| {
                LogError::Unusable(format!("the identity record in topic {topic} is damaged"))
            })?;
            found = Some(Identity { epoch: read.epoch, partitions: read.partitions });
        }
    }
    Ok(found)
}
