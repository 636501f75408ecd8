//! The log for operator commands, beside a pipeline that may be running.

use std::sync::Arc;

use super::{CLOSE_WITHIN, LogKind, OpenError, is_kafka, kafka_config};
use crate::config::Config;
use crate::log::embedded::EmbeddedLog;
use crate::log::kafka::{ClientMetrics, KafkaLog};
use crate::log::{EventLog, Identity, LogError, LogIdentity as _};

/// The log as a command sees it: it reads and appends, and joins no group.
pub struct AttachedLog {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Which one it is.
    pub identity: Identity,
    kind: LogKind,
}

impl AttachedLog {
    /// Opens the log the settings name; creates none.
    ///
    /// # Errors
    /// [`OpenError`]; does not wait.
    pub async fn open(config: &Config) -> Result<Self, OpenError> {
        Self::attach(config).await.map_err(|error| OpenError(error.to_string()))
    }

    async fn attach(config: &Config) -> Result<Self, LogError> {
        if is_kafka(config) {
            let log =
                Arc::new(KafkaLog::open(kafka_config(config), ClientMetrics::unseen()).await?);
            let identity = log.identity().await?;
            return Ok(Self { log: log.clone(), identity, kind: LogKind::Kafka(log) });
        }
        let log = EmbeddedLog::attach(&config.embedded.data_dir).await?;
        let identity = log.identity().await?;
        Ok(Self { log: Arc::new(log.clone()), identity, kind: LogKind::Embedded(log) })
    }

    /// Ends cleanly: what was handed to the log is written.
    pub async fn close(self) {
        match self.kind {
            LogKind::Embedded(log) => log.close().await,
            LogKind::Kafka(log) => {
                if !log.close(CLOSE_WITHIN).await {
                    tracing::warn!("the Kafka client did not end in time");
                }
            }
        }
    }
}
