//! Questions about stored events on PostgreSQL.
//!
//! They have connections of their own: a question takes none from writers and key look-ups, and its
//! sessions are read-only, end each statement after `query_timeout`, and plan every statement for its
//! values, because which days are read depends on them.
//!
//! What the plans rest on: every statement bounds `ts`, so that days outside are pruned; with a device
//! the index (client_id, device_id, ts desc) gives the order, day after day, and a LIMIT stops it;
//! without one the BRIN index cuts a day to the blocks of the time asked for.
//!
//! `explain analyze` over 1.3 million rows of three days, 20 days attached, PostgreSQL 15, two cores:
//!
//! | question | plan | time |
//! |---|---|---|
//! | 100 events of a device of 1,000, or of 300,000 | ordered Append of index scans, the newest day alone is read | 0.3 ms |
//! | ... of a type too, ten days | index or bitmap scan of the device's rows a day | 3 ms |
//! | a client, 10 s or 160 s | index scan (client, ts) within one day | 1 to 8 ms |
//! | a client and a type, 3 h | BRIN, 857 blocks of one day | 8 ms |
//! | one event | index of the id's hash in days that are over, Bloom filters in others | 0.3 ms of 6 days; 43 ms of 20 million rows of today |
//! | series of a device, 3 days | index scan of the device's rows a day | 2 ms |
//! | series of a client, 1 h | bitmap scan (client, ts) of one day | 1.4 ms |
//! | 100 devices, 1,000 events each looked through | Merge Append of index-only scans a step; then as the first | 420 ms |
//!
//! Sequential scans are seen of empty days alone. Planning takes 0.1 ms for one day, up to 10 ms for all.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use sqlx::postgres::types::PgInterval;
use sqlx::postgres::{PgPoolOptions, PgRow};
use sqlx::types::time::OffsetDateTime;
use sqlx::{PgPool, Postgres, QueryBuilder, Row};

use super::encode::{from_ms, to_ms, to_us};
use super::error::failure;
use super::{PostgresConfig, PostgresStore, Session, letters, progress, store_error};
use crate::event::{ClientId, DeviceId, EventId};
use crate::log::STORE_GROUP;
use crate::store::query::letters::judged_page;
use crate::store::query::walk::{Slice, Walk};
use crate::store::query::{
    Bucket, DEVICE_EVENTS, DeviceState, EventQuery, EventsQuery, Found, HUGE, Latest, LetterKey,
    LettersQuery, Order, Page, QueryError, SCALE, SeriesQuery, Snapshot, SnapshotQuery, SortKey,
    StoredEvent, by_device, mean, page_of, rows_at_most,
};
use crate::store::settle::transient;
use crate::store::{Letter, LetterState, StoreError};

/// How long a question waits for a connection: a database that is gone is to be told at once.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(1);

/// What we wait beyond the server's own limit before we take it for dead.
const GRACE: Duration = Duration::from_secs(1);

const EVENTS: &str = "
select id, client_id, device_id, event_type, value, ts, metadata::text as map, received_at, pos
  from events";

/// By an index of the id's hash: `is not distinct from` can use none, and so no other is taken for a good way.
const EVENT: &str = "
select id, client_id, device_id, event_type, value, ts, metadata::text as map, received_at, pos
  from events
 where uuid_hash(id) = uuid_hash($1) and id is not distinct from $1 and client_id is not distinct from $2
 order by ts desc, pos desc
 limit 1";

const DEAD_LETTER: &str = "
select reason, detail
  from dead_letters
 where id = $1 and client_id = $2
 order by created_at desc
 limit 1";

/// A loose index scan: each step asks the index for the first device behind the last one, in every day.
/// `distinct` would read every row.
pub(super) const DEVICES: &str = "
with recursive device (device_id, number) as (
  (select device_id, 1
     from events
    where client_id = $1 and ts >= $2 and ($3::uuid is null or device_id > $3)
    order by device_id
    limit 1)
  union all
  select next.device_id, number + 1
    from device
   cross join lateral (
         select device_id
           from events
          where client_id = $1 and ts >= $2 and device_id > device.device_id
          order by device_id
          limit 1) next
   where number < $4)";

/// The newest value of each type, of every device of `device`.
///
/// `limit (select …)` and not `limit …`: for a limit it knows the planner compares with an average
/// device, and where that has no more events it sorts all that a device has: 300,000 rows and 243 ms for
/// a busy one among a hundred quiet ones, against 1,000 rows and 6 ms in the order of the index.
const LATEST: &str = "
select device.device_id, latest.event_type, latest.value, latest.ts
  from device
 cross join lateral (
       select distinct on (event_type) event_type, value, ts, pos, id
         from (select event_type, value, ts, pos, id
                 from events
                where client_id = $1 and ts >= $2 and device_id = device.device_id
                order by ts desc, pos desc, id desc
                limit (select $5)) newest
        order by event_type, ts desc, pos desc, id desc) latest
 order by device.device_id, latest.ts desc, latest.pos desc, latest.id desc";

