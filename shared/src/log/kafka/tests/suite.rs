//! The conformance suite of the log, on a real broker.

use std::sync::Arc;

use super::{KafkaConfig, KafkaLog, PATIENCE, RebalanceProtocol, config, made, open};
use crate::testing::log::{Fixture, PARTITIONS};

crate::log_conformance!(fixture);

mod cooperative {
    crate::group_conformance!(super::cooperative_fixture);
}

async fn fixture() -> Fixture {
    fixture_under(RebalanceProtocol::Eager).await
}

async fn cooperative_fixture() -> Fixture {
    fixture_under(RebalanceProtocol::Cooperative).await
}

async fn fixture_under(rebalance_protocol: RebalanceProtocol) -> Fixture {
    let config = KafkaConfig { rebalance_protocol, ..config(PARTITIONS) };
    let log = made(config.clone()).await;
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
                let log = open(&config).await;
                fixture_of(config, log)
            })
        }),
    }
}
