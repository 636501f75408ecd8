//! Reading from the file: by place and by time.

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{Row, SqliteConnection};

use super::file::topic_number;
use super::places;
use super::record_batch::unpack;
use crate::log::{Bounds, Headers, Offset, Partition, ReadLimit, Record, Topic};

const READ: &str = "
SELECT offset, logged_at_ms, count, value, key, headers FROM records
WHERE topic = ?1 AND partition = ?2 AND offset >= coalesce(
    (SELECT max(offset) FROM records WHERE topic = ?1 AND partition = ?2 AND offset <= ?3), ?3)
ORDER BY offset LIMIT ?4";

const TIME_AT: &str = "
SELECT offset + coalesce(count, 1), logged_at_ms FROM records
WHERE topic = 0 AND partition = ? AND offset >= ? ORDER BY offset LIMIT 1";

/// Records from `from` on, in offset order, up to the limit.
pub(super) async fn read(
    readers: &SqlitePool,
    topic: Topic,
    partition: Partition,
    from: Offset,
    limit: ReadLimit,
) -> Result<Vec<Record>, sqlx::Error> {
    let mut connection = readers.acquire().await?;
    // One row more than records: the first may end before `from`.
    let most = i64::try_from(limit.records).unwrap_or(i64::MAX).saturating_add(1);
    let mut rows = sqlx::query(READ)
        .bind(topic_number(topic))
        .bind(i64::from(partition))
        .bind(from)
        .bind(most)
        .fetch(&mut *connection);
    let (mut read, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        for record in records(partition, &row)?.into_iter().filter(|record| record.offset >= from) {
            if bytes >= limit.bytes || read.len() >= limit.records {
                return Ok(read);
            }
            bytes += record.value.len();
            read.push(record);
        }
    }
    Ok(read)
}

/// The records of a row.
fn records(partition: Partition, row: &SqliteRow) -> Result<Vec<Record>, sqlx::Error> {
    let (offset, logged_at_ms) = (row.try_get(0)?, row.try_get(1)?);
    let count: Option<i64> = row.try_get(2)?;
    let value = Bytes::copy_from_slice(row.try_get(3)?);
    if let Some(count) = count {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let records = unpack(partition, offset, count, logged_at_ms, value);
        return records.ok_or_else(|| sqlx::Error::Protocol("a record batch is damaged".into()));
    }
    let key: Option<&[u8]> = row.try_get(4)?;
    let headers: &[u8] = row.try_get(5)?;
    Ok(vec![Record {
        partition,
        offset,
        logged_at_ms,
        key: key.map(Bytes::copy_from_slice),
        value,
        headers: Headers::from_bytes(Bytes::copy_from_slice(headers)),
    }])
}

/// Per partition of the events the first offset logged at or after a time; `next` where there is none.
pub(super) async fn locate(
    readers: &SqlitePool,
    logged_at_ms: i64,
) -> Result<Vec<Offset>, sqlx::Error> {
    let mut connection = readers.acquire().await?;
    let bounds = places::read(&mut connection, Topic::Raw).await?;
    let mut located = Vec::with_capacity(bounds.len());
    for (partition, bounds) in (0..).zip(bounds) {
        located.push(locate_in(&mut connection, partition, bounds, logged_at_ms).await?);
    }
    Ok(located)
}

/// Halves the partition: the writer never stamps a record earlier than the one before.
async fn locate_in(
    connection: &mut SqliteConnection,
    partition: Partition,
    bounds: Bounds,
    logged_at_ms: i64,
) -> Result<Offset, sqlx::Error> {
    let (mut low, mut high) = (bounds.first, bounds.next);
    while low < high {
        let middle = low + (high - low) / 2;
        let found: Option<(Offset, i64)> = sqlx::query_as(TIME_AT)
            .bind(i64::from(partition))
            .bind(middle)
            .fetch_optional(&mut *connection)
            .await?;
        match found {
            Some((end, at_ms)) if at_ms < logged_at_ms => low = end,
            _ => high = middle,
        }
    }
    Ok(low)
}
