//! Questions about stored events in SQLite.
//!
//! SQLite has no timeout for a statement: a progress handler ends one whose time is over. And it keeps
//! no statistics unless told to, so each statement names the index it is meant for.

use std::ops::DerefMut;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::error::{failure, store_error};
use super::{SqliteStore, letters, progress};
use crate::event::{ClientId, DeviceId, EventId};
use crate::log::STORE_GROUP;
use crate::store::query::letters::judged_page;
use crate::store::query::walk::{Slice, Walk};
use crate::store::query::{
    Bucket, DEVICE_EVENTS, DeviceState, EventQuery, EventsQuery, Found, HUGE, Latest, LetterKey,
    LettersQuery, Order, Page, QueryError, SCALE, SeriesQuery, Snapshot, SnapshotQuery, SortKey,
    StoredEvent, mean, page_of, rows_at_most,
};
use crate::store::{Letter, LetterState};

/// Instructions of SQLite's machine between two looks at the clock; some hundred microseconds.
const INSTRUCTIONS: i32 = 20_000;

const EVENT: &str = "select * from events where id = ? and client_id = ?";

const DEAD_LETTER: &str = "
select reason, detail
  from dead_letters
 where id = ? and client_id = ?
 order by created_at desc
 limit 1";

/// A loose index scan: each step asks the index for the first device behind the last one.
const DEVICES: &str = "
with recursive device (device_id, number) as (
  select * from (
    select device_id, 1
      from events indexed by events_device
     where client_id = ?1 and device_id > ?3 and ts >= ?2
     order by device_id
     limit 1)
  union all
  select (select device_id
            from events indexed by events_device
           where client_id = ?1 and device_id > device.device_id and ts >= ?2
           order by device_id
           limit 1), number + 1
    from device
   where number < ?4 and device_id is not null)
select device_id from device where device_id is not null";

/// The newest value of each type of one device.
const LATEST: &str = "
select event_type, value, ts
  from (select *, row_number() over (partition by event_type
                                         order by ts desc, pos desc, id desc) as place
          from (select event_type, value, ts, pos, id
                  from events indexed by events_device
                 where client_id = ? and device_id = ? and ts >= ?
                 order by ts desc, pos desc, id desc
                 limit ?))
 where place = 1
 order by ts desc, pos desc, id desc";

