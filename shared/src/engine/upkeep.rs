//! What keeps the engines of a process in order while it runs: probes for `/readyz`, a look whether the
//! log is still the same, and the retention of the embedded log.

use std::time::Duration;

use super::{Engine, LogKind};
use crate::admin::{Dependency, Readiness};
use crate::clock;
use crate::log::embedded::EmbeddedLog;
use crate::log::{EventLog as _, LogError, LogIdentity as _, STORE_GROUP, Topic};
use crate::service::{Context, PROBE_INTERVAL};
use crate::store::{EventStore, KeyHash};

const IDENTITY_INTERVAL: Duration = Duration::from_secs(3);
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);

impl Engine {
    /// Spawns what keeps the engines in order: probes for `/readyz`, and for the embedded log its
    /// retention, which never passes what the store has taken.
    pub(crate) fn spawn_upkeep(&self, context: &Context) {
        let probe = {
            let (engine, readiness) = (self.clone(), context.readiness.clone());
            let stop = context.shutdown.stop.clone();
            async move {
                while stop.run_until_cancelled(tokio::time::sleep(PROBE_INTERVAL)).await.is_some() {
                    engine.probe(&readiness).await;
                }
            }
        };
        context.spawn("probe", probe);
        let stop = context.shutdown.stop.clone();
        let same_log = stop.clone().run_until_cancelled_owned(self.clone().until_another_log());
        context.spawn("log identity", async move {
            same_log.await;
        });
        if let LogKind::Embedded(log) = self.kind.clone() {
            let (store, stop) = (self.store.clone(), context.shutdown.stop.clone());
            context.spawn("log retention", async move {
                while stop
                    .run_until_cancelled(tokio::time::sleep(RETENTION_INTERVAL))
                    .await
                    .is_some()
                {
                    if let Err(error) = retain(&log, store.as_ref()).await {
                        tracing::warn!(%error, "log retention put off");
                    }
                }
            });
        }
    }

    /// Ends when the log turns out to be one this process cannot serve. Two looks in a row must say so: a
    /// broker that just started may not know a topic yet.
    async fn until_another_log(self) {
        let mut before = false;
        loop {
            tokio::time::sleep(IDENTITY_INTERVAL).await;
            let reason = match self.identity.identity().await {
                Err(LogError::Unusable(reason)) => reason,
                Ok(identity) if identity.partitions != self.partitions => format!(
                    "the log has {} partitions where it had {} when this process started",
                    identity.partitions, self.partitions
                ),
                Ok(_) | Err(LogError::Unavailable(_)) => {
                    before = false;
                    continue;
                }
            };
            if before {
                tracing::error!(%reason, "another log than this process was started for");
                return;
            }
            before = true;
        }
    }

    /// Tells readiness which engines answer.
    pub(super) async fn probe(&self, readiness: &Readiness) {
        let log = async {
            let seen = self.log.bounds(Topic::Raw).await.map(drop);
            readiness.note(Dependency::Log, seen.map_err(|error| error.to_string()));
        };
        let store = async {
            let seen = self.keys.pepper().await.map(drop);
            readiness.note(Dependency::Store, seen.map_err(|error| error.to_string()));
        };
        let cache = async {
            let seen = self.cache.key(&KeyHash([0; 32])).await.map(drop);
            readiness.note(Dependency::Cache, seen.map_err(|error| error.to_string()));
        };
        tokio::join!(log, store, cache);
    }
}

/// Removes from the embedded log what is old and stored.
async fn retain(log: &EmbeddedLog, store: &dyn EventStore) -> Result<(), String> {
    let epoch = log.identity().await.map_err(|error| error.to_string())?.epoch;
    let mut floor: Vec<_> = log
        .bounds(Topic::Raw)
        .await
        .map_err(|error| error.to_string())?
        .iter()
        .map(|b| b.first)
        .collect();
    for progress in store.progress(STORE_GROUP).await.map_err(|error| error.to_string())? {
        let place = usize::try_from(progress.partition).ok().and_then(|p| floor.get_mut(p));
        if let Some(place) = place.filter(|_| progress.epoch == epoch) {
            *place = progress.next;
        }
    }
    let removed = log.retain(clock::unix_ms(), &floor).await.map_err(|error| error.to_string())?;
    tracing::debug!(removed, "log retention");
    Ok(())
}
