//! Storing a batch: one transaction, in this order.
//!
//! 1. Compare and swap the offsets.
//! 2. Insert the rows ([`settle`] finds repeats and poison).
//! 3. Remove the letters whose replays are stored. Give the dead letters to the sink, then write them to
//!    their table ([`letters`]).
//! 4. Commit.
//!
//! The transaction has the file's write lock from its first statement, so nothing it has seen can change
//! under it. The sink is called with that lock held; it must be quick, and no writer of this file.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Sqlite, Transaction};

use super::error::{failure, store_error};
use super::rows::{chunks, compare, insert};
use super::{SqliteStore, letters};
use crate::clock::unix_us;
use crate::log::Topic;
use crate::store::replays::copies;
use crate::store::settle::{Failure, Settled, Shelf, Verdict, check_places, part_by_range, settle};
use crate::store::{
    DeadLetter, DeadLetterSink, Progress, StoreBatch, StoreError, StoreRow, Written,
};

const SWAP: &str = "
update consumer_offsets set epoch = ?, next = ?, last_id = ?, updated_at = ?
 where grp = ? and topic = ? and part = ? and epoch = ? and next = ?";

impl SqliteStore {
    pub(super) async fn write_batch(
        &self,
        batch: &StoreBatch<'_>,
        sink: &dyn DeadLetterSink,
    ) -> Result<Written, StoreError> {
        check_places(batch)?;
        let (rows, out_of_range) = part_by_range(&batch.rows, self.config.retention_days);
        let work = self.transact(batch, rows, &out_of_range, sink);
        Ok(self.bounded(work).await?)
    }

    async fn transact(
        &self,
        batch: &StoreBatch<'_>,
        rows: Vec<&StoreRow>,
        out_of_range: &[DeadLetter],
        sink: &dyn DeadLetterSink,
    ) -> Result<Written, Failure> {
        let replays = batch.rows.iter().any(|row| row.replay.is_some());
        let plain = batch.dead.is_empty() && out_of_range.is_empty() && !replays;
        if plain
            && self.expects_new.load(Ordering::Relaxed)
            && let Some(written) = self.store_new(batch, &rows).await?
        {
            return Ok(written);
        }
        let written = self.store_any(batch, rows, out_of_range, sink).await?;
        if let Written::Stored { duplicates, dead, .. } = &written {
            self.expects_new.store(*duplicates == 0 && dead.is_empty(), Ordering::Relaxed);
        }
        Ok(written)
    }

    /// Begins a transaction that has moved every place on from where the batch begins; `None` when one is
    /// not there.
    async fn begin(
        &self,
        batch: &StoreBatch<'_>,
    ) -> Result<Option<Transaction<'static, Sqlite>>, Failure> {
        let mut tx = self.writer.begin_with("begin immediate").await.map_err(failure)?;
        for (from, to) in batch.from.iter().zip(&batch.to) {
            if !swap(&mut tx, batch.group, from, to).await? {
                tx.rollback().await.map_err(failure)?;
                return Ok(None);
            }
        }
        Ok(Some(tx))
    }

    /// Stores a batch whose rows are all new. `None`: one is not, or is poison, and nothing is stored.
    ///
    /// Almost every batch is such a one, and this way it costs no savepoint, which copies each page it
    /// meets, and no look at what is there.
    async fn store_new(
        &self,
        batch: &StoreBatch<'_>,
        rows: &[&StoreRow],
    ) -> Result<Option<Written>, Failure> {
        let mut sorted = rows.to_vec();
        sorted.sort_unstable_by_key(|row| (row.event.id, row.client)); // neighbours share a page
        let Some(mut tx) = self.begin(batch).await? else { return Ok(Some(Written::Fenced)) };
        for chunk in chunks(&sorted) {
            match insert(&mut tx, chunk).await {
                Ok(count) if count == chunk.len() as u64 => {}
                Ok(_) | Err(Failure::Data(_)) => {
                    tx.rollback().await.map_err(failure)?;
                    return Ok(None);
                }
                Err(failure) => return Err(failure),
            }
        }
        tx.commit().await.map_err(failure)?;
        Ok(Some(Written::Stored { new: rows.len() as u64, duplicates: 0, dead: Vec::new() }))
    }

    async fn store_any(
        &self,
        batch: &StoreBatch<'_>,
        rows: Vec<&StoreRow>,
        out_of_range: &[DeadLetter],
        sink: &dyn DeadLetterSink,
    ) -> Result<Written, Failure> {
        let Some(mut tx) = self.begin(batch).await? else { return Ok(Written::Fenced) };
        let Settled { new, duplicates, dead: found } =
            settle(&mut Table { connection: &mut tx }, rows).await?;
        let dead = [&batch.dead, out_of_range, &found].concat();
        letters::remove_stored(&mut tx, &batch.rows, &dead).await?;
        let (mut dead, mut gone) = (dead, 0);
        if !dead.is_empty() {
            let copies = copies(sink, &dead).await?;
            (dead, gone) = letters::bury(&mut tx, batch, dead, &copies).await?;
        }
        tx.commit().await.map_err(failure)?;
        Ok(Written::Stored { new, duplicates: duplicates + gone, dead })
    }
}

async fn swap(
    connection: &mut SqliteConnection,
    group: &str,
    from: &Progress,
    to: &Progress,
) -> Result<bool, StoreError> {
    let query = sqlx::query(SWAP)
        .bind(to.epoch)
        .bind(to.next)
        .bind(to.last_id.map(|id| id.0))
        .bind(unix_us())
        .bind(group.to_owned())
        .bind(Topic::Raw.name())
        .bind(from.partition)
        .bind(from.epoch)
        .bind(from.next);
    Ok(query.execute(connection).await.map_err(store_error)?.rows_affected() == 1)
}

/// The table `events` within a transaction.
struct Table<'c> {
    connection: &'c mut SqliteConnection,
}

#[async_trait]
impl Shelf for Table<'_> {
    async fn put(&mut self, rows: &[&StoreRow]) -> Result<Vec<Verdict>, Failure> {
        let mut savepoint = self.connection.begin().await.map_err(failure)?;
        let mut verdicts = Vec::with_capacity(rows.len());
        for chunk in chunks(rows) {
            match put_chunk(&mut savepoint, chunk).await {
                Ok(found) => verdicts.extend(found),
                Err(error) => {
                    if matches!(error, Failure::Data(_)) {
                        savepoint.rollback().await.map_err(failure)?;
                    }
                    return Err(error);
                }
            }
        }
        savepoint.commit().await.map_err(failure)?;
        Ok(verdicts)
    }
}

/// Looks which rows are there, and inserts the others.
async fn put_chunk(
    connection: &mut SqliteConnection,
    rows: &[&StoreRow],
) -> Result<Vec<Verdict>, Failure> {
    let met = compare(connection, rows).await?;
    let fresh: Vec<&StoreRow> =
        rows.iter().zip(&met).filter(|(_, met)| met.is_none()).map(|(row, _)| *row).collect();
    for chunk in chunks(&fresh) {
        insert(connection, chunk).await?;
    }
    Ok(met.into_iter().map(|met| met.unwrap_or(Verdict::New)).collect())
}
