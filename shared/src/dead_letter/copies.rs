//! The copies of letters, read from `metrics.dlq` at the places their rows name: so one that no row names, and a
//! repeated one, are never seen.

use std::collections::VecDeque;

use super::letter_of;
use crate::log::{EventLog, LogError, Offset, Partition, ReadLimit, Record, Topic};
use crate::store::Letter;

/// Copies that lie further apart are read by themselves.
const GAP: Offset = 64;
/// Bytes of one read, so that what is held in memory is bounded.
const BYTES: usize = 4 << 20;

/// Letters still to be read, in the order of their copies.
pub struct Copies {
    waiting: VecDeque<Letter>,
}

/// A letter, and its copy or why there is none.
pub type Found = (Letter, Result<Record, &'static str>);

const UNKNOWN: &str = "an older version buried it and did not note where its bytes are";
const GONE: &str = "metrics.dlq does not hold its bytes any more";

impl Copies {
    /// All of these.
    pub fn of(mut letters: Vec<Letter>) -> Self {
        letters.sort_by_key(|letter| (letter.copy, letter.place));
        Self { waiting: letters.into() }
    }

    /// The next letters with what one read found of them; none: all were read.
    ///
    /// # Errors
    /// [`LogError`]: the letters are still waiting.
    pub async fn next(&mut self, log: &dyn EventLog) -> Result<Vec<Found>, LogError> {
        let Some(first) = self.waiting.front() else { return Ok(Vec::new()) };
        let Some((partition, from)) = first.copy else {
            return Ok(self.waiting.pop_front().map(|it| (it, Err(UNKNOWN))).into_iter().collect());
        };
        let last = self.run_from(partition, from);
        let records = usize::try_from(last - from + 1).unwrap_or(1);
        let limit = ReadLimit { records, bytes: BYTES };
        let mut records = log.read(Topic::Dlq, partition, from, limit).await?;
        records.retain(|record| record.offset <= last);
        if records.is_empty() && is_inside(log, partition, from).await? {
            return Err(LogError::Unavailable("metrics.dlq did not answer in time".to_owned()));
        }
        // Nothing at the first place: the first letter at least is answered.
        let read_to = records.last().map_or(from, |record| record.offset.max(from));
        let mut found = Vec::new();
        while let Some(letter) = self.waiting.pop_front_if(|it| is_within(it, partition, read_to)) {
            let copy = records.iter().find(|record| is_copy(record, &letter)).cloned();
            found.push((letter, copy.ok_or(GONE)));
        }
        Ok(found)
    }

    /// Where the run of copies ends that begins with the first one.
    fn run_from(&self, partition: Partition, from: Offset) -> Offset {
        let copies = self.waiting.iter().map_while(|letter| letter.copy);
        let mut last = from;
        for (_, offset) in copies.take_while(|(number, _)| *number == partition) {
            if offset - last > GAP {
                break;
            }
            last = offset;
        }
        last
    }
}

/// A read that brings nothing has met the end, or a slow broker.
async fn is_inside(
    log: &dyn EventLog,
    partition: Partition,
    offset: Offset,
) -> Result<bool, LogError> {
    let bounds = log.bounds(Topic::Dlq).await?;
    let bounds = usize::try_from(partition).ok().and_then(|index| bounds.get(index).copied());
    Ok(bounds.is_some_and(|bounds| (bounds.first..bounds.next).contains(&offset)))
}

fn is_within(letter: &Letter, partition: Partition, to: Offset) -> bool {
    letter.copy.is_some_and(|(number, offset)| number == partition && offset <= to)
}

fn is_copy(record: &Record, letter: &Letter) -> bool {
    letter.copy.is_some_and(|(_, offset)| offset == record.offset)
        && letter_of(record) == Some(letter.place)
}

#[cfg(test)]
mod tests;
