//! Copies of dead letters on the topic `metrics.dlq`.
//!
//! The `dead_letters` table decides what is dead-lettered; the topic is its at-least-once copy, made
//! before the transaction commits, so that no dead letter exists without its bytes. The row names the
//! place of its copy; one repeated after a rollback is named by none.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use pulsestream_shared::clock;
use pulsestream_shared::dead_letter::{copy, deaths_of, device_of};
use pulsestream_shared::log::{EventLog, LogError, NewRecord, Partition, Record, Topic};
use pulsestream_shared::store::{DeadCopy, DeadLetter, DeadLetterSink};
use uuid::Uuid;

/// The records of the batch at work, and where copies go.
pub(crate) struct DeadLetters<'a> {
    pub(crate) log: &'a dyn EventLog,
    pub(crate) partitions: u32,
    /// The log of each partition's records.
    pub(crate) epochs: HashMap<Partition, Uuid>,
    pub(crate) records: &'a [Record],
}

#[async_trait]
impl DeadLetterSink for DeadLetters<'_> {
    async fn accept(&self, letters: &[DeadLetter]) -> Result<Vec<DeadCopy>, LogError> {
        let now_ms = clock::unix_ms();
        let wanted: HashSet<_> = letters.iter().map(|it| (it.partition, it.offset)).collect();
        let place = |record: &Record| (record.partition, record.offset);
        let dead = self.records.iter().filter(|record| wanted.contains(&place(record)));
        let dead: HashMap<_, _> = dead.map(|record| (place(record), record)).collect();
        let copies = letters.iter().map(|letter| {
            let record = dead.get(&(letter.partition, letter.offset))?;
            self.copy(letter, record, now_ms)
        });
        let copies: Vec<_> = copies
            .collect::<Option<_>>()
            .ok_or_else(|| LogError::Unusable("a dead letter is not of this batch".to_owned()))?;
        let (copies, records): (Vec<_>, Vec<_>) = copies.into_iter().unzip();
        let results = self.log.append(Topic::Dlq, records).await;
        let placed = copies.into_iter().zip(results).map(|(copy, result)| {
            let offset = result.map_err(|error| LogError::Unavailable(error.to_string()))?;
            Ok(DeadCopy { offset, ..copy })
        });
        placed.collect()
    }
}

impl DeadLetters<'_> {
    /// What the copy will be known by, but for its offset; and the copy.
    fn copy(
        &self,
        letter: &DeadLetter,
        record: &Record,
        now_ms: i64,
    ) -> Option<(DeadCopy, NewRecord)> {
        let epoch = *self.epochs.get(&letter.partition)?;
        let copy = copy(letter, record, epoch, self.partitions, now_ms);
        let known = DeadCopy {
            partition: copy.partition,
            offset: 0,
            device: device_of(record),
            attempt: deaths_of(record).saturating_add(1),
        };
        Some((known, copy))
    }
}
