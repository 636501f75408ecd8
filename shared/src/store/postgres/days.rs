//! The days of the table `events`: made ahead, made when a late event needs one, dropped after retention.
//!
//! A day is a table `events_YYYYMMDD`. It is created alone and then attached, which lets writers go on
//! (`CREATE TABLE … PARTITION OF` would lock the whole table). It goes by `DETACH … CONCURRENTLY` and
//! then `DROP`, for the same reason; a detach that was interrupted is finished by the next maintenance.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use time::{Date, Month, OffsetDateTime};

use super::error::failure;
use super::{PostgresStore, Session, unsure};
use crate::store::settle::{DAY_MS, transient};
use crate::store::{Maintenance, StoreError};

/// Advisory lock of whoever creates or drops a day, held for one transaction.
const DAY_LOCK: i64 = 0x7075_6c73_0001;

/// Advisory lock of the one process that maintains.
const LEADER_LOCK: i64 = 0x7075_6c73_0002;

/// Vacuumed every half million rows and not every fifth of what there is: that fills in the BRIN indexes, and marks
/// pages that need not be looked at for an answer from an index.
const SETTINGS: &str =
    "autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000";

/// How long maintenance waits for an index that is made; it goes on by itself.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

const ATTACHED: &str = "
select day.relname::text, link.inhdetachpending
  from pg_inherits link join pg_class day on day.oid = link.inhrelid
 where link.inhparent = 'events'::regclass";

const DETACHED: &str = "
select day.relname::text
  from pg_class day join pg_class events on events.relnamespace = day.relnamespace
 where events.oid = 'events'::regclass and day.relkind = 'r' and day.relname like 'events\\_%'
   and not exists (select from pg_inherits link where link.inhrelid = day.oid)";

/// A UTC day, counted from 1970-01-01.
pub(super) fn day_of(unix_ms: i64) -> i64 {
    unix_ms.div_euclid(DAY_MS)
}

/// The days this process knows to have a partition; a guess that the database corrects.
#[derive(Default)]
pub(super) struct KnownDays(Mutex<BTreeSet<i64>>);

impl KnownDays {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget(&self) {
        self.lock().clear();
    }
}

/// The days of the table as the database tells.
#[derive(Default)]
struct Days {
    attached: BTreeSet<i64>,
    /// Detach was begun and not finished: takes no rows.
    leaving: BTreeSet<i64>,
}

impl PostgresStore {
    /// Makes sure that each day has a partition.
    pub(super) async fn ensure_days(&self, days: &BTreeSet<i64>) -> Result<(), StoreError> {
        if days.is_subset(&self.days.lock()) {
            return Ok(());
        }
        let mut session = self.session().await?;
        self.create_missing(&mut session, days).await?;
        session.keep();
        Ok(())
    }

    async fn create_missing(
        &self,
        session: &mut Session,
        days: &BTreeSet<i64>,
    ) -> Result<Days, StoreError> {
        let mut there = self.bounded(read(session.connection())).await?;
        for day in days {
            if there.leaving.contains(day) {
                return Err(transient("a day that is needed is just being removed"));
            }
            if there.attached.insert(*day) {
                self.within(create(session.connection(), *day)).await?;
                tracing::info!(day = name(*day), "partition made");
            }
        }
        self.days.lock().clone_from(&there.attached);
        Ok(there)
    }

    pub(super) async fn maintain_days(&self, now_ms: i64) -> Result<Maintenance, StoreError> {
        let mut session = self.session().await?;
        let leads: bool = self
            .within(
                sqlx::query_scalar("select pg_try_advisory_lock($1)")
                    .bind(LEADER_LOCK)
                    .fetch_one(session.connection()),
            )
            .await?;
        let maintenance = if leads {
            let maintenance = self.lead(&mut session, now_ms).await?;
            let unlock = sqlx::query("select pg_advisory_unlock($1)").bind(LEADER_LOCK);
            self.within(unlock.execute(session.connection())).await?;
            maintenance
        } else {
            let there = self.bounded(read(session.connection())).await?;
            Maintenance { horizon_ms: horizon(&there.attached, now_ms), dropped_days: 0 }
        };
        session.keep();
        Ok(maintenance)
    }

    /// The work of the leader. An error closes its session, and with it goes the lock.
    async fn lead(&self, session: &mut Session, now_ms: i64) -> Result<Maintenance, StoreError> {
        let today = day_of(now_ms);
        let wanted = (today - 1..=today + i64::from(self.config.days_ahead)).collect();
        // First what was left half-way, or a day that leaves could block its own re-creation.
        let there = self.bounded(read(session.connection())).await?;
        for day in there.leaving {
            self.alter(session, day, "finalize").await?;
        }
        let there = self.create_missing(session, &wanted).await?;
        let horizon_ms = horizon(&there.attached, now_ms);

        let kept_from = day_of(now_ms - i64::from(self.config.retention_days) * DAY_MS);
        for day in there.attached.range(..kept_from) {
            self.days.lock().remove(day);
            self.alter(session, *day, "concurrently").await?;
        }
        self.within(unsure::forget(session.connection(), kept_from * DAY_MS)).await?;
        let dropped_days = self.drop_detached(session, kept_from).await?;
        self.index_ids_before(today, HOUSEKEEPING).await?;
        Ok(Maintenance { horizon_ms, dropped_days })
    }

