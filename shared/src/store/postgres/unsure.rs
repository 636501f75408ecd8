//! Ids that may be taken by a row of another day: whose rows are looked up in all days, and which batches may
//! be written side by side meanwhile.
//!
//! Of two records with one id the one that is written second must find the first. A mark on one of them is
//! not enough, since the marked one may be written first. So:
//!
//! - An id accepted under a **local** lock is written to `unsure_keys`, and rows that come within a day of
//!   it are looked up there. A batch with such a row is written **alone**: no other batch is between its look
//!   and its commit.
//! - A time at which Redis **forgot** its keys is written to `key_losses`. Rows accepted before that time and
//!   written after are **late**: they are looked up in all days, and their batch is written alone, because
//!   batches with rows accepted since (which are marked with that time and looked up too) go side by side.
//! - A **replayed** dead letter comes when nobody keeps its key any more, and another event may have been
//!   accepted under its id. It is looked up in all days, and its batch is written alone.
//!
//! Alone and side by side is an advisory lock, exclusive or shared. Which of them a batch needs depends on
//! the newest loss, so a process that finds a loss it did not know of begins the transaction anew.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::encode::{from_ms, from_us};
use super::error::failure;
use crate::cache::LOCK_LIFE;
use crate::codec::Unsure;
use crate::event::{ClientId, EventId};
use crate::store::StoreRow;
use crate::store::settle::Failure;

/// Advisory lock of every batch until it commits: exclusive when it must be alone, else shared.
const BATCH_LOCK: i64 = 0x7075_6c73_0003;

/// By how much the clocks of gateways and Redis may differ, milliseconds.
const SKEW_MS: i64 = 300_000;

const NEWEST: &str = "
select (extract(epoch from (select max(at) from key_losses)) * 1000)::bigint as loss_ms,
       (extract(epoch from (select max(accepted_at) from unsure_keys)) * 1000)::bigint as local_ms";

/// One look-up a row; `offset 0` keeps the planner from reading the whole table instead.
const LOOK_UP: &str = "
select given.id, given.client_id
  from unnest($1::uuid[], $2::int[]) as given (id, client_id)
 cross join lateral (
       select from unsure_keys where id = given.id and client_id = given.client_id offset 0) taken";

const REMEMBER: &str = "
insert into unsure_keys (id, client_id, accepted_at)
select * from unnest($1::uuid[], $2::int[], $3::timestamptz[])
on conflict do nothing";

const REMEMBER_LOSS: &str = "insert into key_losses (at) values ($1) on conflict do nothing";

const FORGET: &str = "delete from unsure_keys where accepted_at < $1";

/// The newest loss this process knows, unix milliseconds.
pub(super) struct NewestLoss(AtomicI64);

impl Default for NewestLoss {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN))
    }
}

/// What must be known of a batch's rows beside their marks.
pub(super) struct Doubts {
    loss_ms: i64,
    /// Keys of the batch that stand in `unsure_keys`.
    taken: HashSet<(EventId, ClientId)>,
}

impl Doubts {
    /// True when a row with the id of this one may lie in any day.
    pub(super) fn concern(&self, row: &StoreRow) -> bool {
        is_doubtful(row, self.loss_ms) || self.taken.contains(&(row.event.id, row.client))
    }
}

impl NewestLoss {
    /// Waits until the batch may be written, alone or beside others, until the end of its transaction.
    /// `None`: that was decided without a loss that is known now; begin anew.
    pub(super) async fn enter(
        &self,
        connection: &mut PgConnection,
        rows: &[&StoreRow],
    ) -> Result<Option<Doubts>, Failure> {
        let known_ms = self.0.load(Ordering::SeqCst);
        let shared = if must_be_alone(rows, known_ms) { "" } else { "_shared" };
        // One round trip; the second statement sees what was committed when the first had the lock.
        let enter = format!("select pg_advisory_xact_lock{shared}({BATCH_LOCK});{NEWEST}");
        let enter = sqlx::raw_sql(AssertSqlSafe(enter));
        let answers = enter.fetch_all(&mut *connection).await.map_err(failure)?;
        let newest = |name| -> Result<i64, Failure> {
            let newest = answers.last().map(|row| row.try_get::<Option<i64>, _>(name));
            Ok(newest.transpose().map_err(failure)?.flatten().unwrap_or(i64::MIN))
        };
        let (loss_ms, local_ms) = (newest("loss_ms")?, newest("local_ms")?);
        if loss_ms > known_ms {
            self.learn(loss_ms);
            return Ok(None);
        }
        let taken = look_up(connection, rows, local_ms).await?;
        Ok(Some(Doubts { loss_ms: known_ms, taken }))
    }

    /// True when rows are to be looked up in all days, as far as can be told before [`Self::enter`]. What that
    /// finds in `unsure_keys` besides came after rows for which this was true.
    pub(super) fn suspects(&self, rows: &[&StoreRow]) -> bool {
        let loss_ms = self.0.load(Ordering::SeqCst);
        rows.iter().any(|row| is_doubtful(row, loss_ms))
    }

