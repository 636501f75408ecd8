//! Where to read: the place the store knows, checked against the log it is said to be in.
//!
//! The store's place is trusted only while the log is the same log. Three things can say otherwise: the
//! log's epoch, a log that ends before the place, and another event just before the place (the log was
//! cut and grew again). In the last two cases a new epoch is written, and everything is read again from
//! the first offset: the store keeps what it has, the rest comes back.

use std::sync::Arc;

use pulsestream_shared::codec::decode;
use pulsestream_shared::log::{
    Bounds, EventLog, Identity, LogError, LogIdentity, Partition, ReadLimit, STORE_GROUP, Topic,
};
use pulsestream_shared::store::{EventStore, Progress, StoreError};

use crate::batch::id_of;
use crate::metrics::ConsumerMetrics;

pub(crate) struct Places {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) identity: Arc<dyn LogIdentity>,
    pub(crate) store: Arc<dyn EventStore>,
    pub(crate) metrics: Arc<ConsumerMetrics>,
}

/// Why a place could not be found now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PlaceError {
    /// True when the same question may be answered later. That of the log always may: a topic that is gone may
    /// be made again, and a process whose log stays another one is ended by its upkeep.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Log(_) => true,
            Self::Store(error) => error.is_retryable(),
        }
    }
}

/// What the log says about the place the store knows.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    /// Read on.
    Right,
    /// The place is of another log: start at the first offset.
    OtherEpoch,
    /// The log was cut: renew the epoch.
    Cut,
    /// Records before the log's first offset are gone.
    Lost(u64),
}

impl Places {
    /// The place of each partition; the store stands there when this returns.
    pub(crate) async fn find(&self, partitions: &[Partition]) -> Result<Vec<Progress>, PlaceError> {
        let mut identity = self.identity.identity().await?;
        'again: loop {
            let bounds = self.log.bounds(Topic::Raw).await?;
            let stored = self.store.progress(STORE_GROUP).await?;
            let mut places = Vec::with_capacity(partitions.len());
            for &partition in partitions {
                let bounds = bounds_of(&bounds, partition)?;
                let seen = stored.iter().find(|place| place.partition == partition).copied();
                match self.find_one(partition, seen, bounds, identity).await? {
                    Some(place) => places.push(place),
                    None => {
                        identity = self.identity.renew(identity.epoch).await?;
                        continue 'again;
                    }
                }
            }
            return Ok(places);
        }
    }

    /// Looks whether places that were right once still are; makes a new epoch when one is not: the log was
    /// cut while we read it, and grew again before we noticed.
    pub(crate) async fn check(&self, known: &[Progress]) -> Result<(), PlaceError> {
        let identity = self.identity.identity().await?;
        let bounds = self.log.bounds(Topic::Raw).await?;
        let findings = known.iter().map(async |place| {
            let bounds = bounds_of(&bounds, place.partition)?;
            self.judge(place, bounds, identity).await
        });
        let findings = futures_util::future::try_join_all(findings).await?;
        if let Some((place, _)) = known.iter().zip(findings).find(|(_, it)| *it == Finding::Cut) {
            tracing::error!(
                partition = place.partition,
                place = place.next,
                "the log was cut while it was read: starting a new epoch"
            );
            self.identity.renew(identity.epoch).await?;
        }
        Ok(())
    }

    /// `None` when the log was cut.
    async fn find_one(
        &self,
        partition: Partition,
        seen: Option<Progress>,
        bounds: Bounds,
        identity: Identity,
    ) -> Result<Option<Progress>, PlaceError> {
        let first =
            Progress { partition, epoch: identity.epoch, next: bounds.first, last_id: None };
        let Some(stored) = seen else {
            return Ok(Some(self.store.place(STORE_GROUP, None, first).await?));
        };
        match self.judge(&stored, bounds, identity).await? {
            Finding::Right => Ok(Some(stored)),
            Finding::OtherEpoch => {
                tracing::warn!(
                    partition,
                    from = bounds.first,
                    "another log: reading it from its start"
                );
                Ok(Some(self.store.place(STORE_GROUP, seen, first).await?))
            }
            Finding::Lost(records) => {
                let place = self.store.place(STORE_GROUP, seen, first).await?;
                self.metrics.lost.inc_by(records);
                tracing::error!(
                    partition,
                    records,
                    from = stored.next,
                    to = bounds.first,
                    "the log dropped records that were never stored"
                );
                Ok(Some(place))
            }
            Finding::Cut => {
                tracing::error!(
                    partition,
                    place = stored.next,
                    log_ends_at = bounds.next,
                    "the log was cut: starting a new epoch"
                );
                Ok(None)
            }
        }
    }

    async fn judge(
        &self,
        stored: &Progress,
        bounds: Bounds,
        identity: Identity,
    ) -> Result<Finding, PlaceError> {
        if stored.epoch != identity.epoch {
            return Ok(Finding::OtherEpoch);
        }
        if stored.next > bounds.next {
            return Ok(Finding::Cut);
        }
        if let Some(records) = u64::try_from(bounds.first - stored.next).ok().filter(|n| *n > 0) {
            return Ok(Finding::Lost(records));
        }
        let same = stored.next == bounds.first || self.is_before(stored).await?;
        Ok(if same { Finding::Right } else { Finding::Cut })
    }

    /// Reads back the event before the place. A record that is gone proves nothing.
    async fn is_before(&self, stored: &Progress) -> Result<bool, PlaceError> {
        let Some(expected) = stored.last_id else { return Ok(true) };
        let one = ReadLimit { records: 1, bytes: 1 };
        let before = stored.next - 1;
        let read = self.log.read(Topic::Raw, stored.partition, before, one).await?;
        let record = read.first().filter(|record| record.offset == before);
        Ok(record.is_none_or(|record| id_of(&decode(record)) == Some(expected)))
    }
}

fn bounds_of(bounds: &[Bounds], partition: Partition) -> Result<Bounds, LogError> {
    usize::try_from(partition)
        .ok()
        .and_then(|index| bounds.get(index).copied())
        .ok_or_else(|| LogError::Unusable(format!("the log has no partition {partition}")))
}
