//! Rows as PostgreSQL's COPY takes them, in its binary form: the cheapest way into a table.
//!
//! ```text
//! head    "PGCOPY\n\xff\r\n\0", flags: 4 bytes, length of an extension: 4 bytes
//! row     number of columns: 2 bytes, then for each its length: 4 bytes, -1 for null, and its bytes
//! end     -1: 2 bytes
//! ```
//!
//! Numbers are big-endian. A time is microseconds since 2000-01-01; jsonb is a version, 1, and its text. Nothing
//! is allocated for a row: what is encoded is sent in parts, so the server stores one while the next is made.

use sqlx::postgres::PgConnection;

use crate::metadata::Metadata;
use crate::store::StoreRow;

const COPY: &str = "
copy events (id, client_id, device_id, event_type, value, ts, metadata, received_at, pos)
from stdin (format binary)";

const HEAD: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COLUMNS: i16 = 9;
const NULL: i32 = -1;
const END: i16 = -1;
const JSONB_VERSION: u8 = 1;

/// 2000-01-01, unix microseconds.
const EPOCH_US: i64 = 946_684_800_000_000;

/// What is gathered before it is sent.
const PART_BYTES: usize = 64 << 10;

/// Copies rows into the table: all of them, or none when one is refused or meets a row with its key.
pub(super) async fn copy(
    connection: &mut PgConnection,
    rows: impl Iterator<Item = &StoreRow>,
) -> Result<u64, sqlx::Error> {
    let mut copy = connection.copy_in_raw(COPY).await?;
    let mut part = Vec::with_capacity(PART_BYTES + (PART_BYTES >> 3));
    part.extend_from_slice(HEAD);
    for row in rows {
        push_row(&mut part, row);
        if part.len() >= PART_BYTES {
            copy.send(part.as_slice()).await?;
            part.clear();
        }
    }
    part.extend_from_slice(&END.to_be_bytes());
    copy.send(part.as_slice()).await?;
    copy.finish().await
}

fn push_row(out: &mut Vec<u8>, row: &StoreRow) {
    let event = &row.event;
    out.extend_from_slice(&COLUMNS.to_be_bytes());
    push(out, event.id.0.as_bytes());
    push(out, &row.client.0.to_be_bytes());
    push(out, event.device_id.0.as_bytes());
    push(out, event.event_type.as_bytes());
    push(out, &event.value.to_be_bytes());
    push(out, &time(event.timestamp_ms.saturating_mul(1_000)));
    match event.metadata.as_ref().map(Metadata::as_json) {
        Some(json) => {
            push_length(out, json.len() + 1);
            out.push(JSONB_VERSION);
            out.extend_from_slice(json.as_bytes());
        }
        None => out.extend_from_slice(&NULL.to_be_bytes()),
    }
    push(out, &time(row.received_at_us));
    push(out, &row.offset.to_be_bytes());
}

fn push(out: &mut Vec<u8>, value: &[u8]) {
    push_length(out, value.len());
    out.extend_from_slice(value);
}

/// A record is a few kilobytes; a length that is none would be refused as a broken format, not misread.
fn push_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&i32::try_from(length).unwrap_or(i32::MAX).to_be_bytes());
}