    /// Takes note of a loss that is committed.
    pub(super) fn learn(&self, loss_ms: i64) {
        self.0.fetch_max(loss_ms, Ordering::SeqCst);
    }
}

fn must_be_alone(rows: &[&StoreRow], loss_ms: i64) -> bool {
    rows.iter().any(|row| match row.unsure {
        _ if row.replay.is_some() => true,
        Some(Unsure::Local) => true,
        Some(Unsure::Forgotten { at_ms }) if at_ms == loss_ms => false,
        Some(Unsure::Forgotten { at_ms }) => at_ms > loss_ms || is_late(row, loss_ms),
        None => is_late(row, loss_ms),
    })
}

/// By itself, whatever is written down.
fn is_doubtful(row: &StoreRow, loss_ms: i64) -> bool {
    row.unsure.is_some() || row.replay.is_some() || is_late(row, loss_ms)
}

/// Accepted before Redis forgot its key.
fn is_late(row: &StoreRow, loss_ms: i64) -> bool {
    row.received_at_us.div_euclid(1_000) <= loss_ms.saturating_add(SKEW_MS)
}

/// Which keys of the batch were accepted under a local lock, of which the newest was at `local_ms`.
async fn look_up(
    connection: &mut PgConnection,
    rows: &[&StoreRow],
    local_ms: i64,
) -> Result<HashSet<(EventId, ClientId)>, Failure> {
    let life_ms = i64::try_from(LOCK_LIFE.as_millis()).unwrap_or(i64::MAX);
    let until_ms = local_ms.saturating_add(life_ms).saturating_add(SKEW_MS);
    let within_a_day = |row: &&&StoreRow| row.received_at_us.div_euclid(1_000) <= until_ms;
    let rows = rows.iter().filter(within_a_day);
    let (ids, clients): (Vec<Uuid>, Vec<i32>) =
        rows.map(|row| (row.event.id.0, row.client.0)).unzip();
    if ids.is_empty() {
        return Ok(HashSet::new());
    }
    let found = sqlx::query(LOOK_UP).bind(ids).bind(clients).fetch_all(connection).await;
    let key = |row: &PgRow| -> Result<_, sqlx::Error> {
        Ok((EventId(row.try_get("id")?), ClientId(row.try_get("client_id")?)))
    };
    found.and_then(|found| found.iter().map(key).collect()).map_err(failure)
}

/// Writes down what later batches must know of these rows. Answers the newest loss among them.
pub(super) async fn remember(
    connection: &mut PgConnection,
    rows: &[&StoreRow],
    doubts: &Doubts,
) -> Result<Option<i64>, Failure> {
    let local = rows.iter().filter(|row| row.unsure == Some(Unsure::Local));
    let keys = local.map(|row| (row.event.id.0, (row.client.0, from_us(row.received_at_us))));
    let (ids, (clients, times)): (Vec<_>, (Vec<_>, Vec<_>)) = keys.unzip();
    if !ids.is_empty() {
        let remember = sqlx::query(REMEMBER).bind(ids).bind(clients).bind(times);
        remember.execute(&mut *connection).await.map_err(failure)?;
    }
    let losses = rows.iter().filter_map(|row| match row.unsure {
        Some(Unsure::Forgotten { at_ms }) => Some(at_ms),
        _ => None,
    });
    let newest = losses.max().filter(|at_ms| *at_ms > doubts.loss_ms);
    if let Some(at_ms) = newest {
        let remember = sqlx::query(REMEMBER_LOSS).bind(from_ms(at_ms));
        remember.execute(connection).await.map_err(failure)?;
    }
    Ok(newest)
}

/// Removes keys accepted before the oldest day that is kept.
pub(super) async fn forget(
    connection: &mut PgConnection,
    before_ms: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(FORGET).bind(from_ms(before_ms)).execute(connection).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::store::{NOW_MS, row};

    fn alone(unsure: Option<Unsure>, received_at_ms: i64) -> bool {
        let mut row = row(0, 0, 1);
        (row.unsure, row.received_at_us) = (unsure, received_at_ms * 1_000);
        must_be_alone(&[&row], NOW_MS)
    }

    #[test]
    fn alone_is_written_what_a_batch_beside_it_could_miss() {
        let (before, after) = (NOW_MS - 1, NOW_MS + SKEW_MS + 1);
        let forgotten = |at_ms| Some(Unsure::Forgotten { at_ms });
        assert!(alone(Some(Unsure::Local), before) && alone(Some(Unsure::Local), after));
        assert!(alone(None, before) && !alone(None, after));
        // Accepted since the loss, whatever the gateway's clock says.
        assert!(!alone(forgotten(NOW_MS), before) && !alone(forgotten(NOW_MS), after));
        // Of the loss before, and of one that nobody wrote down yet.
        assert!(alone(forgotten(NOW_MS - 5), before) && !alone(forgotten(NOW_MS - 5), after));
        assert!(alone(forgotten(NOW_MS + 5), after));
    }
}
