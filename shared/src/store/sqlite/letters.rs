//! Dead letters in SQLite: what a batch does to them, and what an operator does.
//!
//! One statement a letter where letters change: they are few, and each is found in the statement cache.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Row, Sqlite};

use super::SqliteStore;
use super::error::store_error;
use crate::clock::unix_us;
use crate::event::{ClientId, DeviceId, EventId};
use crate::log::Topic;
use crate::store::query::{LetterKey, rows_at_most};
use crate::store::replays::{leave_out_gone, place_of, stored_letters};
use crate::store::{
    DeadCopy, DeadLetter, DeadLetterStore, Letter, LetterFilter, LetterPlace, StoreBatch,
    StoreError, StoreRow,
};

const BURY: &str = "
insert into dead_letters
       (client_id, id, reason, sqlstate, detail, created_at, copy_part, copy_off, device_id, attempt,
        topic, part, epoch, off)
values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
on conflict do nothing";

/// A replay that died: its letter, at the place it has, tells of this death.
const BURY_AGAIN: &str = "
update dead_letters
   set client_id = ?, id = ?, reason = ?, sqlstate = ?, detail = ?, created_at = ?,
       copy_part = ?, copy_off = ?, device_id = ?, attempt = ?
 where topic = ? and part = ? and epoch = ? and off = ?";

const REMOVE: &str =
    "delete from dead_letters where topic = ? and part = ? and epoch = ? and off = ?";

/// The filter as ?1 to ?11. One text whatever is asked for: a null parameter asks for nothing.
macro_rules! select {
    ($columns:literal, $rest:literal) => {
        concat!(
            "select ",
            $columns,
            " from dead_letters
 where topic = ?1
   and (?2 is null or reason = ?2)
   and (?3 is null or created_at >= ?3)
   and (?4 is null or created_at <= ?4)
   and (?5 is null or client_id = ?5)
   and (?6 is null or device_id = ?6)
   and (?7 is null or id = ?7)
   and (?8 is null or part = ?8)
   and (?9 is null or off = ?9)
   and (?10 is null or epoch = ?10)
   and (?11 is null or attempt < ?11)",
            $rest
        )
    };
}

const NEWEST: &str = select!(
    "*",
    " and (?13 is null or (created_at, part, epoch, off) < (?13, ?14, ?15, ?16))
 order by created_at desc, part desc, epoch desc, off desc limit ?12"
);

const WALK: &str = select!(
    "*",
    " and (?13 is null or (part, epoch, off) > (?13, ?14, ?15))
 order by part, epoch, off limit ?12"
);

const COUNT: &str =
    select!("reason, count(*) as count", " group by reason order by count desc, reason");

const MARK: &str = "
update dead_letters set replay_part = ?, replay_epoch = ?, replay_off = ?
 where topic = ? and part = ? and epoch = ? and off = ?";

const PURGE: &str = "
delete from dead_letters
 where topic = ? and part = ? and epoch = ? and off = ?
   and created_at = ? and replay_part is ? and replay_epoch is ? and replay_off is ?";

pub(super) type Statement = Query<'static, Sqlite, SqliteArguments>;

/// Removes the letters whose replays are stored now.
pub(super) async fn remove_stored(
    connection: &mut SqliteConnection,
    rows: &[StoreRow],
    dead: &[DeadLetter],
) -> Result<(), StoreError> {
    for letter in stored_letters(rows.iter(), dead) {
        let query = bind_place(sqlx::query(REMOVE).bind(Topic::Raw.name()), letter);
        query.execute(&mut *connection).await.map_err(store_error)?;
    }
    Ok(())
}

/// Writes letters to their table, each with its copy. Answers those that are there now, and how many
/// replays have no letter any more.
pub(super) async fn bury(
    connection: &mut SqliteConnection,
    batch: &StoreBatch<'_>,
    dead: Vec<DeadLetter>,
    copies: &[DeadCopy],
) -> Result<(Vec<DeadLetter>, u64), StoreError> {
    let mut changed = HashSet::new();
    for (letter, copy) in dead.iter().zip(copies) {
        let Some(place) = letter.replay.as_deref() else {
            let query = death(BURY, letter, copy).bind(Topic::Raw.name());
            let query = bind_place(query, place_of(letter, batch));
            query.execute(&mut *connection).await.map_err(store_error)?;
            continue;
        };
        let query = death(BURY_AGAIN, letter, copy).bind(Topic::Raw.name());
        let query = bind_place(query, *place);
        if query.execute(&mut *connection).await.map_err(store_error)?.rows_affected() > 0 {
            changed.insert(*place);
        }
    }
    Ok(leave_out_gone(dead, &changed))
}

fn death(text: &'static str, letter: &DeadLetter, copy: &DeadCopy) -> Statement {
    sqlx::query(text)
        .bind(letter.client.map(|client| client.0))
        .bind(letter.id.map(|id| id.0))
        .bind(letter.reason.as_str())
        .bind(letter.sqlstate.clone())
        .bind(letter.detail.clone())
        .bind(unix_us())
        .bind(copy.partition)
        .bind(copy.offset)
        .bind(copy.device.map(|device| device.0))
        .bind(copy.attempt)
}

