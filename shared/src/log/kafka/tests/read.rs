//! Reads and questions outside any group.

use super::*;
use crate::log::{Bounds, ReadLimit};

fn limit(records: usize) -> ReadLimit {
    ReadLimit { records, bytes: 16 << 20 }
}

#[tokio::test]
async fn reads_go_on_where_they_ended_and_end_empty_without_waiting() {
    let log = log(1).await;
    fill(&log, 0, 250).await;
    let (mut from, mut read) = (0, Vec::new());
    while from < 250 {
        let records = log.read(Topic::Raw, 0, from, limit(60)).await.unwrap();
        assert!((1..=60).contains(&records.len()));
        from = records.last().unwrap().offset + 1;
        read.extend(offsets(&records));
    }
    assert_eq!(read, (0..250).collect::<Vec<_>>());
    let started = std::time::Instant::now();
    for beyond in [250, 251, 1_000_000] {
        assert!(log.read(Topic::Raw, 0, beyond, limit(10)).await.unwrap().is_empty());
    }
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    // What is appended after an empty read is found by the next.
    fill(&log, 0, 1).await;
    assert_eq!(offsets(&log.read(Topic::Raw, 0, 250, limit(10)).await.unwrap()), [250]);
}

#[tokio::test]
async fn a_read_stops_after_the_record_that_passes_its_bytes() {
    let log = log(1).await;
    let batch = (0..10).map(|_| record(0, "x".repeat(100))).collect();
    log.append(Topic::Raw, batch).await;
    let limit = ReadLimit { records: 10, bytes: 250 };
    assert_eq!(offsets(&log.read(Topic::Raw, 0, 2, limit).await.unwrap()), [2, 3, 4]);
}

#[tokio::test]
async fn more_reads_at_once_than_readers_all_get_their_own_partition() {
    let log = std::sync::Arc::new(log(12).await);
    let batch = (0..1_200).map(|n| record(n % 12, n.to_string())).collect();
    log.append(Topic::Raw, batch).await;
    let mut reads = tokio::task::JoinSet::new();
    for partition in 0..12 {
        let log = std::sync::Arc::clone(&log);
        reads.spawn(async move {
            let mut from = 0;
            while from < 100 {
                for record in log.read(Topic::Raw, partition, from, limit(30)).await.unwrap() {
                    assert_eq!((record.partition, record.offset), (partition, from));
                    from += 1;
                }
            }
        });
    }
    while let Some(done) = reads.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn bounds_hold_every_confirmed_record_and_a_read_below_the_first_starts_at_the_first() {
    let log = log(2).await;
    assert_eq!(log.bounds(Topic::Raw).await.unwrap(), [Bounds { first: 0, next: 0 }; 2]);
    fill(&log, 1, 20).await;
    let bounds = log.bounds(Topic::Raw).await.unwrap();
    assert_eq!(bounds, [Bounds { first: 0, next: 0 }, Bounds { first: 0, next: 20 }]);
    delete_before(&log, 1, 5).await;
    assert_eq!(log.bounds(Topic::Raw).await.unwrap()[1], Bounds { first: 5, next: 20 });
    assert_eq!(offsets(&log.read(Topic::Raw, 1, 0, limit(3)).await.unwrap()), [5, 6, 7]);
    assert_eq!(log.bounds(Topic::Dlq).await.unwrap(), [Bounds { first: 0, next: 0 }; 2]);
}

#[tokio::test]
async fn locate_finds_the_first_record_of_a_time_and_next_where_there_is_none() {
    let log = log(2).await;
    fill(&log, 0, 3).await;
    let first = log.read(Topic::Raw, 0, 0, limit(3)).await.unwrap()[2].logged_at_ms;
    // The log's clock moves on before the next record.
    let later = first + 20;
    while crate::clock::unix_ms() < later {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fill(&log, 0, 2).await;
    assert_eq!(log.locate(later).await.unwrap(), [3, 0]);
    assert_eq!(log.locate(0).await.unwrap(), [0, 0]);
    assert_eq!(log.locate(later + 3_600_000).await.unwrap(), [5, 0]);
}

/// Cuts a partition's beginning off, as retention does.
pub(super) async fn delete_before(log: &KafkaLog, partition: Partition, first: Offset) {
    use rdkafka::admin::{AdminClient, AdminOptions};
    use rdkafka::client::DefaultClientContext;
    let admin: AdminClient<DefaultClientContext> =
        super::super::client::settings(&log.config).create().unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    let place = rdkafka::Offset::Offset(first);
    list.add_partition_offset(&log.names.raw, partition, place).unwrap();
    let done = admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    done.elements()[0].error().unwrap();
}
