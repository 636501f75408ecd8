//! One member of a consumer group: serves its partitions in turn, from the tail in memory where it can,
//! else from the file. Nothing is fetched ahead of what is asked for, so nothing has to be dropped.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::delivery::{Delivery, Turn};
use super::shared::Shared;
use super::{locked, places, reading};
use crate::log::{LogConsumer, LogError, LogEvent, Offset, Partition, ReadLimit, Record, Topic};

/// One batch: enough to make a read of the file worth its query, little enough to be fair.
const BATCH: ReadLimit = ReadLimit { records: 2_000, bytes: 1 << 20 };

/// Between two tries of a read that failed.
const READ_RETRY: Duration = Duration::from_millis(200);

pub(super) struct Member {
    shared: Arc<Shared>,
    group: Arc<str>,
    delivery: Arc<Delivery>,
    /// Changes with every commit of the writer; ends with it.
    commits: watch::Receiver<u64>,
    /// A read of the file under way. Kept across calls of `next`, so that a caller that always gives up
    /// early gets it in the end.
    reading: Option<Reading>,
}

struct Reading {
    partition: Partition,
    from: Offset,
    /// A task of its own: a read nobody waits for at the moment must not keep its connection.
    found: AbortOnDropHandle<Found>,
}

/// What the file holds at a place.
enum Found {
    Records(Vec<Record>),
    /// Nothing; the partition ends here.
    End(Offset),
    /// The log was closed.
    Closed,
}

impl Member {
    pub(super) fn join(shared: Arc<Shared>, group: &str) -> Self {
        let delivery = Arc::new(Delivery::default());
        let group: Arc<str> = group.into();
        locked(&shared.coordinator).join(&group, Arc::clone(&delivery));
        let commits = shared.commits.clone();
        Self { shared, group, delivery, commits, reading: None }
    }

    /// Moves on over what was found; `None` when there is nothing to hand out after all.
    fn take(&self, partition: Partition, from: Offset, found: Found) -> Option<LogEvent> {
        let records = match found {
            Found::Records(records) => records,
            // At the end, or not any more: look again at what the writer is about to announce.
            Found::End(end) if end >= from => {
                self.shared.places.raise_next(Topic::Raw, partition, end);
                return None;
            }
            Found::End(_) => return self.delivery.out_of_range(partition, from),
            Found::Closed => return None,
        };
        match records.first().zip(records.last()) {
            // Offsets of a partition have no holes: a later first record means the place is gone.
            Some((first, last)) if first.offset == from => {
                let next = last.offset + 1;
                self.shared.places.raise_next(Topic::Raw, partition, next);
                let moved = self.delivery.advance(partition, from, next);
                moved.then_some(LogEvent::Records(partition, records))
            }
            _ => self.delivery.out_of_range(partition, from),
        }
    }

    fn start_reading(&mut self, partition: Partition, from: Offset) {
        let found = tokio::spawn(find_until_done(Arc::clone(&self.shared), partition, from));
        let found = AbortOnDropHandle::new(found);
        self.reading = Some(Reading { partition, from, found });
    }

    fn stop_reading(&mut self, partition: Partition) {
        self.reading.take_if(|reading| reading.partition == partition);
    }
}

/// Passing trouble is waited out: the caller has nothing better to do.
async fn find_until_done(shared: Arc<Shared>, partition: Partition, from: Offset) -> Found {
    let mut warned = false;
    loop {
        match find(&shared, partition, from).await {
            Ok(found) => return found,
            Err(sqlx::Error::PoolClosed) => return Found::Closed,
            Err(error) if !warned => {
                tracing::warn!(%error, partition, "the log cannot be read; trying again");
                warned = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(READ_RETRY).await;
    }
}

async fn find(shared: &Shared, partition: Partition, from: Offset) -> Result<Found, sqlx::Error> {
    let records = reading::read(&shared.readers, Topic::Raw, partition, from, BATCH).await?;
    if !records.is_empty() {
        return Ok(Found::Records(records));
    }
    let mut connection = shared.readers.acquire().await?;
    let bounds = places::read(&mut connection, Topic::Raw).await?;
    let index = usize::try_from(partition).unwrap_or(usize::MAX);
    Ok(Found::End(bounds.get(index).map_or(0, |bounds| bounds.next)))
}

#[async_trait]
impl LogConsumer for Member {
    async fn next(&mut self) -> Result<LogEvent, LogError> {
        loop {
            if let Some(reading) = &mut self.reading {
                let (partition, from) = (reading.partition, reading.from);
                let found = tokio::select! {
                    found = &mut reading.found => Some(found.map_err(|_| closed())?),
                    // News first: what is being read may be revoked. If not, it is read again.
                    () = self.delivery.news.notified() => None,
                };
                self.reading = None;
                if matches!(found, Some(Found::Closed)) {
                    return Err(closed());
                }
                if let Some(found) = found
                    && let Some(event) = self.take(partition, from, found)
                {
                    return Ok(event);
                }
            }
            // Seen before looking, so that a commit in between is not slept through.
            self.commits.borrow_and_update();
            match self.delivery.turn(&self.shared.places) {
                Turn::Tell(event) => return Ok(event),
                Turn::Read(partition, from) => {
                    match self.shared.tail.read(partition, from, BATCH) {
                        Some(records) if !records.is_empty() => {
                            let found = Found::Records(records);
                            if let Some(event) = self.take(partition, from, found) {
                                return Ok(event);
                            }
                        }
                        _ => self.start_reading(partition, from),
                    }
                }
                Turn::Wait => tokio::select! {
                    () = self.delivery.news.notified() => {}
                    changed = self.commits.changed() => changed.map_err(|_| closed())?,
                },
            }
        }
    }

    fn seek(&mut self, partition: Partition, offset: Offset) {
        self.stop_reading(partition);
        self.delivery.seek(partition, offset);
    }

    fn pause(&mut self, partitions: &[Partition]) {
        partitions.iter().for_each(|partition| self.stop_reading(*partition));
        self.delivery.set_paused(partitions, true);
    }

    fn resume(&mut self, partitions: &[Partition]) {
        self.delivery.set_paused(partitions, false);
    }

    fn commit(&mut self, partition: Partition, next: Offset) {
        // A late word of a former owner must not undo the new one's.
        if self.delivery.owns(partition) {
            self.shared.group_places.set(&self.group, partition, next);
        }
    }

    async fn committed(
        &mut self,
        partitions: &[Partition],
    ) -> Result<Vec<Option<Offset>>, LogError> {
        let place = |partition: &Partition| self.shared.group_places.get(&self.group, *partition);
        Ok(partitions.iter().map(place).collect())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        locked(&self.shared.coordinator).leave(&self.group, &self.delivery);
    }
}

fn closed() -> LogError {
    LogError::Unusable("the log was closed".to_owned())
}
