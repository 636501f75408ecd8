//! The index by id of a day, which it has not from the start.
//!
//! It would be written to everywhere at once, because ids are random: with fifty million rows in a day it took two
//! thirds of the rate (`0008_key_in_order_of_time.sql`). Made at once, by sorting, it costs a thirtieth of that. So a
//! day gets it
//! - when it is over, from maintenance: rows for it are few from then on;
//! - when a row comes whose id may be taken by a row of any day ([`super::unsure`]), from its writer. That day's rows
//!   are stored more slowly from then on, as if it had had the index from the start.
//!
//! Until then a question for one event reads the day's Bloom filters. Both are of the id's hash: half the size, and no
//! other index is taken for it. Nothing but speed depends on them; of several processes that want the index one makes
//! it, beside the writers (`CREATE INDEX CONCURRENTLY`).

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tokio::time::{sleep, timeout};

use super::PostgresStore;
use super::days::{name, parse};
use super::error::store_error;
use crate::store::StoreError;
use crate::store::settle::transient;

/// Advisory lock of whoever makes indexes, held by its session.
const IDS_LOCK: i64 = 0x7075_6c73_0004;

/// Between two tries to get the lock. To wait for it in a statement would be waited for by whoever has it: the
/// index is made when every older statement is over.
const LOCK_POLL: Duration = Duration::from_millis(50);

const UNINDEXED: &str = "
select day.relname::text
  from pg_inherits link join pg_class day on day.oid = link.inhrelid
 where link.inhparent = 'events'::regclass and not link.inhdetachpending
   and not exists (select from pg_index ids join pg_class named on named.oid = ids.indexrelid
                    where ids.indrelid = day.oid and ids.indisvalid
                      and named.relname = day.relname || '_ids')";

impl PostgresStore {
    /// Makes the index of every day; an error when that takes longer than a call may. It goes on then, and the next
    /// call finds more of them.
    pub(super) async fn index_all_ids(&self) -> Result<(), StoreError> {
        if self.index_ids_before(i64::MAX, self.config.call_timeout).await? {
            return Ok(());
        }
        Err(transient("ids are to be looked up, and the index for it is still being made"))
    }

    /// Makes the index of the days before this one. False when it is still at that after so long: it goes on.
    pub(super) async fn index_ids_before(
        &self,
        day: i64,
        patience: Duration,
    ) -> Result<bool, StoreError> {
        let mut session = self.session().await?;
        let wanted = self.within(unindexed(session.connection(), day)).await?;
        session.keep();
        if wanted.is_empty() {
            return Ok(true);
        }
        timeout(patience, self.make(day)).await.unwrap_or(Ok(false))
    }

    async fn make(&self, before: i64) -> Result<bool, StoreError> {
        // Of its own, because sorting a day takes longer than a statement may.
        let unbounded = [("statement_timeout", "0"), ("lock_timeout", "0")];
        let options = self.config.connect_options()?.options(unbounded);
        let mut connection = options.connect().await.map_err(store_error)?;
        let lock = "select pg_try_advisory_lock($1)";
        while !sqlx::query_scalar(lock)
            .bind(IDS_LOCK)
            .fetch_one(&mut connection)
            .await
            .map_err(store_error)?
        {
            sleep(LOCK_POLL).await;
        }
        // A task, because a connection that is dropped in the middle leaves a half-made index and no use of the work.
        let made = tokio::spawn(make_indexes(connection, before));
        made.await.map_err(|error| transient(&error.to_string()))?.map_err(store_error)?;
        Ok(true)
    }
}

async fn make_indexes(mut connection: PgConnection, before: i64) -> Result<(), sqlx::Error> {
    for day in unindexed(&mut connection, before).await? {
        let table = name(day);
        // The first is for one whose making was interrupted. The simple protocol: they run in no transaction.
        for sql in [
            format!("drop index concurrently if exists {table}_ids"),
            format!("create index concurrently {table}_ids on {table} (uuid_hash(id))"),
            // Without it the planner takes a hash for one of two hundred.
            format!("analyze {table}"),
        ] {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
        }
        tracing::info!(day = table, "index by id made");
    }
    connection.close().await
}

