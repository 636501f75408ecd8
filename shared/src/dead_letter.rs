//! What a dead letter looks like on the log, and what it looks like when it comes back.
//!
//! | record | topic | headers beside the record's own |
//! |---|---|---|
//! | copy | `metrics.dlq` | `dlq.letter`; of this death: `dlq.topic, dlq.partition, dlq.offset, dlq.timestamp` (where, and when it was logged there), `dlq.group, dlq.reason, dlq.sqlstate, dlq.error`; `dlq.attempt` (deaths, this one included), `dlq.first-at, dlq.last-at` |
//! | replay | `metrics.raw` | `replay` (see [`codec`](crate::codec)), `dlq.letter, dlq.attempt, dlq.first-at` |
//!
//! Key and bytes are the record's. All headers are text; times are unix milliseconds. `dlq.letter` is
//! `PARTITION-OFFSET@EPOCH`, the place where the record died first: what its row in `dead_letters` is called
//! through all deaths. Headers of a letter are never the record's own, so a record that dies again carries
//! its latest death alone. A copy that no row names by its place means nothing.

mod copies;

pub use copies::{Copies, Found};

use crate::codec::REPLAY;
use crate::event::DeviceId;
use crate::log::{
    Headers, HeadersBuilder, NewRecord, Partition, Record, STORE_GROUP, Topic, partition_of,
};
use crate::store::{DeadLetter, LetterPlace};
use uuid::Uuid;

/// What the headers of a letter begin with.
pub const PREFIX: &str = "dlq.";

const LETTER: &str = "dlq.letter";

/// The record's key as a device, when it is one.
pub fn device_of(record: &Record) -> Option<DeviceId> {
    DeviceId::parse(std::str::from_utf8(record.key.as_deref()?).ok()?)
}