#[async_trait]
impl DeadLetterStore for SqliteStore {
    async fn newest(&self, filter: &LetterFilter, limit: usize) -> Result<Vec<Letter>, StoreError> {
        let query = newest(filter, None, limit);
        self.within(query.try_map(letter).fetch_all(&self.reader)).await
    }

    async fn walk(
        &self,
        filter: &LetterFilter,
        after: Option<LetterPlace>,
        limit: usize,
    ) -> Result<Vec<Letter>, StoreError> {
        let query = filtered(WALK, filter)
            .bind(rows_at_most(limit))
            .bind(after.map(|place| place.partition))
            .bind(after.map(|place| place.epoch))
            .bind(after.map(|place| place.offset));
        self.within(query.try_map(letter).fetch_all(&self.reader)).await
    }

    async fn count(&self, filter: &LetterFilter) -> Result<Vec<(String, u64)>, StoreError> {
        let query = filtered(COUNT, filter).try_map(|row: SqliteRow| {
            Ok((row.try_get("reason")?, row.try_get::<i64, _>("count")?.cast_unsigned()))
        });
        self.within(query.fetch_all(&self.reader)).await
    }

    async fn mark_replayed(&self, marks: &[(LetterPlace, LetterPlace)]) -> Result<(), StoreError> {
        let marks = marks.iter().map(|(letter, replay)| {
            let query = bind_place(sqlx::query(MARK), *replay).bind(Topic::Raw.name());
            bind_place(query, *letter)
        });
        self.within(self.change_letters(marks.collect())).await.map(drop)
    }

    async fn purge(&self, letters: &[Letter]) -> Result<u64, StoreError> {
        let purges = letters.iter().map(|letter| {
            bind_place(sqlx::query(PURGE).bind(Topic::Raw.name()), letter.place)
                .bind(letter.died_at_us)
                .bind(letter.replay.map(|replay| replay.partition))
                .bind(letter.replay.map(|replay| replay.epoch))
                .bind(letter.replay.map(|replay| replay.offset))
        });
        self.within(self.change_letters(purges.collect())).await
    }
}

impl SqliteStore {
    /// Runs the statements in one transaction; answers how many rows they changed.
    async fn change_letters(&self, statements: Vec<Statement>) -> Result<u64, sqlx::Error> {
        let mut tx = self.writer.begin_with("begin immediate").await?;
        let mut changed = 0;
        for statement in statements {
            changed += statement.execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await.map(|()| changed)
    }
}

/// What both the operator's list and a client's own is read with.
pub(super) fn newest(filter: &LetterFilter, after: Option<LetterKey>, limit: usize) -> Statement {
    filtered(NEWEST, filter)
        .bind(rows_at_most(limit))
        .bind(after.map(|key| key.died_at_us))
        .bind(after.map(|key| key.place.partition))
        .bind(after.map(|key| key.place.epoch))
        .bind(after.map(|key| key.place.offset))
}

fn bind_place(query: Statement, place: LetterPlace) -> Statement {
    query.bind(place.partition).bind(place.epoch).bind(place.offset)
}

fn filtered(text: &'static str, filter: &LetterFilter) -> Statement {
    sqlx::query(text)
        .bind(Topic::Raw.name())
        .bind(filter.reason.map(|reason| reason.as_str()))
        .bind(filter.since_us)
        .bind(filter.until_us)
        .bind(filter.client.map(|client| client.0))
        .bind(filter.device.map(|device| device.0))
        .bind(filter.id.map(|id| id.0))
        .bind(filter.partition)
        .bind(filter.offset)
        .bind(filter.epoch)
        .bind(filter.max_attempts)
}

pub(super) fn letter(row: SqliteRow) -> Result<Letter, sqlx::Error> {
    let copy = row.try_get::<Option<_>, _>("copy_part")?.zip(row.try_get("copy_off")?);
    let (partition, epoch) = (row.try_get("replay_part")?, row.try_get("replay_epoch")?);
    let replay = LetterPlace::of_columns(partition, epoch, row.try_get("replay_off")?);
    Ok(Letter {
        place: LetterPlace {
            partition: row.try_get("part")?,
            epoch: row.try_get("epoch")?,
            offset: row.try_get("off")?,
        },
        client: row.try_get::<Option<_>, _>("client_id")?.map(ClientId),
        id: row.try_get::<Option<_>, _>("id")?.map(EventId),
        device: row.try_get::<Option<_>, _>("device_id")?.map(DeviceId),
        reason: row.try_get("reason")?,
        sqlstate: row.try_get("sqlstate")?,
        detail: row.try_get("detail")?,
        attempt: row.try_get("attempt")?,
        died_at_us: row.try_get("created_at")?,
        copy,
        replay,
    })
}
