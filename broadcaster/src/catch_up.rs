//! One subscription's way through the log, up to where the ring begins.
//!
//! It begins by reading the ids that lie up to the repeat window before its place, so that it shows no
//! second copy of what was shown before. Catch-ups wait for one another beyond a number; each is bounded
//! in events and in time, and beyond either the subscriber is told of a gap.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pulsestream_shared::log::{LogError, Offset, Partition};
use pulsestream_shared::retry::Backoff;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use crate::blocks::{BLOCK, Block, Blocks};
use crate::cursor::Cursor;
use crate::filter::Filter;
use crate::range::LiveEvent;
use crate::repeats::Repeats;
use crate::subscription::GapReason;

/// Records one catch-up may be long; a cursor further back is judged expired at once.
pub(crate) const MOST_RECORDS: Offset = 1_000_000;
/// How long one may take, waiting for its turn included.
const MOST_TIME: Duration = Duration::from_secs(120);
/// Ids remembered by one catch-up, of its own tenant.
const IDS: usize = 20_000;
/// Offsets read before a place for their ids, per partition.
const MOST_WARMING: Offset = 100_000;

/// A way through the log.
pub(crate) struct CatchUp {
    blocks: Arc<Blocks>,
    filter: Filter,
    place: Cursor,
    known: Repeats,
    window_ms: i64,
    turn: Option<OwnedSemaphorePermit>,
    /// Partitions whose ids before the place are known.
    warm: HashSet<Partition>,
    begun_at: Instant,
    records: Offset,
}

/// The result of one read.
pub(crate) enum Read {
    /// These events of a partition follow, and the place after them.
    Events(Partition, Vec<LiveEvent>, Cursor),
    /// It cannot be gone on.
    Gap(GapReason),
}

impl CatchUp {
    pub(crate) fn new(
        blocks: Arc<Blocks>,
        filter: Filter,
        place: Cursor,
        window: Duration,
    ) -> Self {
        let window_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        Self {
            blocks,
            filter,
            place,
            known: Repeats::bounded(window_ms, IDS),
            window_ms,
            turn: None,
            warm: HashSet::new(),
            begun_at: Instant::now(),
            records: 0,
        }
    }

    /// Reads on towards `base`, where the ring begins; which lies ahead in at least one partition.
    pub(crate) async fn next(mut self, base: Arc<Cursor>) -> (Self, Read) {
        let end = self.begun_at + MOST_TIME;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        loop {
            match tokio::time::timeout_at(end, self.read(&base)).await {
                Err(_) if self.turn.is_none() => return (self, Read::Gap(GapReason::Busy)),
                Err(_) => return (self, Read::Gap(GapReason::Expired)),
                Ok(Ok(read)) => return (self, read),
                Ok(Err(error)) => tracing::debug!(%error, "catch-up put off"),
            }
            let pause = backoff.next_delay();
            if Instant::now() + pause > end {
                return (self, Read::Gap(GapReason::LogUnavailable));
            }
            sleep(pause).await;
        }
    }

    async fn read(&mut self, base: &Cursor) -> Result<Read, Arc<LogError>> {
        if self.turn.is_none() {
            self.turn = self.blocks.catch_ups.clone().acquire_owned().await.ok();
        }
        self.warm_up(base).await?;
        let Some(partition) = self.furthest_behind(base) else {
            return Ok(Read::Events(0, Vec::new(), self.place.clone()));
        };
        let from = self.place.at(partition);
        let block = self.blocks.holding(self.place.epoch, partition, from).await?;
        if block.first > from {
            return Ok(Read::Gap(GapReason::BeyondRetention));
        }
        // The ring has what follows its base; a block may have been read before or after it moved.
        let to = block.read_to.min(base.at(partition));
        if to <= from {
            return Err(Arc::new(LogError::Unavailable("the log ends before its ring".to_owned())));
        }
        self.records += to - from;
        if self.records > MOST_RECORDS {
            return Ok(Read::Gap(GapReason::Expired));
        }
        let events = self.new_events(partition, &block, from, to);
        self.place = self.place.with(partition, to);
        Ok(Read::Events(partition, events, self.place.clone()))
    }

    /// The partition with the most to read, so that all come near the present together.
    fn furthest_behind(&self, base: &Cursor) -> Option<Partition> {
        let behind = |(partition, (base, here)): (usize, (&Offset, &Offset))| {
            let count = base - here;
            Some((count, Partition::try_from(partition).ok()?)).filter(|_| count > 0)
        };
        let partitions = base.next.iter().zip(&self.place.next).enumerate();
        partitions.filter_map(behind).max().map(|(_, partition)| partition)
    }

    fn new_events(
        &mut self,
        partition: Partition,
        block: &Block,
        from: Offset,
        to: Offset,
    ) -> Vec<LiveEvent> {
        let own = block.events.iter().filter(|logged| {
            (from..to).contains(&logged.event.offset) && self.filter.sees(logged.event.client)
        });
        let mut events = Vec::new();
        for logged in own {
            let first = self.known.is_first(logged.key(partition), logged.at_ms);
            if first && self.filter.wants(&logged.event) {
                events.push(logged.event.clone());
            }
        }
        events
    }

    /// Reads the ids that lie shortly before the place, of every partition that is to be read and was not
    /// before: the ring's beginning moves on meanwhile, and a partition that was within it falls out.
    async fn warm_up(&mut self, base: &Cursor) -> Result<(), Arc<LogError>> {
        let cold: Vec<_> = (0..)
            .zip(base.next.iter().zip(&self.place.next))
            .filter(|(partition, (base, here))| base > here && !self.warm.contains(partition))
            .map(|(partition, (_, here))| (partition, *here))
            .collect();
        let mut earliest_ms = i64::MAX;
        for (partition, here) in &cold {
            let block = self.blocks.holding(self.place.epoch, *partition, *here).await?;
            let next = block.events.iter().find(|logged| logged.event.offset >= *here);
            earliest_ms = earliest_ms.min(next.map_or(i64::MAX, |logged| logged.at_ms));
        }
        if earliest_ms < i64::MAX {
            let located = self.blocks.locate(earliest_ms - self.window_ms).await?;
            for (partition, here) in &cold {
                let index = usize::try_from(*partition).unwrap_or(usize::MAX);
                let since = located.get(index).copied().unwrap_or(*here);
                self.remember(*partition, since.max(here - MOST_WARMING), *here).await?;
            }
        }
        self.warm.extend(cold.iter().map(|(partition, _)| *partition));
        Ok(())
    }

    async fn remember(
        &mut self,
        partition: Partition,
        from: Offset,
        to: Offset,
    ) -> Result<(), Arc<LogError>> {
        let mut at = from;
        while at < to {
            let block = self.blocks.holding(self.place.epoch, partition, at).await?;
            let before = block.events.iter().filter(|logged| {
                (from..to).contains(&logged.event.offset) && self.filter.sees(logged.event.client)
            });
            for logged in before {
                self.known.is_first(logged.key(partition), logged.at_ms);
            }
            at = (at.div_euclid(BLOCK) + 1) * BLOCK;
        }
        Ok(())
    }
}
