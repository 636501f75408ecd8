//! The log in blocks, for those who catch up: whoever reads the same part shares one read of it.
//!
//! A block covers a fixed stretch of offsets of one partition. Blocks are kept for a short while in
//! bounded memory, because those who reconnect together read the same ones; reads of the log itself are
//! bounded in number.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use pulsestream_shared::event::{ClientId, EventId};
use pulsestream_shared::log::{EventLog, LogError, Offset, Partition, ReadLimit, Record, Topic};
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::hub::first_kept;
use crate::range::{LiveEvent, Range};

/// Offsets of one block.
pub(crate) const BLOCK: Offset = 1_024;
const READ_LIMIT: ReadLimit = ReadLimit { records: 1_024, bytes: 4 << 20 };
/// Reads of the log at once.
const READS: usize = 4;
/// Bytes of blocks kept, and for how long.
const KEPT_BYTES: u64 = 64 << 20;
const KEPT_FOR: Duration = Duration::from_secs(30);
/// Catch-ups at once; others wait their turn.
const CATCH_UPS: usize = 32;

/// An event and when the log took it.
pub(crate) struct Logged {
    pub(crate) event: LiveEvent,
    pub(crate) at_ms: i64,
}

impl Logged {
    pub(crate) fn key(&self, partition: Partition) -> (Partition, ClientId, EventId) {
        (partition, self.event.client, self.event.id)
    }
}

/// A part of a partition.
pub(crate) struct Block {
    /// The events in it, in offset order.
    pub(crate) events: Vec<Logged>,
    /// The next offset after what was read; less than the block's end while the log ends in it.
    pub(crate) read_to: Offset,
    /// The log begins here, or earlier.
    pub(crate) first: Offset,
}

type Key = (Uuid, Partition, Offset);

pub(crate) struct Blocks {
    log: Arc<dyn EventLog>,
    kept: Cache<Key, Arc<Block>>,
    reads: Semaphore,
    pub(crate) catch_ups: Arc<Semaphore>,
}

impl Blocks {
    pub(crate) fn new(log: Arc<dyn EventLog>) -> Arc<Self> {
        let weigh = |_: &Key, block: &Arc<Block>| {
            let bytes = block.events.iter().map(|logged| logged.event.json.len() + 200);
            u32::try_from(bytes.sum::<usize>() + 200).unwrap_or(u32::MAX)
        };
        let kept =
            Cache::builder().max_capacity(KEPT_BYTES).weigher(weigh).time_to_live(KEPT_FOR).build();
        let catch_ups = Arc::new(Semaphore::new(CATCH_UPS));
        Arc::new(Self { log, kept, reads: Semaphore::new(READS), catch_ups })
    }

    /// The block that holds an offset, read at least that far if the log reaches so far.
    ///
    /// # Errors
    /// When the log does not answer.
    pub(crate) async fn holding(
        &self,
        epoch: Uuid,
        partition: Partition,
        offset: Offset,
    ) -> Result<Arc<Block>, Arc<LogError>> {
        let number = offset.div_euclid(BLOCK);
        let key = (epoch, partition, number);
        let block = self.kept.try_get_with(key, self.read(partition, number)).await?;
        let whole = block.read_to >= (number + 1) * BLOCK;
        if whole || block.read_to > offset {
            return Ok(block);
        }
        // The log has grown since, or ends here.
        self.kept.invalidate(&key).await;
        self.kept.try_get_with(key, self.read(partition, number)).await
    }

    /// Per partition the offset of the first record logged at or after that time.
    ///
    /// # Errors
    /// When the log does not answer.
    pub(crate) async fn locate(&self, logged_at_ms: i64) -> Result<Vec<Offset>, LogError> {
        self.log.locate(logged_at_ms).await
    }

    async fn read(&self, partition: Partition, number: Offset) -> Result<Arc<Block>, LogError> {
        let _turn = self.reads.acquire().await.map_err(|error| {
            LogError::Unavailable(error.to_string()) // never closed
        })?;
        let (start, end) = (number * BLOCK, (number + 1) * BLOCK);
        let mut block = Block { events: Vec::new(), read_to: start, first: 0 };
        while block.read_to < end {
            let records = self.log.read(Topic::Raw, partition, block.read_to, READ_LIMIT).await?;
            let Some(last) = records.last() else { break };
            block.read_to = (last.offset + 1).min(end);
            if block.first == 0 && records.first().is_some_and(|record| record.offset > start) {
                block.first = first_kept(&self.log.bounds(Topic::Raw).await?, partition);
            }
            block.take(partition, &records, end);
        }
        Ok(Arc::new(block))
    }
}

impl Block {
    fn take(&mut self, partition: Partition, records: &[Record], end: Offset) {
        let times: std::collections::HashMap<_, _> =
            records.iter().map(|record| (record.offset, record.logged_at_ms)).collect();
        let range = Range::of(Uuid::nil(), partition, 0, records);
        let inside = range.events.into_iter().filter(|event| event.offset < end);
        self.events.extend(inside.map(|event| {
            let at_ms = times.get(&event.offset).copied().unwrap_or_default();
            Logged { event, at_ms }
        }));
    }
}
