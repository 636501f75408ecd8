//! The newest values of a client on PostgreSQL, of one moment with the places they were stored up to.
//!
//! Two statements in one transaction that sees what was committed before its first. A device is looked
//! through as far as [`DEVICE_EVENTS`] in the order of the index, whatever types are asked for: without an
//! index by type a rare one would read all that a device has.

use futures_util::TryStreamExt as _;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};

use super::PostgresStore;
use super::encode::from_ms;
use super::progress;
use super::query::{DEVICES, event};
use crate::store::StoredEvent;
use crate::store::query::snapshot::{Gathered, Snapshot, SnapshotQuery};
use crate::store::query::{DEVICE_EVENTS, QueryError, rows_at_most};

const BEGIN: &str = "begin transaction isolation level repeatable read read only";

const LISTED: &str = "
with device (device_id, number) as (
  select distinct listed, $4 from unnest($3::uuid[]) as listed)";

/// A device without a value of those types is a row of nulls, so that the devices that were looked through
/// count as well. `limit (select …)`: as for the newest values of a page of devices.
const NEWEST: &str = "
select newest.*, newest.metadata::text as map
  from device
  left join lateral (
       select distinct on (event_type) *
         from (select *
                 from events
                where client_id = $1 and ts >= $2 and device_id = device.device_id
                order by ts desc, pos desc, id desc
                limit (select $5)) looked
        where $6::text[] is null or event_type = any($6)
        order by event_type, ts desc, pos desc, id desc) newest on true
 limit $7";

impl PostgresStore {
    pub(super) async fn read_snapshot(
        &self,
        query: &SnapshotQuery,
    ) -> Result<Snapshot, QueryError> {
        let mut session = self.query_session().await?;
        let connection = session.connection();
        self.in_time(sqlx::raw_sql(BEGIN).execute(&mut *connection)).await?;
        let places = self.in_time(progress::read(&mut *connection, &query.group)).await?;
        let snapshot = self.in_time(newest(connection, query)).await?.with(places);
        // Of one that was cut, rows are still on their way: its connection is given up.
        if snapshot.complete {
            self.in_time(sqlx::raw_sql("commit").execute(session.connection())).await?;
            session.keep();
        }
        Ok(snapshot)
    }
}

async fn newest<'q>(
    connection: &mut PgConnection,
    query: &'q SnapshotQuery,
) -> Result<Gathered<'q>, sqlx::Error> {
    let most_rows = rows_at_most(query.limit).saturating_add(1);
    let most_devices = i32::try_from(most_rows).unwrap_or(i32::MAX);
    let mut select = QueryBuilder::<Postgres>::new("");
    select.push(if query.devices.is_empty() { DEVICES } else { LISTED }).push(NEWEST);
    let select = select.build().bind(query.client.0).bind(from_ms(query.since_ms));
    let select = if query.devices.is_empty() {
        select.bind(None::<uuid::Uuid>)
    } else {
        select.bind(query.devices.iter().map(|device| device.0).collect::<Vec<_>>())
    };
    let select = select.bind(most_devices).bind(DEVICE_EVENTS).bind(query.types()).bind(most_rows);
    let mut rows = select.try_map(value).fetch(connection);
    let mut gathered = Gathered::new(query);
    while let Some(row) = rows.try_next().await? {
        if !gathered.take(row) {
            break;
        }
    }
    Ok(gathered)
}

fn value(row: PgRow) -> Result<Option<StoredEvent>, sqlx::Error> {
    let there = row.try_get::<Option<uuid::Uuid>, _>("id")?.is_some();
    there.then(|| event(row)).transpose()
}
