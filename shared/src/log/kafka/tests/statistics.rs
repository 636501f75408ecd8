//! What a real librdkafka tells of itself.

use prometheus::Registry;

use super::*;
use crate::metrics::Metrics;
use crate::testing::wait_for;

#[tokio::test]
async fn producer_and_members_tell_of_their_broker() {
    let registry = Registry::new();
    let config = config(2);
    migrate(&config).await.unwrap();
    let log = KafkaLog::open(config, ClientMetrics::new(&Metrics(&registry))).await.unwrap();
    let mut consumer = log.consume(crate::log::STORE_GROUP).await.unwrap();
    let partitions = assigned(consumer.as_mut()).await;
    partitions.into_iter().for_each(|partition| consumer.seek(partition, 0));
    let sent: Vec<_> = (0..2).map(|partition| record(partition, "value")).collect();
    let appended = log.append(Topic::Raw, sent).await;
    assert!(appended.iter().all(Result::is_ok), "{appended:?}");
    // Being told is a callback in the middle of a poll; records behind it are not held up.
    assert_eq!(records(consumer.as_mut(), 2).await.len(), 2);
    wait_for("both clients to tell of the broker", PATIENCE, async || {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let told = |metric: &str, client: &str| {
            let mut lines = text.lines().filter(|line| line.starts_with(metric));
            lines.any(|line| line.contains(client) && !line.ends_with(" 0"))
        };
        let both = |metric| told(metric, "\"producer\"") && told(metric, "\"store\"");
        both("pulsestream_kafka_broker_up{")
            && both("pulsestream_kafka_broker_rtt_seconds{")
            && told("pulsestream_kafka_send_wait_seconds{", "\"producer\"")
            && told("pulsestream_kafka_rebalances_total{", "\"store\"")
    })
    .await;
}