/// How often a record died before, as it says.
pub fn deaths_of(record: &Record) -> u32 {
    text(record, "dlq.attempt").and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The letter that a record is a copy or a replay of, as it says.
pub fn letter_of(record: &Record) -> Option<LetterPlace> {
    text(record, LETTER)?.parse().ok()
}

/// The letter a record of the log is a replay of; a record that only looks like one is none.
pub fn replayed(record: &Record) -> Option<LetterPlace> {
    (record.headers.get(REPLAY) == Some(b"1")).then(|| letter_of(record)).flatten()
}

/// The copy of a record that died at a place of `epoch`, for a topic of `partitions` partitions.
pub fn copy(
    letter: &DeadLetter,
    record: &Record,
    epoch: Uuid,
    partitions: u32,
    now_ms: i64,
) -> NewRecord {
    let now_ms = now_ms.to_string();
    let first_at = text(record, "dlq.first-at").unwrap_or(&now_ms);
    let here = LetterPlace { partition: record.partition, epoch, offset: record.offset };
    let name = letter.replay.as_deref().copied().unwrap_or(here);
    let mut headers = own(record)
        .with(LETTER, name.to_string().as_bytes())
        .with("dlq.topic", Topic::Raw.name().as_bytes())
        .with("dlq.partition", record.partition.to_string().as_bytes())
        .with("dlq.offset", record.offset.to_string().as_bytes())
        .with("dlq.timestamp", record.logged_at_ms.to_string().as_bytes())
        .with("dlq.group", STORE_GROUP.as_bytes())
        .with("dlq.reason", letter.reason.as_str().as_bytes());
    if let Some(sqlstate) = &letter.sqlstate {
        headers = headers.with("dlq.sqlstate", sqlstate.as_bytes());
    }
    let headers = headers
        .with("dlq.error", letter.detail.as_bytes())
        .with("dlq.attempt", deaths_of(record).saturating_add(1).to_string().as_bytes())
        .with("dlq.first-at", first_at.as_bytes())
        .with("dlq.last-at", now_ms.as_bytes());
    again(record, record.partition, headers.build(), partitions)
}

/// The replay of the letter that `copy` is a copy of, for a topic of `partitions` partitions.
pub fn replay(copy: &Record, letter: LetterPlace, partitions: u32) -> NewRecord {
    let mut headers = own(copy);
    if copy.headers.get(REPLAY).is_none() {
        headers = headers.with(REPLAY, b"1");
    }
    headers = headers
        .with(LETTER, letter.to_string().as_bytes())
        .with("dlq.attempt", deaths_of(copy).to_string().as_bytes());
    if let Some(first_at) = text(copy, "dlq.first-at") {
        headers = headers.with("dlq.first-at", first_at.as_bytes());
    }
    again(copy, letter.partition, headers.build(), partitions)
}

/// The same key and bytes under other headers; without a key in the partition it was in.
fn again(record: &Record, before: Partition, headers: Headers, partitions: u32) -> NewRecord {
    let key = record.key.clone();
    let partition = key.as_ref().map_or(before, |key| partition_of(key, partitions));
    NewRecord { partition, key, value: record.value.clone(), headers, outcomes: Vec::new() }
}

fn own(record: &Record) -> HeadersBuilder {
    let mut headers = Headers::builder();
    for (name, value) in record.headers.iter().filter(|(name, _)| !name.starts_with(PREFIX)) {
        headers.push(name, value);
    }
    headers
}

fn text<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    std::str::from_utf8(record.headers.get(name)?).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::codec;
    use crate::store::DeadReason;

    fn logged(new: NewRecord, offset: i64) -> Record {
        let NewRecord { partition, key, value, headers, .. } = new;
        Record { partition, offset, logged_at_ms: 5, key, value, headers }
    }

    fn dies(record: &Record, now_ms: i64) -> Record {
        let letter = DeadLetter {
            partition: record.partition,
            offset: record.offset,
            client: None,
            id: None,
            reason: DeadReason::Malformed,
            sqlstate: None,
            detail: "value: not JSON".to_owned(),
            replay: replayed(record).map(Box::new),
        };
        logged(copy(&letter, record, EPOCH, 12, now_ms), 900)
    }

    const EPOCH: Uuid = Uuid::from_u128(0xe);
    /// Where `poison` dies.
    const PLACE: LetterPlace = LetterPlace { partition: 3, epoch: EPOCH, offset: 41 };

    fn poison(key: Option<Bytes>) -> Record {
        let headers = Headers::builder().with("client", b"7").with("odd", b"\xff");
        let value = Bytes::from_static(b"\xff\x00 poison");
        Record { partition: 3, offset: 41, logged_at_ms: 5, key, value, headers: headers.build() }
    }

    fn own_of(record: &Record) -> Vec<(&str, Option<&[u8]>)> {
        let ours = |(name, _): &(&str, _)| !name.starts_with(PREFIX) && *name != REPLAY;
        record.headers.iter().filter(ours).collect()
    }

    #[test]
    fn a_letter_keeps_key_bytes_headers_and_name_through_any_number_of_replays() {
        for key in [None, Some(Bytes::from_static(b"no device"))] {
            let original = poison(key);
            let mut record = original.clone();
            for attempt in 1..=4 {
                let died = dies(&record, 100 + i64::from(attempt));
                assert_eq!(letter_of(&died), Some(PLACE));
                assert_eq!((deaths_of(&died), text(&died, "dlq.first-at")), (attempt, Some("101")));
                assert_eq!(text(&died, "dlq.offset"), Some(record.offset.to_string().as_str()));
                let replay = logged(replay(&died, PLACE, 12), 41 + i64::from(attempt));
                assert_eq!(replayed(&replay), Some(PLACE));
                assert_eq!(deaths_of(&replay), attempt);
                assert_eq!((&replay.key, &replay.value), (&original.key, &original.value));
                assert_eq!(own_of(&replay), own_of(&original));
                let names: Vec<_> = replay.headers.iter().map(|(name, _)| name).collect();
                let count = |wanted| names.iter().filter(|name| **name == wanted).count();
                assert_eq!((count(REPLAY), count("dlq.attempt")), (1, 1), "{names:?}");
                assert_eq!(text(&replay, "dlq.reason"), None, "its last death is history");
                record = replay;
            }
        }
    }

    #[test]
    fn a_record_without_key_comes_back_where_it_was() {
        assert_eq!(replay(&dies(&poison(None), 1), PLACE, 12).partition, 3);
    }

    #[test]
    fn what_only_looks_like_a_replay_is_none() {
        let named =
            |name: &[u8]| Headers::builder().with("replay", b"1").with(LETTER, name).build();
        let record = |headers| Record { headers, ..poison(None) };
        assert_eq!(replayed(&record(named(PLACE.to_string().as_bytes()))), Some(PLACE));
        for odd in [named(b"3-41"), named(b"\xff"), Headers::default()] {
            assert_eq!(replayed(&record(odd)), None);
        }
        assert_eq!(replayed(&dies(&poison(None), 1)), None, "a copy is no replay");
    }

    #[test]
    fn a_replayed_event_is_one_that_is_not_shown_live() {
        let event = crate::testing::store::row(3, 0, 1).event;
        let accepted = codec::Accepted {
            event,
            client: crate::event::ClientId(7),
            received_at_us: 5,
            unsure: None,
            replay: false,
        };
        let record = logged(codec::encode(&accepted, 12), 41);
        let died = dies(&record, 1);
        let replay = logged(replay(&died, letter_of(&died).unwrap(), 12), 42);
        assert_eq!(replay.partition, record.partition, "one device has one partition");
        assert_eq!(codec::decode(&replay), Ok(codec::Accepted { replay: true, ..accepted }));
    }
}
