//! Storing a batch: one transaction, in this order.
//!
//! 1. Compare and swap the offsets. It locks their rows, so of a zombie and the present owner one waits
//!    for the other and then finds nothing to swap.
//! 2. Wait for a batch that must be written alone, and learn which rows are to be looked up in all days
//!    ([`unsure`]).
//! 3. Insert the rows ([`settle`] finds repeats and poison; one COPY when there is none).
//! 4. Remove the letters whose replays are stored. Give the dead letters to the sink, then write them to
//!    their table ([`letters`]).
//! 5. Commit.
//!
//! Before it, days that have no partition get one, and all days an index by id when rows are to be looked up in
//! all of them ([`super::ids`]), in transactions of their own.
//!
//! COPY is by far the cheapest way into the table, and stores all or nothing: one row whose key is taken fails
//! it. So while repeats come, rows are first looked up by their keys, which costs a sixth more; while none
//! come, they are not. A COPY that fails nevertheless is undone, and the rows are inserted by the statement that
//! can leave rows out.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use uuid::Uuid;

use super::copy::copy;
use super::encode::{COMPARE, COMPARE_IN_DAY, Columns, INSERT, Keys, PROBE};
use super::error::{failure, is_duplicate, store_error};
use super::unsure::{self, Doubts};
use super::{PostgresStore, Session, days, letters};
use crate::event::{ClientId, EventId};
use crate::log::Topic;
use crate::store::replays::copies;
use crate::store::settle::{
    Failure, Settled, Shelf, Verdict, check_places, part_by_range, settle, transient,
};
use crate::store::{DeadLetter, DeadLetterSink, StoreBatch, StoreError, StoreRow, Written};

const SWAP: &str = "
update consumer_offsets stored
   set epoch = given.to_epoch, next = given.to_next, last_id = given.to_last_id, updated_at = now()
  from unnest($3::int[], $4::uuid[], $5::bigint[], $6::uuid[], $7::bigint[], $8::uuid[])
    as given (part, from_epoch, from_next, to_epoch, to_next, to_last_id)
 where stored.grp = $1 and stored.topic = $2 and stored.part = given.part
   and stored.epoch = given.from_epoch and stored.next = given.from_next";

/// Whether rows are likely to be there already.
#[derive(Default)]
pub(super) struct Repeats {
    /// Batches to come that are looked up first.
    wary: AtomicU32,
}

/// A COPY in vain and what follows cost about as much as looking up ten batches that are all new.
const WARY_BATCHES: u32 = 10;

impl Repeats {
    fn expected(&self) -> bool {
        self.wary.load(Ordering::Relaxed) > 0
    }

    /// Learns from a batch that is stored. Writers that race lose a count: it is a guess.
    fn note(&self, met: bool) {
        let wary = self.wary.load(Ordering::Relaxed);
        let wary = if met { WARY_BATCHES } else { wary.saturating_sub(1) };
        self.wary.store(wary, Ordering::Relaxed);
    }
}

impl PostgresStore {
    pub(super) async fn write_batch(
        &self,
        batch: &StoreBatch<'_>,
        sink: &dyn DeadLetterSink,
    ) -> Result<Written, StoreError> {
        check_places(batch)?;
        let (rows, out_of_range) = part_by_range(&batch.rows, self.config.retention_days);
        let days: BTreeSet<i64> =
            rows.iter().map(|row| days::day_of(row.event.timestamp_ms)).collect();
        // Twice, because another process may have dropped a day that this one still believes in.
        for _ in 0..2 {
            self.ensure_days(&days).await?;
            match self.transact(batch, &rows, &out_of_range, sink).await {
                Err(Failure::NoDay) => self.days.forget(),
                outcome => return Ok(outcome?),
            }
        }
        Err(transient("a day's partition vanished while rows were written to it"))
    }

    async fn transact(
        &self,
        batch: &StoreBatch<'_>,
        rows: &[&StoreRow],
        out_of_range: &[DeadLetter],
        sink: &dyn DeadLetterSink,
    ) -> Result<Written, Failure> {
        loop {
            if self.newest_loss.suspects(rows) {
                self.index_all_ids().await?;
            }
            let mut session = self.session().await?;
            let work = self.transaction(&mut session, batch, rows, out_of_range, sink);
            let written = self.bounded(work).await?;
            session.keep();
            if let Some(written) = written {
                return Ok(written);
            }
        }
    }