    async fn alter(&self, session: &mut Session, day: i64, how: &str) -> Result<(), StoreError> {
        let sql = format!("alter table events detach partition {} {how}", name(day));
        // The simple protocol: this statement refuses to run inside any transaction.
        self.within(sqlx::raw_sql(AssertSqlSafe(sql)).execute(session.connection())).await?;
        Ok(())
    }

    /// Drops the detached days past retention: those of this run, and any that a crash left behind.
    async fn drop_detached(
        &self,
        session: &mut Session,
        kept_from: i64,
    ) -> Result<u32, StoreError> {
        let query = sqlx::query_scalar::<_, String>(DETACHED);
        let tables = self.within(query.fetch_all(session.connection())).await?;
        let mut dropped = 0;
        for day in tables.iter().filter_map(|table| parse(table)).filter(|day| *day < kept_from) {
            if self.within(drop_day(session.connection(), day)).await? {
                tracing::info!(day = name(day), "partition dropped after retention");
                dropped += 1;
            }
        }
        Ok(dropped)
    }
}

async fn read(connection: &mut PgConnection) -> Result<Days, crate::store::settle::Failure> {
    let tables: Vec<(String, bool)> =
        sqlx::query_as(ATTACHED).fetch_all(connection).await.map_err(failure)?;
    let mut days = Days::default();
    for (table, leaving) in tables {
        if let Some(day) = parse(&table) {
            if leaving { &mut days.leaving } else { &mut days.attached }.insert(day);
        }
    }
    Ok(days)
}

/// Creates and attaches a day. A table of that name that stands alone (a drop that never came) is
/// attached again with the rows it has.
async fn create(connection: &mut PgConnection, day: i64) -> Result<(), sqlx::Error> {
    let table = name(day);
    let (from, to) = (date(day), date(day + 1));
    let mut tx = lock_days(connection).await?;
    if !is_attached(&mut tx, &table).await? {
        let create = format!(
            "create table if not exists {table} (like events including all) with ({SETTINGS})"
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *tx).await?;
        let attach = format!(
            "alter table events attach partition {table} \
             for values from ('{from} 00:00:00+00') to ('{to} 00:00:00+00')"
        );
        sqlx::raw_sql(AssertSqlSafe(attach)).execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// Drops a detached day, unless a late event had it attached again meanwhile.
async fn drop_day(connection: &mut PgConnection, day: i64) -> Result<bool, sqlx::Error> {
    let table = name(day);
    let mut tx = lock_days(connection).await?;
    let gone = !is_attached(&mut tx, &table).await?;
    if gone {
        let drop = format!("drop table if exists {table}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(gone)
}

async fn lock_days(
    connection: &mut PgConnection,
) -> Result<sqlx::Transaction<'_, sqlx::Postgres>, sqlx::Error> {
    let mut tx = connection.begin().await?;
    sqlx::query("select pg_advisory_xact_lock($1)").bind(DAY_LOCK).execute(&mut *tx).await?;
    Ok(tx)
}

async fn is_attached(connection: &mut PgConnection, table: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "select exists (select from pg_inherits where inhparent = 'events'::regclass
                                                  and inhrelid = to_regclass($1))",
    )
    .bind(table)
    .fetch_one(connection)
    .await
}

/// Until when rows find a partition without a hole from today on, unix milliseconds.
fn horizon(attached: &BTreeSet<i64>, now_ms: i64) -> i64 {
    let today = day_of(now_ms);
    let days = (today..).take_while(|day| attached.contains(day)).count();
    (today + i64::try_from(days).unwrap_or(0)) * DAY_MS
}

fn calendar(day: i64) -> Date {
    let seconds = day.saturating_mul(DAY_MS / 1_000);
    OffsetDateTime::from_unix_timestamp(seconds).map_or(Date::MAX, OffsetDateTime::date)
}

pub(super) fn name(day: i64) -> String {
    let date = calendar(day);
    format!("events_{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())
}

fn date(day: i64) -> String {
    let date = calendar(day);
    format!("{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())
}

/// The day of a table, or `None` when it is not one of ours.
pub(super) fn parse(table: &str) -> Option<i64> {
    let digits = table.strip_prefix("events_").filter(|digits| digits.len() == 8)?;
    let month = Month::try_from(digits.get(4..6)?.parse::<u8>().ok()?).ok()?;
    let (year, day) = (digits.get(..4)?.parse().ok()?, digits.get(6..)?.parse().ok()?);
    let date = Date::from_calendar_date(year, month, day).ok()?;
    Some(date.midnight().assume_utc().unix_timestamp().div_euclid(DAY_MS / 1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_and_the_name_of_its_table_tell_the_same() {
        for day in [0, 1, 59, 789, 11_016, 20_778, 2_932_895] {
            assert_eq!(parse(&name(day)), Some(day), "{}", name(day));
        }
        assert_eq!(name(20_778), "events_20261121");
        assert_eq!(parse("events_20261301"), None);
        assert_eq!(parse("events_archive1"), None);
    }

    #[test]
    fn the_horizon_ends_at_the_first_hole() {
        let now_ms = 100 * DAY_MS + 5;
        assert_eq!(horizon(&BTreeSet::from([99, 100, 101, 103]), now_ms), 102 * DAY_MS);
        assert_eq!(horizon(&BTreeSet::new(), now_ms), 100 * DAY_MS);
    }
}
