//! Append, and where keys go.

use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;
use crate::log::{AppendError, LogError, ReadLimit, partition_of};

const ALL: ReadLimit = ReadLimit { records: 10_000, bytes: 16 << 20 };

#[tokio::test]
async fn appended_records_come_back_whole_and_in_order() {
    let log = log(3).await;
    let mut headers = Headers::builder().with("client", b"7").with("empty", b"");
    headers.push("null", None);
    let headers = headers.build();
    let mut sent = vec![record(1, "a"), record(2, "b"), record(1, "c"), record(1, "")];
    sent[0].headers = headers.clone();
    sent[2].key = None;
    sent[2].headers = Headers::default();
    let results = log.append(Topic::Raw, sent).await;
    let offsets: Vec<_> = results.into_iter().map(|result| result.unwrap()).collect();
    assert_eq!(offsets, [0, 0, 1, 2]);

    let read = log.read(Topic::Raw, 1, 0, ALL).await.unwrap();
    assert_eq!(read.len(), 3);
    assert_eq!(read[0].value, "a");
    assert_eq!(read[0].key.as_deref(), Some(&b"key"[..]));
    assert_eq!(read[0].headers, headers);
    assert!(read[0].logged_at_ms > 1_600_000_000_000);
    assert_eq!((read[1].value.as_ref(), &read[1].key), (&b"c"[..], &None));
    assert_eq!(read[1].headers, Headers::default());
    assert_eq!((read[2].value.as_ref(), read[2].offset), (&b""[..], 2));
    assert_eq!(log.read(Topic::Raw, 2, 0, ALL).await.unwrap()[0].value, "b");
}

#[tokio::test]
async fn a_large_batch_keeps_its_order_in_every_partition() {
    let log = log(4).await;
    let batch = (0..4_000).map(|n| record(n % 4, n.to_string())).collect();
    let results = log.append(Topic::Raw, batch).await;
    for (n, result) in results.into_iter().enumerate() {
        assert_eq!(result.unwrap(), i64::try_from(n / 4).unwrap());
    }
    for partition in 0..4 {
        let mut from = 0;
        while from < 1_000 {
            for record in log.read(Topic::Raw, partition, from, ALL).await.unwrap() {
                assert_eq!(record.offset, from);
                assert_eq!(record.value, (from * 4 + i64::from(partition)).to_string());
                from += 1;
            }
        }
    }
}

#[tokio::test]
async fn a_record_no_broker_takes_is_refused_and_the_others_are_not() {
    let log = log(1).await;
    let batch = vec![record(0, "a"), record(0, "x".repeat(3_000_000)), record(0, "b")];
    let results = log.append(Topic::Raw, batch).await;
    assert!(matches!(results[..], [Ok(0), Err(AppendError::Refused(_)), Ok(1)]), "{results:?}");
    let results = log.append(Topic::Raw, vec![record(9, "no such partition")]).await;
    assert!(matches!(results[..], [Err(AppendError::Refused(_))]), "{results:?}");
}

#[tokio::test]
async fn without_a_broker_append_answers_within_its_deadline_and_open_fails_quickly() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config(1);
    config.brokers = free.local_addr().unwrap().to_string();
    drop(free);
    config.message_timeout = Duration::from_millis(300);
    config.append_timeout = Duration::from_millis(600);

    let started = Instant::now();
    let opened = KafkaLog::open(config.clone(), ClientMetrics::unseen()).await;
    assert!(matches!(opened, Err(LogError::Unavailable(_))));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());

    let threads = tokio_util::task::TaskTracker::new();
    let producer =
        super::super::producer::Producer::start(&config, &ClientMetrics::unseen(), threads.token())
            .unwrap();
    let started = Instant::now();
    let results = producer.append("metrics.raw", &[record(0, "a"), record(0, "b")]).await;
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    for result in results {
        assert!(matches!(result, Err(AppendError::Unknown(_) | AppendError::Unavailable(_))));
    }
}

#[tokio::test]
async fn close_waits_for_what_was_appended_and_takes_no_more() {
    let log = log(1).await;
    fill(&log, 0, 10).await;
    assert!(log.close(Duration::from_secs(5)).await);
    let results = log.append(Topic::Raw, vec![record(0, "late")]).await;
    assert!(matches!(results[..], [Err(AppendError::Unavailable(_))]));
}

#[tokio::test]
async fn another_kafka_client_puts_a_key_where_we_do() {
    let log = log(12).await;
    let keys: Vec<_> = (0..200).map(|_| uuid::Uuid::new_v4().to_string()).collect();
    let lines: String = keys.iter().map(|key| format!("{key}\tvalue\n")).collect();
    let topic = log.names.raw.clone();
    let brokers = log.config.brokers.clone();
    let sent = tokio::task::spawn_blocking(move || kcat(&brokers, &topic, &lines)).await.unwrap();
    assert!(sent, "kcat failed");
    let mut found = 0;
    for partition in 0..12 {
        for record in log.read(Topic::Raw, partition, 0, ALL).await.unwrap() {
            assert_eq!(partition_of(record.key.as_deref().unwrap(), 12), partition);
            found += 1;
        }
    }
    assert_eq!(found, 200);
}

#[tokio::test]
async fn a_header_whose_name_is_not_text_is_left_out_and_nothing_ends() {
    let log = log(1).await;
    let topic = log.names.raw.clone();
    let brokers = log.config.brokers.clone();
    let script = format!(
        "printf 'k\\tv\\n' | kcat -P -b {brokers} -t {topic} -p 0 -K '\\t' \
         -H good=1 -H \"$(printf '\\377bad')=2\" -H last=3"
    );
    let status = tokio::task::spawn_blocking(move || {
        Command::new("bash").args(["-c", &script]).status().unwrap()
    });
    assert!(status.await.unwrap().success());
    let read = log.read(Topic::Raw, 0, 0, ALL).await.unwrap();
    let expected = Headers::builder().with("good", b"1").with("last", b"3").build();
    assert_eq!(read[0].headers, expected);
}

/// librdkafka's built-in broker, because a real one cannot be told to break the idempotence protocol.
#[tokio::test]
async fn a_producer_declared_dead_is_replaced_and_its_records_are_not_called_refused() {
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    let broker = MockCluster::new(1).unwrap();
    broker.create_topic("metrics.raw", 1, 1).unwrap();
    let forbidden = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;
    broker.request_errors(RDKafkaApiKey::InitProducerId, &[forbidden]);
    let config = KafkaConfig {
        brokers: broker.bootstrap_servers(),
        message_timeout: Duration::from_secs(5),
        ..config(1)
    };
    let threads = tokio_util::task::TaskTracker::new();
    let producer =
        super::super::producer::Producer::start(&config, &ClientMetrics::unseen(), threads.token())
            .unwrap();
    let mut failed = 0;
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < PATIENCE);
        match &producer.append("metrics.raw", &[record(0, "a")]).await[..] {
            [Ok(_)] => break,
            [Err(AppendError::Unknown(_) | AppendError::Unavailable(_))] => failed += 1,
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(failed > 0, "the fault never came up");
}

/// Produces `key TAB value` lines; whether that worked.
fn kcat(brokers: &str, topic: &str, lines: &str) -> bool {
    let partitioner = "topic.partitioner=murmur2_random";
    let mut child = Command::new("kcat")
        .args(["-P", "-b", brokers, "-t", topic, "-K", "\t", "-X", partitioner])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), lines.as_bytes()).unwrap();
    child.wait().unwrap().success()
}