    /// `None`: nothing was written, because of a loss of keys that was not known; it is known now.
    async fn transaction(
        &self,
        session: &mut Session,
        batch: &StoreBatch<'_>,
        rows: &[&StoreRow],
        out_of_range: &[DeadLetter],
        sink: &dyn DeadLetterSink,
    ) -> Result<Option<Written>, Failure> {
        let mut tx = session.connection().begin().await.map_err(failure)?;
        if swap(&mut tx, batch).await? < batch.from.len() as u64 {
            tx.rollback().await.map_err(failure)?;
            return Ok(Some(Written::Fenced));
        }
        let Some(doubts) = self.newest_loss.enter(&mut tx, rows).await? else {
            tx.rollback().await.map_err(failure)?;
            return Ok(None);
        };
        let repeats = self.repeats.expected();
        let mut table = Table { connection: &mut tx, doubts: &doubts, repeats, met: false };
        let Settled { new, duplicates, dead: found } = settle(&mut table, rows.to_vec()).await?;
        let met = table.met;
        let found_loss = unsure::remember(&mut tx, rows, &doubts).await?;
        let dead = [&batch.dead, out_of_range, &found].concat();
        letters::remove_stored(&mut tx, rows, &dead).await?;
        let (mut dead, mut gone) = (dead, 0);
        if !dead.is_empty() {
            let copies = copies(sink, &dead).await?;
            (dead, gone) = letters::bury(&mut tx, batch, dead, &copies).await?;
        }
        tx.commit().await.map_err(failure)?;
        found_loss.into_iter().for_each(|loss_ms| self.newest_loss.learn(loss_ms));
        self.repeats.note(met);
        Ok(Some(Written::Stored { new, duplicates: duplicates + gone, dead }))
    }
}

async fn swap(connection: &mut PgConnection, batch: &StoreBatch<'_>) -> Result<u64, StoreError> {
    let parts: Vec<i32> = batch.from.iter().map(|place| place.partition).collect();
    let from_epochs: Vec<Uuid> = batch.from.iter().map(|place| place.epoch).collect();
    let from_nexts: Vec<i64> = batch.from.iter().map(|place| place.next).collect();
    let to_epochs: Vec<Uuid> = batch.to.iter().map(|place| place.epoch).collect();
    let to_nexts: Vec<i64> = batch.to.iter().map(|place| place.next).collect();
    let to_ids: Vec<Option<Uuid>> =
        batch.to.iter().map(|place| place.last_id.map(|id| id.0)).collect();
    let query = sqlx::query(SWAP)
        .bind(batch.group)
        .bind(Topic::Raw.name())
        .bind(parts)
        .bind(from_epochs)
        .bind(from_nexts)
        .bind(to_epochs)
        .bind(to_nexts)
        .bind(to_ids);
    Ok(query.execute(connection).await.map_err(store_error)?.rows_affected())
}

/// The table `events` within a transaction.
struct Table<'c> {
    connection: &'c mut PgConnection,
    doubts: &'c Doubts,
    /// Rows are looked up before they are copied.
    repeats: bool,
    /// Some row met another with its key.
    met: bool,
}

#[async_trait]
impl Shelf for Table<'_> {
    async fn put(&mut self, rows: &[&StoreRow]) -> Result<Vec<Verdict>, Failure> {
        let way = if self.repeats { Way::CopyMissing } else { Way::Copy };
        let mut verdicts = self.attempt(rows, way).await?;
        if verdicts.is_none() {
            self.repeats = true;
            verdicts = self.attempt(rows, Way::Insert).await?;
        }
        // What met a row and then found none: its day was dropped in between. Another try tells.
        let verdicts = verdicts.ok_or(Failure::NoDay)?;
        self.met |= verdicts.iter().any(|verdict| *verdict != Verdict::New);
        Ok(verdicts)
    }
}

/// How rows get into the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Copy,
    /// As `Copy`, without those that are there.
    CopyMissing,
    /// Leaves out those that are there, or come to be there meanwhile.
    Insert,
}

impl Table<'_> {
    /// Stores the rows, or nothing: `None` when one met a row that this way cannot pass.
    async fn attempt(
        &mut self,
        rows: &[&StoreRow],
        way: Way,
    ) -> Result<Option<Vec<Verdict>>, Failure> {
        let mut savepoint = self.connection.begin().await.map_err(failure)?;
        let outcome = put(&mut savepoint, rows, self.doubts, way).await;
        match outcome {
            Ok(Some(_)) => savepoint.commit().await.map_err(failure)?,
            Ok(None) | Err(Failure::Data(_)) => savepoint.rollback().await.map_err(failure)?,
            Err(_) => {}
        }
        outcome
    }
}