#[async_trait]
impl EventQuery for SqliteStore {
    async fn events(&self, query: &EventsQuery) -> Result<Page<StoredEvent, SortKey>, QueryError> {
        let mut timed = self.timed().await?;
        let mut walk = Walk::new(query, self.config.query_timeout / 2);
        while let Some(slice) = walk.next_slice() {
            let started = Instant::now();
            let mut select = select_events(query, slice);
            let rows = select.build().try_map(event);
            match rows.fetch_all(timed.restart().await?).await.map_err(query_error) {
                Ok(rows) => walk.read(slice, rows, started.elapsed()),
                Err(QueryError::TooSlow) if walk.has_come_forward() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(walk.into_page())
    }

    async fn event(&self, client: ClientId, id: EventId) -> Result<Option<Found>, QueryError> {
        let mut timed = self.timed().await?;
        let stored = sqlx::query(EVENT).bind(id.0).bind(client.0).try_map(event);
        let stored = stored.fetch_optional(timed.restart().await?).await.map_err(query_error)?;
        if let Some(event) = stored {
            return Ok(Some(Found::Stored(Box::new(event))));
        }
        let dead = sqlx::query_as(DEAD_LETTER).bind(id.0).bind(client.0);
        let dead = dead.fetch_optional(timed.restart().await?).await.map_err(query_error)?;
        Ok(dead.map(|(reason, detail)| Found::Dead { reason, detail }))
    }

    async fn devices(
        &self,
        client: ClientId,
        since_ms: i64,
        after: Option<DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceState, DeviceId>, QueryError> {
        let mut timed = self.timed().await?;
        let most = rows_at_most(limit).saturating_add(1);
        let devices = device_ids(timed.restart().await?, client, since_ms, after, most);
        let devices = page_of(devices.await.map_err(query_error)?, limit, |id| *id);
        let mut rows = Vec::with_capacity(devices.rows.len());
        let connection = timed.restart().await?;
        for device in devices.rows {
            rows.extend(latest(connection, client, device, since_ms).await?);
        }
        Ok(Page { rows, next: devices.next })
    }

    async fn device(
        &self,
        client: ClientId,
        device: DeviceId,
        since_ms: i64,
    ) -> Result<Option<DeviceState>, QueryError> {
        let mut timed = self.timed().await?;
        latest(timed.restart().await?, client, device, since_ms).await
    }

    async fn series(&self, query: &SeriesQuery) -> Result<Vec<Bucket>, QueryError> {
        let mut timed = self.timed().await?;
        let mut select = select_series(query);
        let select = select.build().try_map(bucket);
        select.fetch_all(timed.restart().await?).await.map_err(query_error)
    }

    async fn letters(
        &self,
        query: &LettersQuery,
    ) -> Result<Page<(Letter, LetterState), LetterKey>, QueryError> {
        let mut timed = self.timed().await?;
        let places = progress::read(timed.restart().await?, STORE_GROUP).await;
        let places = places.map_err(query_error)?;
        let select = letters::newest(&query.own(), query.after, query.rows());
        let rows = select.try_map(letters::letter).fetch_all(timed.restart().await?).await;
        Ok(judged_page(rows.map_err(query_error)?, query.limit, &places))
    }

    async fn snapshot(&self, query: &SnapshotQuery) -> Result<Snapshot, QueryError> {
        self.read_snapshot(query).await
    }
}

impl SqliteStore {
    pub(super) async fn timed(&self) -> Result<Timed, QueryError> {
        let connection = self.queries.acquire().await.map_err(store_error)?;
        Ok(Timed { connection, time: self.config.query_timeout })
    }
}

/// A connection whose statements end when their time is over.
pub(super) struct Timed {
    connection: PoolConnection<Sqlite>,
    time: Duration,
}

impl Timed {
    /// Gives what follows its full time.
    pub(super) async fn restart(&mut self) -> Result<&mut SqliteConnection, QueryError> {
        let connection = self.connection.deref_mut();
        let end = Instant::now() + self.time;
        let mut handle = connection.lock_handle().await.map_err(query_error)?;
        handle.set_progress_handler(INSTRUCTIONS, move || Instant::now() < end);
        drop(handle);
        Ok(connection)
    }
}

pub(super) fn query_error(error: sqlx::Error) -> QueryError {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    // INTERRUPT: by our progress handler.
    if code.as_deref() == Some("9") {
        return QueryError::TooSlow;
    }
    QueryError::Store(failure(error).into())
}

/// Ids of devices behind `after`.
pub(super) async fn device_ids(
    connection: &mut SqliteConnection,
    client: ClientId,
    since_ms: i64,
    after: Option<DeviceId>,
    most: i64,
) -> Result<Vec<DeviceId>, sqlx::Error> {
    // An empty blob comes before every id.
    let after = after.map(|device| device.0.into_bytes().to_vec()).unwrap_or_default();
    let select =
        sqlx::query_scalar(DEVICES).bind(client.0).bind(to_us(since_ms)).bind(after).bind(most);
    let ids: Vec<uuid::Uuid> = select.fetch_all(connection).await?;
    Ok(ids.into_iter().map(DeviceId).collect())
}

async fn latest(
    connection: &mut SqliteConnection,
    client: ClientId,
    device: DeviceId,
    since_ms: i64,
) -> Result<Option<DeviceState>, QueryError> {
    let select = sqlx::query(LATEST)
        .bind(client.0)
        .bind(device.0)
        .bind(to_us(since_ms))
        .bind(DEVICE_EVENTS)
        .try_map(|row: SqliteRow| {
            Ok(Latest {
                event_type: row.try_get("event_type")?,
                value: row.try_get("value")?,
                timestamp_ms: to_ms(row.try_get("ts")?),
            })
        });
    let latest = select.fetch_all(connection).await.map_err(query_error)?;
    Ok((!latest.is_empty()).then_some(DeviceState { device, latest }))
}

fn select_events(query: &EventsQuery, slice: Slice) -> QueryBuilder<Sqlite> {
    let (than, direction) = match query.order {
        Order::Ascending => (">", "asc"),
        Order::Descending => ("<", "desc"),
    };
    let mut sql = QueryBuilder::new("select * from events indexed by ");
    push_filter(&mut sql, query.client, query.device);
    sql.push(" and ts >= ").push_bind(to_us(slice.span.from_ms));
    sql.push(" and ts < ").push_bind(to_us(slice.span.to_ms));
    if let Some(event_type) = &query.event_type {
        sql.push(" and event_type = ").push_bind(event_type.clone());
    }
    if let Some(after) = query.after {
        sql.push(format_args!(" and (ts, pos, id) {than} ("));
        sql.push_bind(to_us(after.timestamp_ms)).push(", ");
        sql.push_bind(after.pos).push(", ").push_bind(after.id.0).push(")");
    }
    sql.push(format_args!(" order by ts {direction}, pos {direction}, id {direction} limit "));
    sql.push_bind(rows_at_most(slice.limit));
    sql
}

fn select_series(query: &SeriesQuery) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new("select ts / 1000 / ");
    sql.push_bind(query.step_ms).push(" * ").push_bind(query.step_ms);
    sql.push(format_args!(
        " as start, count(*) as count, min(value) as min, max(value) as max,
           sum(case when abs(value) < {HUGE:e} then value else 0.0 end) as small,
           sum(case when abs(value) < {HUGE:e} then 0.0 else value / {SCALE:e} end) as huge
      from events indexed by "
    ));
    push_filter(&mut sql, query.client, query.device);
    sql.push(" and ts >= ").push_bind(to_us(query.span.from_ms));
    sql.push(" and ts < ").push_bind(to_us(query.span.to_ms));
    sql.push(" and event_type = ").push_bind(query.event_type.clone());
    sql.push(" group by start order by start");
    sql
}

/// The index, and the part of the filter that decides which one.
fn push_filter(sql: &mut QueryBuilder<Sqlite>, client: ClientId, device: Option<DeviceId>) {
    sql.push(if device.is_some() { "events_device" } else { "events_ts" });
    sql.push(" where client_id = ").push_bind(client.0);
    if let Some(device) = device {
        sql.push(" and device_id = ").push_bind(device.0);
    }
}

/// A row of `events`.
pub(super) fn event(row: SqliteRow) -> Result<StoredEvent, sqlx::Error> {
    Ok(StoredEvent {
        client: ClientId(row.try_get("client_id")?),
        id: EventId(row.try_get("id")?),
        device: DeviceId(row.try_get("device_id")?),
        event_type: row.try_get("event_type")?,
        value: row.try_get("value")?,
        timestamp_ms: to_ms(row.try_get("ts")?),
        metadata: row.try_get("metadata")?,
        received_at_us: row.try_get("received_at")?,
        pos: row.try_get("pos")?,
    })
}

fn bucket(row: SqliteRow) -> Result<Bucket, sqlx::Error> {
    let (count, min, max) = (row.try_get("count")?, row.try_get("min")?, row.try_get("max")?);
    Ok(Bucket {
        start_ms: row.try_get("start")?,
        count,
        min,
        max,
        avg: mean(row.try_get("small")?, row.try_get("huge")?, count, (min, max)),
    })
}

fn to_us(ms: i64) -> i64 {
    ms.saturating_mul(1_000)
}

fn to_ms(us: i64) -> i64 {
    us.div_euclid(1_000)
}
