//! What happens to topics behind the pipeline's back, done on purpose: for tests alone (feature
//! `testing`).

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use tokio::time::Instant;

use super::client::{self, Quiet, unavailable};
use super::reader::Readers;
use super::{KafkaConfig, Names, topics};
use crate::log::{LogError, Offset, Partition};

/// A broker that shares two cores with a whole test run takes its time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Deletes the records of [`crate::log::Topic::Raw`] below an offset, as retention does.
///
/// # Errors
/// [`LogError::Unavailable`], as the brokers say.
pub async fn delete_records(
    config: &KafkaConfig,
    below: &[(Partition, Offset)],
) -> Result<(), LogError> {
    let names = Names::of(config);
    let mut list = TopicPartitionList::new();
    for &(partition, offset) in below {
        list.add_partition_offset(&names.raw, partition, Place::Offset(offset))
            .map_err(unavailable)?;
    }
    let deleted = admin(config)?.delete_records(&list, &options()).await.map_err(unavailable)?;
    for element in deleted.elements() {
        element.error().map_err(unavailable)?;
    }
    Ok(())
}

/// Deletes [`crate::log::Topic::Raw`] with all it holds and makes it again, empty, with as many
/// partitions as `config` says; the identity in `metrics.meta` stays.
///
/// # Errors
/// [`LogError::Unavailable`], as the brokers say.
pub async fn recreate_raw(config: &KafkaConfig) -> Result<(), LogError> {
    delete_raw(config).await?;
    create_raw(config).await
}

/// The first half of [`recreate_raw`].
///
/// # Errors
/// [`LogError::Unavailable`], as the brokers say.
pub async fn delete_raw(config: &KafkaConfig) -> Result<(), LogError> {
    let names = Names::of(config);
    for result in
        admin(config)?.delete_topics(&[&names.raw], &options()).await.map_err(unavailable)?
    {
        result.map_err(|(topic, code)| unavailable(format!("topic {topic}: {code}")))?;
    }
    let readers = Readers::new(config);
    let deadline = Instant::now() + topics::CREATION_TIMEOUT;
    while readers.topic(&names.raw).await?.is_some() {
        if Instant::now() > deadline {
            return Err(unavailable(format!("topic {} is still there", names.raw)));
        }
        tokio::time::sleep(topics::CREATION_LOOK).await;
    }
    Ok(())
}

/// The second half of [`recreate_raw`].
///
/// # Errors
/// [`LogError::Unavailable`], as the brokers say.
pub async fn create_raw(config: &KafkaConfig) -> Result<(), LogError> {
    let names = Names::of(config);
    topics::create_topics(config, &names).await?;
    topics::wait_for_topics(&Readers::new(config), &names).await
}

/// Gives [`crate::log::Topic::Raw`] more partitions, as an operator who means well does.
///
/// # Errors
/// [`LogError::Unavailable`], as the brokers say.
pub async fn add_partitions(config: &KafkaConfig, count: usize) -> Result<(), LogError> {
    let names = Names::of(config);
    let more = NewPartitions::new(&names.raw, count);
    for result in
        admin(config)?.create_partitions([&more], &options()).await.map_err(unavailable)?
    {
        result.map_err(|(topic, code): (String, RDKafkaErrorCode)| {
            unavailable(format!("topic {topic}: {code}"))
        })?;
    }
    Ok(())
}

/// The broker that leads each partition of [`crate::log::Topic::Raw`]: whom to strike.
///
/// # Errors
/// [`LogError::Unavailable`], as the brokers say.
pub async fn leaders(config: &KafkaConfig) -> Result<Vec<i32>, LogError> {
    let names = Names::of(config);
    let topic = Readers::new(config).topic(&names.raw).await?;
    topic.map(|topic| topic.leaders).ok_or_else(|| unavailable("there is no such topic"))
}

fn admin(config: &KafkaConfig) -> Result<AdminClient<Quiet>, LogError> {
    AdminClient::from_config_and_context(&client::settings(config), Quiet).map_err(unavailable)
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}