async fn put(
    connection: &mut PgConnection,
    rows: &[&StoreRow],
    doubts: &Doubts,
    way: Way,
) -> Result<Option<Vec<Verdict>>, Failure> {
    let mut verdicts = vec![None; rows.len()];
    let unsure = places(rows, |_, row| doubts.concern(row));
    compare(connection, COMPARE, rows, &unsure, &mut verdicts).await?;

    let open = places(rows, |place, _| verdicts.get(place).is_some_and(Option::is_none));
    let there = match way {
        Way::CopyMissing => probe(connection, rows, &open).await?,
        Way::Copy | Way::Insert => HashSet::new(),
    };
    let mut fresh: Vec<_> = open.into_iter().filter(|place| !there.contains(place)).collect();
    fresh.sort_unstable_by_key(|place| rows.get(*place).map(|row| key(row)));
    if way == Way::Insert {
        insert(connection, rows, &fresh, &mut verdicts).await?;
    } else if !fresh.is_empty() {
        let picked = fresh.iter().filter_map(|place| rows.get(*place).copied());
        match copy(connection, picked).await {
            Ok(_) => fresh.iter().for_each(|place| judge(&mut verdicts, Some(place), Verdict::New)),
            Err(error) if is_duplicate(&error) => return Ok(None),
            Err(error) => return Err(failure(error)),
        }
    }

    let met = places(rows, |place, _| verdicts.get(place).is_some_and(Option::is_none));
    compare(connection, COMPARE_IN_DAY, rows, &met, &mut verdicts).await?;
    Ok(verdicts.into_iter().collect())
}

/// The order of the primary key. Rows are written in it: at the end of the index or near, two writers lock in the
/// same order, and the table itself is nearly in the order of time.
fn key(row: &StoreRow) -> (ClientId, i64, EventId) {
    (row.client, row.event.timestamp_ms, row.event.id)
}

/// Which of the rows have one with their key.
async fn probe(
    connection: &mut PgConnection,
    rows: &[&StoreRow],
    open: &[usize],
) -> Result<HashSet<usize>, Failure> {
    if open.is_empty() {
        return Ok(HashSet::new());
    }
    let keys = Keys::of(&pick(rows, open));
    let found = keys.bind(PROBE).fetch_all(connection).await.map_err(failure)?;
    let places = found.iter().map(|place| {
        let place = usize::try_from(*place - 1).ok();
        place.and_then(|place| open.get(place).copied())
    });
    Ok(places.flatten().collect())
}

fn places(rows: &[&StoreRow], mut wanted: impl FnMut(usize, &StoreRow) -> bool) -> Vec<usize> {
    let rows = rows.iter().enumerate();
    rows.filter(|(place, row)| wanted(*place, row)).map(|(place, _)| place).collect()
}

fn pick<'a>(rows: &[&'a StoreRow], places: &[usize]) -> Vec<&'a StoreRow> {
    places.iter().filter_map(|place| rows.get(*place).copied()).collect()
}

fn judge(verdicts: &mut [Option<Verdict>], place: Option<&usize>, verdict: Verdict) {
    if let Some(slot) = place.and_then(|place| verdicts.get_mut(*place)) {
        *slot = Some(verdict);
    }
}

async fn insert(
    connection: &mut PgConnection,
    rows: &[&StoreRow],
    fresh: &[usize],
    verdicts: &mut [Option<Verdict>],
) -> Result<(), Failure> {
    if fresh.is_empty() {
        return Ok(());
    }
    let picked = pick(rows, fresh);
    let query = Columns::of(&picked);
    let inserted = query.bind(INSERT).fetch_all(connection).await.map_err(failure)?;
    if inserted.len() == fresh.len() {
        fresh.iter().for_each(|place| judge(verdicts, Some(place), Verdict::New));
        return Ok(());
    }
    let key = |row: &PgRow| Ok((row.try_get("id")?, row.try_get("client_id")?));
    let inserted: HashSet<(Uuid, i32)> =
        inserted.iter().map(key).collect::<Result<_, sqlx::Error>>().map_err(failure)?;
    for (place, row) in fresh.iter().zip(picked) {
        if inserted.contains(&(row.event.id.0, row.client.0)) {
            judge(verdicts, Some(place), Verdict::New);
        }
    }
    Ok(())
}

/// Compares the rows at `met` with what is stored under their keys.
async fn compare(
    connection: &mut PgConnection,
    sql: &'static str,
    rows: &[&StoreRow],
    met: &[usize],
    verdicts: &mut [Option<Verdict>],
) -> Result<(), Failure> {
    if met.is_empty() {
        return Ok(());
    }
    let columns = Columns::of(&pick(rows, met));
    for row in columns.bind(sql).fetch_all(connection).await.map_err(failure)? {
        let place: i64 = row.try_get("place").map_err(failure)?;
        let same: bool = row.try_get("same").map_err(failure)?;
        let place = usize::try_from(place - 1).ok().and_then(|place| met.get(place));
        judge(verdicts, place, if same { Verdict::Duplicate } else { Verdict::Conflict });
    }
    Ok(())
}