fn time(unix_us: i64) -> [u8; 8] {
    unix_us.saturating_sub(EPOCH_US).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use uuid::Uuid;

    use super::*;
    use crate::event::{ClientId, DeviceId, EventId};
    use crate::store::postgres::PostgresStore;
    use crate::store::postgres::inspect::ScratchDatabase;
    use crate::store::postgres::tests::{begin, on_scratch, open};
    use crate::store::{EventStore as _, StoreBatch, StoredEvent};
    use crate::testing::store::{
        Copies, Inspect as _, NOW_MS, batch, metadata, row, rows, stored, verdict,
    };

    fn any_row() -> impl Strategy<Value = StoreRow> {
        let text = "[^\\x00]{2,50}";
        let entry = (
            text,
            prop_oneof![
                text.prop_map(|it| serde_json::json!(it)),
                any::<f64>()
                    .prop_filter("finite", |it| it.is_finite())
                    .prop_map(|it| serde_json::json!(it)),
                any::<bool>().prop_map(|it| serde_json::json!(it))
            ],
        );
        let map = proptest::option::of(proptest::collection::btree_map(entry.0, entry.1, 0..5));
        let value = any::<f64>().prop_filter("finite", |value| value.is_finite());
        let ids = (any::<u128>(), any::<u128>(), any::<i32>());
        let times = (NOW_MS - 86_400_000..NOW_MS, 0..1_000_i64);
        (ids, text, value, times, map, 0..i64::MAX).prop_map(
            |((id, device, client), event_type, value, (ms, us), map, offset)| {
                let mut row = row(0, offset, id);
                row.client = ClientId(client);
                row.event.device_id = DeviceId(Uuid::from_u128(device));
                row.event.event_type = event_type;
                row.event.value = value;
                row.event.timestamp_ms = ms;
                row.event.metadata =
                    map.and_then(|map| metadata(&serde_json::to_string(&map).unwrap()));
                row.received_at_us = NOW_MS * 1_000 + us;
                row
            },
        )
    }

    /// All that the server has of a row; metadata as a map.
    fn told(event: &StoredEvent) -> (ClientId, EventId, String) {
        let map = event.metadata.as_deref().map(|text| {
            let map: std::collections::BTreeMap<String, serde_json::Value> =
                serde_json::from_str(text).unwrap();
            let same = |value: serde_json::Value| match value.as_f64() {
                Some(number) => format!("{:?}", number + 0.0), // numeric has one zero
                None => value.to_string(),
            };
            map.into_iter().map(|(key, value)| (key, same(value))).collect::<Vec<_>>()
        });
        let StoredEvent { device, event_type, value, timestamp_ms, received_at_us, pos, .. } =
            event;
        let rest = format!(
            "{device} {event_type:?} {} {timestamp_ms} {received_at_us} {pos} {map:?}",
            value.to_bits()
        );
        (event.client, event.id, rest)
    }

    #[tokio::test]
    async fn what_is_copied_is_what_the_server_reads_back() {
        on_scratch(async |scratch| {
            let store = open(scratch).await;
            begin(&store).await;
            let mut runner = TestRunner::default();
            let rows: Vec<_> =
                (0..1_000).map(|_| any_row().new_tree(&mut runner).unwrap().current()).collect();
            let mut sent: Vec<_> = rows
                .iter()
                .map(|row| {
                    let event = row.event.clone();
                    told(&StoredEvent {
                        client: row.client,
                        id: event.id,
                        device: event.device_id,
                        event_type: event.event_type,
                        value: event.value,
                        timestamp_ms: event.timestamp_ms,
                        metadata: event.metadata.map(|it| it.as_json().to_owned()),
                        received_at_us: row.received_at_us,
                        pos: row.offset,
                    })
                })
                .collect();
            let one = StoreBatch { group: "g", ..batch(0, 1_000, rows) };
            assert_eq!(store.write(&one, &Copies::default()).await.unwrap(), stored(1_000, 0));
            let mut read: Vec<_> = store.stored_events().await.unwrap().iter().map(told).collect();
            sent.sort();
            read.sort();
            for (sent, read) in sent.iter().zip(&read) {
                assert_eq!(sent, read);
            }
            store.close().await;
        })
        .await;
    }

    /// Notes the statement behind every insertion.
    async fn watch(scratch: &ScratchDatabase) {
        for statement in [
            "create table ways (way text)",
            "create function note() returns trigger language plpgsql as
             $$ begin insert into ways values (split_part(trim(both E'\n ' from current_query()), ' ', 1));
                return null; end $$",
            "create trigger note after insert on events for each statement execute function note()",
        ] {
            scratch.execute(statement).await.unwrap();
        }
    }

    async fn ways(store: &PostgresStore) -> Vec<String> {
        sqlx::query_scalar("with gone as (delete from ways returning way) select way from gone")
            .fetch_all(&store.pool)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn rows_are_copied_and_after_one_was_there_already_looked_up_first() {
        on_scratch(async |scratch| {
            let store = open(scratch).await;
            begin(&store).await;
            watch(scratch).await;
            let mut next = 0;
            let mut write = async |ids: Vec<u128>| {
                let count = i64::try_from(ids.len()).unwrap();
                let one = batch(next, next + count, rows(next, ids));
                next += count;
                store.write(&StoreBatch { group: "g", ..one }, &Copies::default()).await.unwrap()
            };
            assert_eq!(write(vec![1, 2, 3]).await, stored(3, 0));
            assert_eq!(ways(&store).await, ["copy"]);
            // The COPY that failed is undone, and with it its note.
            assert_eq!(write(vec![4, 2, 5]).await, stored(2, 1));
            assert_eq!(ways(&store).await, ["insert"]);
            assert_eq!(write(vec![6, 2, 7]).await, stored(2, 1));
            assert_eq!(ways(&store).await, ["copy"], "the rest of those that were looked up");
            assert_eq!(write(vec![1, 2]).await, stored(0, 2));
            assert_eq!(ways(&store).await, [""; 0], "nothing is left to copy");
            store.close().await;
        })
        .await;
    }

    #[tokio::test]
    async fn a_row_that_meets_another_event_is_found_whichever_way_it_comes() {
        on_scratch(async |scratch| {
            let store = open(scratch).await;
            begin(&store).await;
            let first = StoreBatch { group: "g", ..batch(0, 2, rows(0, 1..=2)) };
            store.write(&first, &Copies::default()).await.unwrap();
            for from in [2, 5] {
                let mut three = rows(from, [1, 2, u128::try_from(from).unwrap() + 10]);
                three[1].event.value += 1.0;
                let three = StoreBatch { group: "g", ..batch(from, from + 3, three) };
                let written = store.write(&three, &Copies::default()).await.unwrap();
                let (new, duplicates, letters) = verdict(&written);
                assert_eq!((new, duplicates, letters), (1, 1, vec![(from + 1, "id_conflict")]));
            }
            store.close().await;
        })
        .await;
    }
}
