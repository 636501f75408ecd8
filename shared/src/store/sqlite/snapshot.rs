//! The newest values of a client in SQLite, of one moment with the places they were stored up to: a
//! reader's transaction sees the file as it was at its first statement.

use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;

use super::SqliteStore;
use super::progress;
use super::query::{device_ids, event, query_error};
use crate::event::DeviceId;
use crate::store::query::snapshot::{Gathered, Snapshot, SnapshotQuery};
use crate::store::query::{DEVICE_EVENTS, QueryError, rows_at_most};

const NEWEST: &str = "
select * from (
  select *, row_number() over (partition by event_type
                                   order by ts desc, pos desc, id desc) as place
    from (select * from events indexed by events_device
           where client_id = ? and device_id = ? and ts >= ?
           order by ts desc, pos desc, id desc
           limit ?))
 where place = 1";

impl SqliteStore {
    pub(super) async fn read_snapshot(
        &self,
        query: &SnapshotQuery,
    ) -> Result<Snapshot, QueryError> {
        let mut timed = self.timed().await?;
        let mut reading = timed.restart().await?.begin().await.map_err(query_error)?;
        let places = progress::read(&mut *reading, &query.group).await.map_err(query_error)?;
        let gathered = newest(&mut reading, query).await.map_err(query_error)?;
        reading.rollback().await.map_err(query_error)?;
        Ok(gathered.with(places))
    }
}

async fn newest<'q>(
    connection: &mut SqliteConnection,
    query: &'q SnapshotQuery,
) -> Result<Gathered<'q>, sqlx::Error> {
    let mut gathered = Gathered::new(query);
    let types = query.types();
    for device in devices(connection, query).await? {
        let select = sqlx::query(NEWEST)
            .bind(query.client.0)
            .bind(device.0)
            .bind(query.since_ms.saturating_mul(1_000))
            .bind(DEVICE_EVENTS);
        let mut values = select.try_map(event).fetch_all(&mut *connection).await?;
        values.retain(|event| types.as_ref().is_none_or(|types| types.contains(&event.event_type)));
        // A device without a value of those types counts as well.
        let rows =
            if values.is_empty() { vec![None] } else { values.into_iter().map(Some).collect() };
        for row in rows {
            if !gathered.take(row) {
                return Ok(gathered);
            }
        }
    }
    Ok(gathered)
}

async fn devices(
    connection: &mut SqliteConnection,
    query: &SnapshotQuery,
) -> Result<Vec<DeviceId>, sqlx::Error> {
    if query.devices.is_empty() {
        let most = rows_at_most(query.limit).saturating_add(1);
        return device_ids(connection, query.client, query.since_ms, None, most).await;
    }
    let mut devices = query.devices.clone();
    devices.sort_unstable();
    devices.dedup();
    Ok(devices)
}
