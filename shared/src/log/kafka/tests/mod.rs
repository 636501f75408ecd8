//! The engine against a real broker. Each test has a namespace, and so topics and groups, of its own.

use std::time::Duration;

use bytes::Bytes;

use super::{ClientMetrics, KafkaConfig, KafkaLog, RebalanceProtocol, migrate};
use crate::log::{
    EventLog as _, Headers, LogConsumer, LogEvent, NewRecord, Offset, Partition, Record, Topic,
};
use crate::testing::services;

mod append;
mod consume;
mod identity;
mod read;
mod static_members;
mod statistics;
mod suite;

const PATIENCE: Duration = Duration::from_secs(20);
const GROUP: &str = "group";

fn config(partitions: u32) -> KafkaConfig {
    KafkaConfig {
        brokers: services::kafka_brokers(),
        namespace: services::namespace(),
        append_timeout: Duration::from_secs(6),
        message_timeout: Duration::from_secs(5),
        linger: Duration::from_millis(1),
        partitions,
        replication: 1,
        retention: Duration::from_secs(7 * 24 * 3600),
        rebalance_protocol: RebalanceProtocol::Eager,
        group_instance_id: String::new(),
        session_timeout: Duration::from_secs(6),
    }
}

/// A new log of so many partitions.
async fn log(partitions: u32) -> KafkaLog {
    made(config(partitions)).await
}

async fn made(config: KafkaConfig) -> KafkaLog {
    migrate(&config).await.unwrap();
    open(&config).await
}

async fn open(config: &KafkaConfig) -> KafkaLog {
    KafkaLog::open(config.clone(), ClientMetrics::unseen()).await.unwrap()
}

/// Makes a test of each rule under both ways of dealing partitions anew.
macro_rules! under_both_protocols {
    ($($rule:ident),* $(,)?) => {
        mod eager {
            $(#[tokio::test]
            async fn $rule() {
                super::$rule(super::RebalanceProtocol::Eager).await;
            })*
        }
        mod cooperative {
            $(#[tokio::test]
            async fn $rule() {
                super::$rule(super::RebalanceProtocol::Cooperative).await;
            })*
        }
    };
}
use under_both_protocols;

fn record(partition: Partition, value: impl Into<String>) -> NewRecord {
    NewRecord {
        partition,
        key: Some(Bytes::from_static(b"key")),
        value: Bytes::from(value.into()),
        headers: Headers::builder().with("client", b"7").build(),
        outcomes: Vec::new(),
    }
}

/// Appends records `0..count` to a partition; their values are their numbers.
async fn fill(log: &KafkaLog, partition: Partition, count: usize) {
    let records = (0..count).map(|n| record(partition, n.to_string())).collect();
    for result in log.append(Topic::Raw, records).await {
        result.unwrap();
    }
}

async fn next(consumer: &mut dyn LogConsumer) -> LogEvent {
    tokio::time::timeout(PATIENCE, consumer.next()).await.expect("an event").unwrap()
}

/// Waits for the first assignment; in order.
async fn assigned(consumer: &mut dyn LogConsumer) -> Vec<Partition> {
    match next(consumer).await {
        LogEvent::Assigned(mut partitions) => {
            partitions.sort_unstable();
            partitions
        }
        other => panic!("{other:?} came before an assignment"),
    }
}

/// Keeps account of a member's partitions; true when the event was about them.
fn follow(owned: &mut Vec<Partition>, event: &LogEvent) -> bool {
    match event {
        LogEvent::Assigned(partitions) => owned.extend(partitions),
        LogEvent::Revoked(gone) => owned.retain(|partition| !gone.contains(partition)),
        LogEvent::Records(..) | LogEvent::OutOfRange(_) => return false,
    }
    true
}

/// Collects records, whatever their partition, until there are `count`.
async fn records(consumer: &mut dyn LogConsumer, count: usize) -> Vec<Record> {
    let mut all = Vec::new();
    while all.len() < count {
        match next(consumer).await {
            LogEvent::Records(partition, records) => {
                assert!(!records.is_empty() && records.iter().all(|r| r.partition == partition));
                all.extend(records);
            }
            other => panic!("{other:?} came between records"),
        }
    }
    all
}

fn offsets(records: &[Record]) -> Vec<Offset> {
    records.iter().map(|record| record.offset).collect()
}

/// Whether nothing at all comes for a while.
async fn silent(consumer: &mut dyn LogConsumer, time: Duration) -> bool {
    tokio::time::timeout(time, consumer.next()).await.is_err()
}
