//! What librdkafka calls a member back for: the group's decisions, log lines, statistics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::client;
use super::consumer::Shared;
use super::member::list;
use super::statistics::Told;
use crate::log::Partition;

/// Receives the group's decisions, on the member's thread, in the middle of a poll.
pub(super) struct Rebalances {
    pub(super) told: Arc<Told>,
    pub(super) shared: Arc<Shared>,
    pub(super) topic: String,
    /// A callback ran since the flag was cleared.
    pub(super) stirred: AtomicBool,
}

impl ClientContext for Rebalances {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.stirred.store(true, Ordering::Release);
        client::log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.stirred.store(true, Ordering::Release);
        client::log_error(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.stirred.store(true, Ordering::Release);
        self.told.tell(&statistics);
    }
}

impl ConsumerContext for Rebalances {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        kind: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        self.stirred.store(true, Ordering::Release);
        let done = if kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assigned(consumer, partitions)
        } else {
            self.revoked(consumer, partitions)
        };
        if let Err(error) = done {
            tracing::warn!(%error, "a rebalance was not carried out");
        }
        self.shared.arrived();
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        self.stirred.store(true, Ordering::Release);
        if let Err(error) = result {
            // The next commit, or the next owner of the partition, makes up for it.
            tracing::debug!(%error, "the group did not take a commit");
        }
    }
}

impl Rebalances {
    fn assigned(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &mut TopicPartitionList,
    ) -> KafkaResult<()> {
        let done = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => {
                partitions.set_all_offsets(Place::Offset(0))?;
                consumer.incremental_assign(partitions).and_then(|()| consumer.pause(partitions))
            }
            _ => consumer.assign(&TopicPartitionList::new()),
        };
        self.shared.inbox().assigned(numbers(partitions));
        done
    }

    fn revoked(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> KafkaResult<()> {
        self.send_commits(consumer);
        self.shared.inbox().revoked(&numbers(partitions));
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
            _ => consumer.unassign(),
        }
    }

    /// Sends the gathered commits, unawaited.
    pub(super) fn send_commits(&self, consumer: &BaseConsumer<Self>) {
        let commits = self.shared.inbox().take_commits();
        if commits.is_empty() {
            return;
        }
        let sent = list(&self.topic, commits.into_iter())
            .and_then(|list| consumer.commit(&list, CommitMode::Async));
        if let Err(error) = sent {
            tracing::debug!(%error, "a commit was not sent");
        }
    }
}

fn numbers(partitions: &TopicPartitionList) -> Vec<Partition> {
    partitions.elements().iter().map(|element| element.partition()).collect()
}
