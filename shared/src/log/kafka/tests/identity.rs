//! `migrate` and the identity.

use super::*;
use crate::log::{LogError, LogIdentity as _};

fn sentence<T>(result: Result<T, LogError>) -> String {
    match result {
        Err(LogError::Unusable(sentence)) => sentence,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was usable"),
    }
}

#[tokio::test]
async fn migrate_makes_the_log_once_and_then_changes_nothing() {
    let config = config(3);
    let made = migrate(&config).await.unwrap();
    assert_eq!(made.partitions, 3);
    assert_eq!(migrate(&config).await.unwrap(), made);
    let asked_differently = KafkaConfig { partitions: 5, ..config.clone() };
    assert_eq!(migrate(&asked_differently).await.unwrap(), made);
    let log = KafkaLog::open(config, ClientMetrics::unseen()).await.unwrap();
    assert_eq!(log.identity().await.unwrap(), made);
}

#[tokio::test]
async fn without_topics_open_says_to_run_migrate() {
    let config = config(1);
    let sentence = sentence(KafkaLog::open(config.clone(), ClientMetrics::unseen()).await);
    assert!(sentence.contains("run `pulsestream migrate`"), "{sentence}");
    assert!(sentence.contains(&format!("{}metrics.raw", config.namespace)), "{sentence}");
}

#[tokio::test]
async fn a_topic_with_another_partition_count_names_both_numbers() {
    let config = config(3);
    migrate(&config).await.unwrap();
    add_partitions(&config, 5).await;
    for sentence in [
        sentence(KafkaLog::open(config.clone(), ClientMetrics::unseen()).await),
        sentence(migrate(&config).await),
    ] {
        assert!(sentence.contains("has 5 partitions"), "{sentence}");
        assert!(sentence.contains("made with 3"), "{sentence}");
    }
}

#[tokio::test]
async fn renew_replaces_only_the_epoch_it_was_shown() {
    let log = log(2).await;
    let first = log.identity().await.unwrap();
    let second = log.renew(first.epoch).await.unwrap();
    assert_ne!(second.epoch, first.epoch);
    assert_eq!(second.partitions, 2);
    assert_eq!(log.renew(first.epoch).await.unwrap(), second);
    assert_eq!(log.identity().await.unwrap(), second);
}

async fn add_partitions(config: &KafkaConfig, count: usize) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
    use rdkafka::client::DefaultClientContext;
    let admin: AdminClient<DefaultClientContext> =
        super::super::client::settings(config).create().unwrap();
    let topic = format!("{}metrics.raw", config.namespace);
    let more = NewPartitions::new(&topic, count);
    let done = admin.create_partitions([&more], &AdminOptions::new()).await.unwrap();
    assert!(done[0].is_ok(), "{done:?}");
    let readers = super::super::reader::Readers::new(config);
    crate::testing::wait_for("the new partitions to be known", PATIENCE, || async {
        let state = readers.topic(&topic).await.unwrap().unwrap();
        usize::try_from(state.partitions()).unwrap() == count
    })
    .await;
}
