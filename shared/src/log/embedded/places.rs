//! First and next offset of every partition: read from the file, kept in memory by the writer.

use std::sync::atomic::{AtomicI64, Ordering};

use sqlx::SqliteConnection;

use super::file::topic_number;
use crate::log::{Bounds, Offset, Partition, Topic};

// The two subqueries are one index seek each. A row without `count` is one record.
const BOUNDS: &str = "
SELECT next,
       (SELECT min(offset) FROM records r WHERE r.topic = p.topic AND r.partition = p.partition),
       (SELECT offset + coalesce(count, 1) FROM records r
        WHERE r.topic = p.topic AND r.partition = p.partition ORDER BY offset DESC LIMIT 1)
FROM places p WHERE topic = ? ORDER BY partition";

// Of each partition the last record: times of a partition never go back.
const LATEST: &str = "
SELECT max((SELECT logged_at_ms FROM records r
            WHERE r.topic = p.topic AND r.partition = p.partition ORDER BY offset DESC LIMIT 1))
FROM places p";

type Row = (i64, Option<i64>, Option<i64>);

/// Bounds of every partition of a topic, by partition number.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    topic: Topic,
) -> Result<Vec<Bounds>, sqlx::Error> {
    let rows: Vec<Row> =
        sqlx::query_as(BOUNDS).bind(topic_number(topic)).fetch_all(connection).await?;
    Ok(rows.into_iter().map(bounds).collect())
}

fn bounds((kept, first, end): Row) -> Bounds {
    let next = kept.max(end.unwrap_or(0));
    Bounds { first: first.unwrap_or(next), next }
}

/// When the latest record was logged, unix milliseconds; 0 in an empty log.
pub(super) async fn latest_ms(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    let latest: Option<i64> = sqlx::query_scalar(LATEST).fetch_one(connection).await?;
    Ok(latest.unwrap_or(0))
}

/// Bounds of both topics, as the writer knows them: at most a moment, or with another process's records
/// a tick, behind the file. `next` never goes back.
#[derive(Debug)]
pub(super) struct Places {
    raw: Vec<Place>,
    dlq: Vec<Place>,
}

#[derive(Debug, Default)]
struct Place {
    first: AtomicI64,
    next: AtomicI64,
}

impl Places {
    pub(super) fn new(partitions: u32) -> Self {
        let places = || (0..partitions).map(|_| Place::default()).collect();
        Self { raw: places(), dlq: places() }
    }

    /// `None` when there is no such partition.
    pub(super) fn get(&self, topic: Topic, partition: Partition) -> Option<Bounds> {
        let place = self.of(topic).get(usize::try_from(partition).ok()?)?;
        // `first` before `next`: a bound read late is a bound that was true.
        let first = place.first.load(Ordering::Acquire);
        Some(Bounds { first, next: place.next.load(Ordering::Acquire) })
    }

    pub(super) fn all_next(&self, topic: Topic) -> Vec<Offset> {
        self.of(topic).iter().map(|place| place.next.load(Ordering::Acquire)).collect()
    }

    pub(super) fn set_next(&self, topic: Topic, next: &[Offset]) {
        for (place, next) in self.of(topic).iter().zip(next) {
            place.next.fetch_max(*next, Ordering::AcqRel);
        }
    }

    /// Somebody read from the file that it reaches this far, before the writer could say so.
    pub(super) fn raise_next(&self, topic: Topic, partition: Partition, next: Offset) {
        let index = usize::try_from(partition).unwrap_or(usize::MAX);
        if let Some(place) = self.of(topic).get(index) {
            place.next.fetch_max(next, Ordering::AcqRel);
        }
    }

    pub(super) fn set(&self, topic: Topic, bounds: &[Bounds]) {
        for (place, bounds) in self.of(topic).iter().zip(bounds) {
            place.next.fetch_max(bounds.next, Ordering::AcqRel);
            place.first.store(bounds.first, Ordering::Release);
        }
    }

    fn of(&self, topic: Topic) -> &[Place] {
        match topic {
            Topic::Raw => &self.raw,
            Topic::Dlq => &self.dlq,
        }
    }
}
