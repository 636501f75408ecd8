//! Append requests on their way into one commit: which record gets which offset, and who waits for it.

use tokio::sync::oneshot;

use crate::cache::Outcome;
use crate::log::{AppendError, AppendResult, NewRecord, Offset, Partition, Record, Topic};

/// Records and bytes of one commit. More would make the first caller wait for the last one's rows.
const MAX_RECORDS: usize = 8_192;
const MAX_BYTES: usize = 8 << 20;

/// Largest record, key, value and headers together.
pub(super) const MAX_RECORD_BYTES: usize = 4 << 20;

/// A record with its place.
pub(super) struct Row {
    pub(super) topic: Topic,
    pub(super) partition: Partition,
    pub(super) offset: Offset,
    pub(super) record: NewRecord,
    answer: usize,
    position: usize,
}

impl Row {
    /// The row as the log hands it out.
    pub(super) fn into_record(self, logged_at_ms: i64) -> Record {
        let NewRecord { partition, key, value, headers, .. } = self.record;
        Record { partition, offset: self.offset, logged_at_ms, key, value, headers }
    }
}

struct Answer {
    caller: oneshot::Sender<Vec<AppendResult>>,
    results: Vec<AppendResult>,
}

/// What one commit writes.
#[derive(Default)]
pub(super) struct Group {
    pub(super) rows: Vec<Row>,
    pub(super) outcomes: Vec<Outcome>,
    answers: Vec<Answer>,
    bytes: usize,
}

impl Group {
    /// Adds a batch; what the log cannot take is refused alone.
    pub(super) fn add(
        &mut self,
        topic: Topic,
        records: Vec<NewRecord>,
        partitions: usize,
        caller: oneshot::Sender<Vec<AppendResult>>,
    ) {
        let answer = self.answers.len();
        let mut results = Vec::with_capacity(records.len());
        for (position, mut record) in records.into_iter().enumerate() {
            let bytes = size(&record);
            if let Some(reason) = fault(&record, bytes, partitions) {
                results.push(Err(AppendError::Refused(reason)));
                continue;
            }
            results.push(Ok(0));
            self.bytes += bytes;
            self.outcomes.append(&mut record.outcomes);
            let partition = record.partition;
            self.rows.push(Row { topic, partition, offset: 0, record, answer, position });
        }
        self.answers.push(Answer { caller, results });
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows.len() >= MAX_RECORDS || self.bytes >= MAX_BYTES
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives each record its offset, counting `next` of its topic on. May be repeated with other
    /// numbers until the commit.
    pub(super) fn place(&mut self, next: &mut NextOffsets) {
        for row in &mut self.rows {
            if let Some(next) = next.of(row.topic, row.partition) {
                row.offset = *next;
                *next += 1;
            }
            let results = self.answers.get_mut(row.answer).map(|answer| &mut answer.results);
            if let Some(result) = results.and_then(|results| results.get_mut(row.position)) {
                *result = Ok(row.offset);
            }
        }
        // Stable: within a partition the order of the callers stays. Neighbours share a page.
        self.rows.sort_by_key(|row| (row.topic != Topic::Raw, row.partition));
    }

    /// Tells every caller its offsets.
    pub(super) fn confirm(self) {
        for answer in self.answers {
            answer.tell();
        }
    }

    /// Tells every caller why there are none.
    pub(super) fn fail(self, error: &AppendError) {
        for mut answer in self.answers {
            for result in answer.results.iter_mut().filter(|result| result.is_ok()) {
                *result = Err(error.clone());
            }
            answer.tell();
        }
    }
}

impl Answer {
    fn tell(self) {
        if self.caller.send(self.results).is_err() {
            tracing::trace!("a caller did not wait for its answer");
        }
    }
}

fn size(record: &NewRecord) -> usize {
    let key = record.key.as_ref().map_or(0, bytes::Bytes::len);
    key + record.value.len() + record.headers.as_bytes().len()
}

fn fault(record: &NewRecord, bytes: usize, partitions: usize) -> Option<String> {
    let exists = usize::try_from(record.partition).is_ok_and(|partition| partition < partitions);
    if !exists {
        return Some(format!("there is no partition {}", record.partition));
    }
    let too_large = bytes > MAX_RECORD_BYTES;
    too_large.then(|| format!("{bytes} bytes; a record has at most {MAX_RECORD_BYTES}"))
}

/// The offset each partition gives out next.
#[derive(Debug, Clone, Default)]
pub(super) struct NextOffsets {
    pub(super) raw: Vec<Offset>,
    pub(super) dlq: Vec<Offset>,
}

impl NextOffsets {
    fn of(&mut self, topic: Topic, partition: Partition) -> Option<&mut Offset> {
        let offsets = match topic {
            Topic::Raw => &mut self.raw,
            Topic::Dlq => &mut self.dlq,
        };
        offsets.get_mut(usize::try_from(partition).ok()?)
    }
}
