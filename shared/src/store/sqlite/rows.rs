//! Rows as bound values and back.
//!
//! Many rows go into one statement. Its text depends on their number, and each text is parsed once and
//! kept, so rows go in chunks of a few sizes.

use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row, Sqlite};
use uuid::Uuid;

use super::error::failure;
use crate::metadata::Metadata;
use crate::store::StoreRow;
use crate::store::settle::{Failure, Verdict, same_metadata, same_value};

/// Numbers of rows a statement may take, greatest first; nine values each must stay below SQLite's
/// 32,766.
const CHUNKS: [usize; 4] = [500, 50, 5, 1];

/// Cuts rows into chunks of those sizes.
pub(super) fn chunks<'r, 'a>(
    mut rows: &'r [&'a StoreRow],
) -> impl Iterator<Item = &'r [&'a StoreRow]> {
    std::iter::from_fn(move || {
        let size = CHUNKS.into_iter().find(|size| *size <= rows.len())?;
        let (chunk, rest) = rows.split_at(size);
        rows = rest;
        Some(chunk)
    })
}

/// `(?,?),(?,?)` for that many rows of that many columns.
fn tuples(rows: usize, columns: usize) -> String {
    let tuple = format!("({})", vec!["?"; columns].join(","));
    vec![tuple; rows].join(",")
}

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// What SQLite answers when a CHECK fails.
const CHECK_FAILED: &str = "275";

/// The CHECKs of `events` that types do not hold already: the connection that writes ignores them.
fn passes_checks(row: &StoreRow) -> bool {
    let metadata = row.event.metadata.as_ref().map_or("", Metadata::as_json);
    !row.event.event_type.contains('\0') && !metadata.contains('\0')
}

/// Inserts what has no row with its key yet; returns how many were inserted.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    rows: &[&StoreRow],
) -> Result<u64, Failure> {
    if !rows.iter().all(|row| passes_checks(row)) {
        return Err(Failure::Data(CHECK_FAILED.to_owned()));
    }
    let sql = format!(
        "insert or fail into events
           (id, client_id, device_id, event_type, value, ts, metadata, received_at, pos)
         values {} on conflict (id, client_id) do nothing",
        tuples(rows.len(), 9)
    );
    let query = rows.iter().fold(sqlx::query(AssertSqlSafe(sql)), |query, row| bind(query, row));
    Ok(query.execute(connection).await.map_err(failure)?.rows_affected())
}

fn bind<'q>(query: Query<'q>, row: &StoreRow) -> Query<'q> {
    query
        .bind(row.event.id.0)
        .bind(row.client.0)
        .bind(row.event.device_id.0)
        .bind(row.event.event_type.clone())
        .bind(row.event.value)
        .bind(row.event.timestamp_ms.saturating_mul(1_000))
        .bind(row.event.metadata.as_ref().map(|metadata| metadata.as_json().to_owned()))
        .bind(row.received_at_us)
        .bind(row.offset)
}

/// Compares rows with what is stored under their keys; `None` where nothing is.
pub(super) async fn compare(
    connection: &mut SqliteConnection,
    rows: &[&StoreRow],
) -> Result<Vec<Option<Verdict>>, Failure> {
    let sql = format!(
        "with given (place, id, client_id) as (values {})
         select place, device_id, event_type, value, ts, metadata
           from given cross join events using (id, client_id)",
        tuples(rows.len(), 3)
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for (place, row) in (0_i64..).zip(rows) {
        query = query.bind(place).bind(row.event.id.0).bind(row.client.0);
    }
    let mut verdicts = vec![None; rows.len()];
    for stored in query.fetch_all(connection).await.map_err(failure)? {
        let place: i64 = stored.try_get("place").map_err(failure)?;
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        if let (Some(row), Some(verdict)) = (rows.get(place), verdicts.get_mut(place)) {
            let same = is_same(&stored, row).map_err(failure)?;
            *verdict = Some(if same { Verdict::Duplicate } else { Verdict::Conflict });
        }
    }
    Ok(verdicts)
}

fn is_same(stored: &SqliteRow, row: &StoreRow) -> Result<bool, sqlx::Error> {
    Ok(stored.try_get::<i64, _>("ts")? == row.event.timestamp_ms.saturating_mul(1_000)
        && stored.try_get::<Uuid, _>("device_id")? == row.event.device_id.0
        && stored.try_get::<&str, _>("event_type")? == row.event.event_type
        && same_value(stored.try_get("value")?, row.event.value)
        && same_metadata(
            stored.try_get("metadata")?,
            row.event.metadata.as_ref().map(Metadata::as_json),
        ))
}
