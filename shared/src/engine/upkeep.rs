//! What keeps the engines of a process in order while it runs: probes for `/readyz`, a look whether the
//! log is still the same, and the retention of the embedded log.

use std::time::Duration;

use tokio::time::Instant;

use super::{Engine, LogKind};
use crate::admin::{Dependency, Readiness};
use crate::clock;
use crate::log::embedded::EmbeddedLog;
use crate::log::{
    Bounds, EventLog as _, Identity, LogError, LogIdentity, Offset, STORE_GROUP, Topic,
};
use crate::service::{Context, PROBE_INTERVAL};
use crate::store::{EventStore, KeyHash};

const IDENTITY_INTERVAL: Duration = Duration::from_secs(3);
/// How long the log must be another one without a break before the process ends. A broker that just started
/// may not know a topic yet, and an operator may make one anew.
const IDENTITY_PATIENCE: Duration = Duration::from_secs(9);
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
        let (identity, partitions) = (self.identity.clone(), self.partitions);
        let same_log = stop.clone().run_until_cancelled_owned(async move {
            until_another_log(identity.as_ref(), partitions).await;
        });
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

/// Ends when the log turns out to be one this process cannot serve.
async fn until_another_log(identity: &dyn LogIdentity, partitions: u32) {
    let mut since = None;
    loop {
        tokio::time::sleep(IDENTITY_INTERVAL).await;
        let reason = unservable(identity.identity().await, partitions);
        if lasts(&mut since, reason.is_some(), Instant::now()) {
            tracing::error!(reason, "another log than this process was started for");
            return;
        }
    }
}

/// Why a log of that identity cannot be served by a process made for so many partitions.
fn unservable(found: Result<Identity, LogError>, partitions: u32) -> Option<String> {
    match found {
        Err(LogError::Unusable(reason)) => Some(reason),
        Ok(found) if found.partitions != partitions => Some(format!(
            "the log has {} partitions where it had {partitions} when this process started",
            found.partitions
        )),
        Ok(_) | Err(LogError::Unavailable(_)) => None,
    }
}

/// Whether it was another log at every look of [`IDENTITY_PATIENCE`]; `since` is the first of them.
fn lasts(since: &mut Option<Instant>, another: bool, now: Instant) -> bool {
    if !another {
        *since = None;
        return false;
    }
    now.duration_since(*since.get_or_insert(now)) >= IDENTITY_PATIENCE
}

/// Removes from the embedded log what is old and stored.
async fn retain(log: &EmbeddedLog, store: &dyn EventStore) -> Result<(), String> {
    let floor: Vec<_> =
        stored_places(log, store).await?.into_iter().map(|(_, place)| place).collect();
    let removed = log.retain(clock::unix_ms(), &floor).await.map_err(|error| error.to_string())?;
    tracing::debug!(removed, "log retention");
    Ok(())
}

/// The bounds of each partition, and the place from which the store has yet to take it.
pub(super) async fn stored_places(
    log: &EmbeddedLog,
    store: &dyn EventStore,
) -> Result<Vec<(Bounds, Offset)>, String> {
    let epoch = log.identity().await.map_err(|error| error.to_string())?.epoch;
    let bounds = log.bounds(Topic::Raw).await.map_err(|error| error.to_string())?;
    let mut places: Vec<_> = bounds.into_iter().map(|bounds| (bounds, bounds.first)).collect();
    for progress in store.progress(STORE_GROUP).await.map_err(|error| error.to_string())? {
        let place = usize::try_from(progress.partition).ok().and_then(|p| places.get_mut(p));
        if let Some((_, place)) = place.filter(|_| progress.epoch == epoch) {
            *place = progress.next;
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// Looks three seconds apart; each says whether the log was another one.
    fn ends(looks: &[bool]) -> bool {
        let (start, mut since) = (Instant::now(), None);
        let at = |look| start + IDENTITY_INTERVAL * look;
        (0..).zip(looks).any(|(look, another)| lasts(&mut since, *another, at(look)))
    }

    #[test]
    fn a_log_that_stays_away_ends_the_process() {
        assert!(ends(&[true; 4]));
    }

    #[test]
    fn a_log_that_comes_back_ends_nothing() {
        assert!(!ends(&[true, true, true, false, true, true, true, false]));
    }

    #[test]
    fn a_log_is_unservable_when_it_is_gone_or_has_another_partition_count() {
        let found = |partitions| Ok(Identity { epoch: Uuid::nil(), partitions });
        assert_eq!(unservable(found(4), 4), None);
        assert_eq!(unservable(Err(LogError::Unavailable("away".to_owned())), 4), None);
        assert_eq!(unservable(Err(LogError::Unusable("gone".to_owned())), 4).unwrap(), "gone");
        assert!(unservable(found(6), 4).unwrap().contains("has 6 partitions where it had 4"));
    }
}
