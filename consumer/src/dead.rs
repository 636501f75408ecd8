//! Copies of dead letters on the topic `metrics.dlq`.
//!
//! The `dead_letters` table decides what is dead-lettered; the topic is its at-least-once copy, made
//! before the transaction commits, so that no dead letter exists without its bytes. A copy repeated
//! after a rollback is told apart by its place.

use std::collections::HashMap;

use async_trait::async_trait;
use pulsestream_shared::clock;
use pulsestream_shared::log::{
    EventLog, Headers, LogError, NewRecord, Offset, Partition, Record, STORE_GROUP, Topic,
    partition_of,
};
use pulsestream_shared::store::{DeadLetter, DeadLetterSink};

/// Headers of an earlier dead letter are not carried along: the latest place and reason count.
const PREFIX: &str = "dlq.";

/// The records of the batch at work, by place, and where copies go.
pub(crate) struct DeadLetters<'a> {
    pub(crate) log: &'a dyn EventLog,
    pub(crate) partitions: u32,
    pub(crate) records: HashMap<(Partition, Offset), &'a Record>,
}

#[async_trait]
impl DeadLetterSink for DeadLetters<'_> {
    async fn accept(&self, letters: &[DeadLetter]) -> Result<(), LogError> {
        let copies: Vec<_> = letters
            .iter()
            .filter_map(|letter| {
                let record = self.records.get(&(letter.partition, letter.offset))?;
                Some(self.copy(letter, record))
            })
            .collect();
        if copies.len() != letters.len() {
            return Err(LogError::Unusable("a dead letter is not of this batch".to_owned()));
        }
        for result in self.log.append(Topic::Dlq, copies).await {
            result.map_err(|error| LogError::Unavailable(error.to_string()))?;
        }
        Ok(())
    }
}

impl DeadLetters<'_> {
    fn copy(&self, letter: &DeadLetter, record: &Record) -> NewRecord {
        let key = record.key.clone();
        let partition =
            key.as_ref().map_or(record.partition, |key| partition_of(key, self.partitions));
        NewRecord {
            partition,
            key,
            value: record.value.clone(),
            headers: headers(letter, record),
            outcomes: Vec::new(),
        }
    }
}

/// The record's own headers, then what is known about its death, all as text.
fn headers(letter: &DeadLetter, record: &Record) -> Headers {
    let now_ms = clock::unix_ms().to_string();
    let earlier = |name: &str| record.headers.get(name).and_then(|v| std::str::from_utf8(v).ok());
    let attempt = earlier("dlq.attempt").and_then(|n| n.parse::<u32>().ok()).unwrap_or(0) + 1;
    let first_at = earlier("dlq.first-at").map_or_else(|| now_ms.clone(), str::to_owned);
    let mut headers = Headers::builder();
    for (name, value) in record.headers.iter().filter(|(name, _)| !name.starts_with(PREFIX)) {
        headers.push(name, value);
    }
    headers = headers
        .with("dlq.topic", Topic::Raw.name().as_bytes())
        .with("dlq.partition", record.partition.to_string().as_bytes())
        .with("dlq.offset", record.offset.to_string().as_bytes())
        .with("dlq.timestamp", record.logged_at_ms.to_string().as_bytes())
        .with("dlq.group", STORE_GROUP.as_bytes())
        .with("dlq.reason", letter.reason.as_str().as_bytes());
    if let Some(sqlstate) = &letter.sqlstate {
        headers = headers.with("dlq.sqlstate", sqlstate.as_bytes());
    }
    headers
        .with("dlq.error", letter.detail.as_bytes())
        .with("dlq.attempt", attempt.to_string().as_bytes())
        .with("dlq.first-at", first_at.as_bytes())
        .with("dlq.last-at", now_ms.as_bytes())
        .build()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pulsestream_shared::store::DeadReason;

    use super::*;

    #[test]
    fn a_dead_letter_keeps_its_headers_and_counts_its_deaths() {
        let own = Headers::builder().with("client", b"7").with("dlq.attempt", b"2");
        let record = Record {
            partition: 3,
            offset: 41,
            logged_at_ms: 5,
            key: None,
            value: Bytes::from_static(b"x"),
            headers: own.with("dlq.first-at", b"99").build(),
        };
        let letter = DeadLetter {
            partition: 3,
            offset: 41,
            client: None,
            id: None,
            reason: DeadReason::Malformed,
            sqlstate: None,
            detail: "value: not JSON".to_owned(),
        };
        let headers = headers(&letter, &record);
        let get = |name| headers.get(name).map(|value| std::str::from_utf8(value).unwrap());
        assert_eq!(get("client"), Some("7"));
        assert_eq!(get("dlq.offset"), Some("41"));
        assert_eq!(get("dlq.reason"), Some("malformed"));
        assert_eq!(get("dlq.attempt"), Some("3"));
        assert_eq!(get("dlq.first-at"), Some("99"));
        assert_eq!(get("dlq.sqlstate"), None);
        assert_eq!(headers.iter().filter(|(name, _)| *name == "dlq.attempt").count(), 1);
    }
}
