//! The conformance suite of the log, on a real broker.

use std::sync::Arc;

use super::{ClientMetrics, KafkaConfig, KafkaLog, PATIENCE, config, migrate};
use crate::testing::log::{Fixture, PARTITIONS};

crate::log_conformance!(fixture);

async fn fixture() -> Fixture {
    let config = config(PARTITIONS);
    migrate(&config).await.unwrap();
    let log = KafkaLog::open(config.clone(), ClientMetrics::unseen()).await.unwrap();
    fixture_of(config, log)
}

fn fixture_of(config: KafkaConfig, log: KafkaLog) -> Fixture {
    let log = Arc::new(log);
    let closing = log.clone();
    Fixture {
        log: log.clone(),
        identity: log,
        reopen: Box::new(|| {
            Box::pin(async move {
                assert!(closing.close(PATIENCE).await, "members left the group");
                let log = KafkaLog::open(config.clone(), ClientMetrics::unseen()).await.unwrap();
                fixture_of(config, log)
            })
        }),
    }
}