pub(super) fn pool(config: &PostgresConfig) -> Result<PgPool, StoreError> {
    let options = config.connect_options()?.options([
        ("statement_timeout", config.query_timeout.as_millis().to_string()),
        ("default_transaction_read_only", "on".to_owned()),
        ("plan_cache_mode", "force_custom_plan".to_owned()),
        // For every question there is an index. Where the planner would rather read a day than a BRIN index, it does
        // not know how few of the blocks those leave.
        ("enable_seqscan", "off".to_owned()),
        // A client that hung up is noticed while its question is still at work.
        ("client_connection_check_interval", "1000".to_owned()),
    ]);
    Ok(PgPoolOptions::new()
        .max_connections(config.query_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(options))
}

#[async_trait]
impl EventQuery for PostgresStore {
    async fn events(&self, query: &EventsQuery) -> Result<Page<StoredEvent, SortKey>, QueryError> {
        let mut session = self.query_session().await?;
        let mut walk = Walk::new(query, self.config.query_timeout / 2);
        while let Some(slice) = walk.next_slice() {
            let started = Instant::now();
            let mut select = select_events(query, slice);
            let rows = select.build().try_map(event).fetch_all(session.connection());
            match self.in_time(rows).await {
                Ok(rows) => walk.read(slice, rows, started.elapsed()),
                Err(QueryError::TooSlow) if walk.has_come_forward() => return Ok(walk.into_page()),
                Err(error) => return Err(error),
            }
        }
        session.keep();
        Ok(walk.into_page())
    }

    async fn event(&self, client: ClientId, id: EventId) -> Result<Option<Found>, QueryError> {
        let mut session = self.query_session().await?;
        let stored = sqlx::query(EVENT).bind(id.0).bind(client.0).try_map(event);
        let stored = self.in_time(stored.fetch_optional(session.connection())).await?;
        let mut found = stored.map(|event| Found::Stored(Box::new(event)));
        if found.is_none() {
            let dead = sqlx::query_as(DEAD_LETTER).bind(id.0).bind(client.0);
            let dead = self.in_time(dead.fetch_optional(session.connection())).await?;
            found = dead.map(|(reason, detail)| Found::Dead { reason, detail });
        }
        session.keep();
        Ok(found)
    }

    async fn devices(
        &self,
        client: ClientId,
        since_ms: i64,
        after: Option<DeviceId>,
        limit: usize,
    ) -> Result<Page<DeviceState, DeviceId>, QueryError> {
        let mut select = QueryBuilder::<Postgres>::new(DEVICES);
        select.push(LATEST);
        let select = select
            .build()
            .bind(client.0)
            .bind(from_ms(since_ms))
            .bind(after.map(|device| device.0))
            .bind(i32::try_from(limit).unwrap_or(i32::MAX).saturating_add(1))
            .bind(DEVICE_EVENTS)
            .try_map(latest);
        let mut session = self.query_session().await?;
        let rows = self.in_time(select.fetch_all(session.connection())).await?;
        session.keep();
        Ok(page_of(by_device(rows), limit, |state| state.device))
    }

    async fn device(
        &self,
        client: ClientId,
        device: DeviceId,
        since_ms: i64,
    ) -> Result<Option<DeviceState>, QueryError> {
        let mut select =
            QueryBuilder::<Postgres>::new("with device (device_id, number) as (values ($3, $4))");
        select.push(LATEST);
        let select = select
            .build()
            .bind(client.0)
            .bind(from_ms(since_ms))
            .bind(device.0)
            .bind(1_i32)
            .bind(DEVICE_EVENTS)
            .try_map(latest);
        let mut session = self.query_session().await?;
        let rows = self.in_time(select.fetch_all(session.connection())).await?;
        session.keep();
        Ok(by_device(rows).pop())
    }

    async fn series(&self, query: &SeriesQuery) -> Result<Vec<Bucket>, QueryError> {
        let mut select = select_series(query);
        let select = select.build().try_map(bucket);
        let mut session = self.query_session().await?;
        let buckets = self.in_time(select.fetch_all(session.connection())).await?;
        session.keep();
        Ok(buckets)
    }

    async fn letters(
        &self,
        query: &LettersQuery,
    ) -> Result<Page<(Letter, LetterState), LetterKey>, QueryError> {
        let mut session = self.query_session().await?;
        let places = progress::read(session.connection(), STORE_GROUP);
        let places = self.in_time(places).await?;
        let select = letters::newest(&query.own(), query.after, query.rows())
            .try_map(|row: PgRow| letters::letter(&row));
        let rows = self.in_time(select.fetch_all(session.connection())).await?;
        session.keep();
        Ok(judged_page(rows, query.limit, &places))
    }

    async fn snapshot(&self, query: &SnapshotQuery) -> Result<Snapshot, QueryError> {
        self.read_snapshot(query).await
    }
}

impl PostgresStore {
    pub(super) async fn query_session(&self) -> Result<Session, StoreError> {
        Ok(Session(Some(self.queries.acquire().await.map_err(store_error)?)))
    }

    /// Runs a statement. The server ends it in time; one that is gone is not waited for much longer.
    pub(super) async fn in_time<T>(
        &self,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, QueryError> {
        let outcome = tokio::time::timeout(self.config.query_timeout + GRACE, statement).await;
        let silent = |_| QueryError::from(transient("the database did not answer in time"));
        outcome.map_err(silent)?.map_err(query_error)
    }
}

fn query_error(error: sqlx::Error) -> QueryError {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    if code.as_deref() == Some("57014") {
        return QueryError::TooSlow;
    }
    QueryError::Store(failure(error).into())
}

fn select_events(query: &EventsQuery, slice: Slice) -> QueryBuilder<Postgres> {
    let (than, direction) = match query.order {
        Order::Ascending => (">", "asc"),
        Order::Descending => ("<", "desc"),
    };
    let mut sql = QueryBuilder::new(EVENTS);
    sql.push(" where client_id = ").push_bind(query.client.0);
    sql.push(" and ts >= ").push_bind(from_ms(slice.span.from_ms));
    sql.push(" and ts < ").push_bind(from_ms(slice.span.to_ms));
    if let Some(device) = query.device {
        sql.push(" and device_id = ").push_bind(device.0);
    }
    if let Some(event_type) = &query.event_type {
        sql.push(" and event_type = ").push_bind(event_type);
    }
    if let Some(after) = query.after {
        sql.push(format_args!(" and (ts, pos, id) {than} ("));
        sql.push_bind(from_ms(after.timestamp_ms)).push(", ");
        sql.push_bind(after.pos).push(", ").push_bind(after.id.0).push(")");
    }
    sql.push(format_args!(" order by ts {direction}, pos {direction}, id {direction} limit "));
    sql.push_bind(rows_at_most(slice.limit));
    sql
}

fn select_series(query: &SeriesQuery) -> QueryBuilder<Postgres> {
    let step = PgInterval { months: 0, days: 0, microseconds: query.step_ms.saturating_mul(1_000) };
    let mut sql = QueryBuilder::new("select date_bin(");
    sql.push_bind(step);
    sql.push(format_args!(
        ", ts, 'epoch') as start, count(*) as count, min(value) as min, max(value) as max,
           sum(case when abs(value) < {HUGE:e} then value else 0 end) as small,
           sum(case when abs(value) < {HUGE:e} then 0 else value / float8 '{SCALE}' end) as huge
      from events where client_id = "
    ));
    sql.push_bind(query.client.0);
    sql.push(" and ts >= ").push_bind(from_ms(query.span.from_ms));
    sql.push(" and ts < ").push_bind(from_ms(query.span.to_ms));
    if let Some(device) = query.device {
        sql.push(" and device_id = ").push_bind(device.0);
    }
    sql.push(" and event_type = ").push_bind(&query.event_type);
    sql.push(" group by start order by start");
    sql
}

/// A row of `events`, its metadata as the text `map`.
pub(super) fn event(row: PgRow) -> Result<StoredEvent, sqlx::Error> {
    Ok(StoredEvent {
        client: ClientId(row.try_get("client_id")?),
        id: EventId(row.try_get("id")?),
        device: DeviceId(row.try_get("device_id")?),
        event_type: row.try_get("event_type")?,
        value: row.try_get("value")?,
        timestamp_ms: to_ms(row.try_get::<OffsetDateTime, _>("ts")?),
        metadata: row.try_get("map")?,
        received_at_us: to_us(row.try_get::<OffsetDateTime, _>("received_at")?),
        pos: row.try_get("pos")?,
    })
}

fn latest(row: PgRow) -> Result<(DeviceId, Latest), sqlx::Error> {
    let latest = Latest {
        event_type: row.try_get("event_type")?,
        value: row.try_get("value")?,
        timestamp_ms: to_ms(row.try_get::<OffsetDateTime, _>("ts")?),
    };
    Ok((DeviceId(row.try_get("device_id")?), latest))
}

fn bucket(row: PgRow) -> Result<Bucket, sqlx::Error> {
    let (count, min, max) = (row.try_get("count")?, row.try_get("min")?, row.try_get("max")?);
    Ok(Bucket {
        start_ms: to_ms(row.try_get::<OffsetDateTime, _>("start")?),
        count,
        min,
        max,
        avg: mean(row.try_get("small")?, row.try_get("huge")?, count, (min, max)),
    })
}