/// The days before this one that have no index by id.
async fn unindexed(connection: &mut PgConnection, before: i64) -> Result<Vec<i64>, sqlx::Error> {
    let tables: Vec<String> = sqlx::query_scalar(UNINDEXED).fetch_all(connection).await?;
    Ok(tables.iter().filter_map(|table| parse(table)).filter(|day| *day < before).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Unsure;
    use crate::store::postgres::PostgresConfig;
    use crate::store::postgres::days::day_of;
    use crate::store::postgres::inspect::ScratchDatabase;
    use crate::store::postgres::tests::{begin, on_scratch, open};
    use crate::store::{EventStore as _, StoreBatch};
    use crate::testing::store::{Copies, DAY_MS, NOW_MS, batch, rows};
    use crate::testing::wait_for;

    /// Days without the index, from the oldest on, counted from today.
    async fn without(store: &PostgresStore) -> Vec<i64> {
        let mut session = store.session().await.unwrap();
        let mut days = unindexed(session.connection(), i64::MAX).await.unwrap();
        session.keep();
        days.sort_unstable();
        days.iter().map(|day| day - day_of(NOW_MS)).collect()
    }

    #[tokio::test]
    async fn a_day_that_is_over_gets_the_index() {
        on_scratch(async |scratch| {
            let store = open(scratch).await;
            store.maintain(NOW_MS).await.unwrap();
            assert_eq!(without(&store).await, [0, 1, 2, 3, 4]);
            store.maintain(NOW_MS + DAY_MS).await.unwrap();
            assert_eq!(without(&store).await, [1, 2, 3, 4, 5]);
            store.close().await;
        })
        .await;
    }

    #[tokio::test]
    async fn a_row_whose_id_may_lie_anywhere_makes_the_index_of_every_day() {
        on_scratch(async |scratch| {
            let store = open(scratch).await;
            store.maintain(NOW_MS).await.unwrap();
            begin(&store).await;
            let sure = StoreBatch { group: "g", ..batch(0, 1, rows(0, [1])) };
            store.write(&sure, &Copies::default()).await.unwrap();
            assert_eq!(without(&store).await, [0, 1, 2, 3, 4]);
            let mut unsure = rows(1, [2]);
            unsure[0].unsure = Some(Unsure::Local);
            let unsure = StoreBatch { group: "g", ..batch(1, 2, unsure) };
            store.write(&unsure, &Copies::default()).await.unwrap();
            assert_eq!(without(&store).await, [0; 0]);
            store.close().await;
        })
        .await;
    }

    #[tokio::test]
    async fn an_index_whose_making_was_interrupted_is_made_anew() {
        on_scratch(async |scratch| {
            let store = open(scratch).await;
            store.maintain(NOW_MS).await.unwrap();
            store.index_all_ids().await.unwrap();
            let broken = "update pg_index set indisvalid = false
                           where indexrelid::regclass::text like 'events\\_%\\_ids'";
            scratch.execute(broken).await.unwrap();
            assert_eq!(without(&store).await.len(), 6);
            let other = open(scratch).await;
            let (one, two) = tokio::join!(store.index_all_ids(), other.index_all_ids());
            one.and(two).unwrap();
            assert_eq!(without(&store).await, [0; 0]);
            store.close().await;
            other.close().await;
        })
        .await;
    }

    #[tokio::test]
    async fn an_index_that_takes_longer_than_a_call_goes_on_by_itself() {
        on_scratch(async |scratch: &ScratchDatabase| {
            let hasty = PostgresConfig {
                call_timeout: Duration::from_millis(300),
                ..PostgresConfig::new(&scratch.url)
            };
            let store = PostgresStore::open(hasty).await.unwrap();
            store.maintain(NOW_MS).await.unwrap();
            // It is made when whoever reads already is done.
            let mut reader = store.pool.begin().await.unwrap();
            let read = "set transaction isolation level repeatable read; select from events";
            sqlx::raw_sql(read).execute(&mut *reader).await.unwrap();
            let error = store.index_all_ids().await.unwrap_err();
            assert!(error.is_retryable(), "{error}");
            assert_ne!(without(&store).await, [0; 0]);
            reader.rollback().await.unwrap();
            wait_for("the index", Duration::from_secs(30), async || {
                without(&store).await.is_empty()
            })
            .await;
            store.close().await;
        })
        .await;
    }
}
