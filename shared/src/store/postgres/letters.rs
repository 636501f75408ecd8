//! Dead letters on PostgreSQL: what a batch does to them, and what an operator does.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::types::time::OffsetDateTime;
use sqlx::{Postgres, Row};
use uuid::Uuid;

use super::PostgresStore;
use super::encode::{from_us, to_us};
use super::error::store_error;
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
       (topic, part, epoch, off, client_id, id, reason, sqlstate, detail, created_at,
        copy_part, copy_off, device_id, attempt)
select $1, part, epoch, off, client_id, id, reason, sqlstate, detail, now(),
       copy_part, copy_off, device_id, attempt
  from unnest($2::int[], $3::uuid[], $4::bigint[], $5::int[], $6::uuid[], $7::text[], $8::text[],
              $9::text[], $10::int[], $11::bigint[], $12::uuid[], $13::int[])
    as given (part, epoch, off, client_id, id, reason, sqlstate, detail,
              copy_part, copy_off, device_id, attempt)
on conflict do nothing";

/// A replay that died: its letter, at the place it has, tells of this death.
const BURY_AGAIN: &str = "
update dead_letters letter
   set client_id = given.client_id, id = given.id, reason = given.reason, sqlstate = given.sqlstate,
       detail = given.detail, created_at = now(), copy_part = given.copy_part,
       copy_off = given.copy_off, device_id = given.device_id, attempt = given.attempt
  from unnest($2::int[], $3::uuid[], $4::bigint[], $5::int[], $6::uuid[], $7::text[], $8::text[],
              $9::text[], $10::int[], $11::bigint[], $12::uuid[], $13::int[])
    as given (part, epoch, off, client_id, id, reason, sqlstate, detail,
              copy_part, copy_off, device_id, attempt)
 where letter.topic = $1 and letter.part = given.part and letter.epoch = given.epoch
   and letter.off = given.off
returning letter.part, letter.epoch, letter.off";

const REMOVE: &str = "
delete from dead_letters letter
 using unnest($2::int[], $3::uuid[], $4::bigint[]) as given (part, epoch, off)
 where letter.topic = $1 and letter.part = given.part and letter.epoch = given.epoch
   and letter.off = given.off";

/// The filter as $1 to $11. One text whatever is asked for: a null parameter asks for nothing.
macro_rules! select {
    ($columns:literal, $rest:literal) => {
        concat!(
            "select ",
            $columns,
            " from dead_letters
 where topic = $1
   and ($2::text is null or reason = $2)
   and ($3::timestamptz is null or created_at >= $3)
   and ($4::timestamptz is null or created_at <= $4)
   and ($5::int is null or client_id = $5)
   and ($6::uuid is null or device_id = $6)
   and ($7::uuid is null or id = $7)
   and ($8::int is null or part = $8)
   and ($9::bigint is null or off = $9)
   and ($10::uuid is null or epoch = $10)
   and ($11::int is null or attempt < $11)",
            $rest
        )
    };
}

const NEWEST: &str = select!(
    "*",
    " and ($13::timestamptz is null
        or (created_at, part, epoch, off) < ($13, $14::int, $15::uuid, $16::bigint))
 order by created_at desc, part desc, epoch desc, off desc limit $12"
);

const WALK: &str = select!(
    "*",
    " and ($13::int is null or (part, epoch, off) > ($13, $14::uuid, $15::bigint))
 order by part, epoch, off limit $12"
);

const COUNT: &str =
    select!("reason, count(*) as count", " group by reason order by count desc, reason");

const MARK: &str = "
update dead_letters letter
   set replay_part = given.to_part, replay_epoch = given.to_epoch, replay_off = given.to_off
  from unnest($2::int[], $3::uuid[], $4::bigint[], $5::int[], $6::uuid[], $7::bigint[])
    as given (part, epoch, off, to_part, to_epoch, to_off)
 where letter.topic = $1 and letter.part = given.part and letter.epoch = given.epoch
   and letter.off = given.off";

const PURGE: &str = "
delete from dead_letters letter
 using unnest($2::int[], $3::uuid[], $4::bigint[], $5::int[], $6::uuid[], $7::bigint[],
              $8::timestamptz[])
    as given (part, epoch, off, to_part, to_epoch, to_off, created_at)
 where letter.topic = $1 and letter.part = given.part and letter.epoch = given.epoch
   and letter.off = given.off and letter.created_at = given.created_at
   and (letter.replay_part, letter.replay_epoch, letter.replay_off)
       is not distinct from (given.to_part, given.to_epoch, given.to_off)";

/// Removes the letters whose replays are stored now.
pub(super) async fn remove_stored(
    connection: &mut PgConnection,
    rows: &[&StoreRow],
    dead: &[DeadLetter],
) -> Result<(), StoreError> {
    let letters = stored_letters(rows.iter().copied(), dead);
    if letters.is_empty() {
        return Ok(());
    }
    let query = bind_places(sqlx::query(REMOVE).bind(Topic::Raw.name()), &letters);
    query.execute(connection).await.map(drop).map_err(store_error)
}

/// Writes letters to their table, each with its copy. Answers those that are there now, and how many
/// replays have no letter any more.
pub(super) async fn bury(
    connection: &mut PgConnection,
    batch: &StoreBatch<'_>,
    dead: Vec<DeadLetter>,
    copies: &[DeadCopy],
) -> Result<(Vec<DeadLetter>, u64), StoreError> {
    let (mut new, mut again) = (Columns::default(), Columns::default());
    for (letter, copy) in dead.iter().zip(copies) {
        match &letter.replay {
            Some(place) => again.push(**place, letter, copy),
            None => new.push(place_of(letter, batch), letter, copy),
        }
    }
    if !new.places.is_empty() {
        new.bind(BURY).execute(&mut *connection).await.map_err(store_error)?;
    }
    let mut changed = HashSet::new();
    if !again.places.is_empty() {
        let query = again.bind(BURY_AGAIN).try_map(|row: PgRow| place(&row));
        changed.extend(query.fetch_all(connection).await.map_err(store_error)?);
    }
    Ok(leave_out_gone(dead, &changed))
}

/// Letters as the arrays $2 to $13.
#[derive(Default)]
struct Columns {
    places: Vec<LetterPlace>,
    clients: Vec<Option<i32>>,
    ids: Vec<Option<Uuid>>,
    reasons: Vec<&'static str>,
    sqlstates: Vec<Option<String>>,
    details: Vec<String>,
    copies: (Vec<i32>, Vec<i64>),
    devices: Vec<Option<Uuid>>,
    attempts: Vec<i32>,
}

impl Columns {
    fn push(&mut self, place: LetterPlace, letter: &DeadLetter, copy: &DeadCopy) {
        // U+0000 in a sentence must not make the record of a dead letter poison itself.
        let text = |text: &str| text.replace('\0', "");
        self.places.push(place);
        self.clients.push(letter.client.map(|client| client.0));
        self.ids.push(letter.id.map(|id| id.0));
        self.reasons.push(letter.reason.as_str());
        self.sqlstates.push(letter.sqlstate.as_deref().map(text));
        self.details.push(text(&letter.detail));
        self.copies.0.push(copy.partition);
        self.copies.1.push(copy.offset);
        self.devices.push(copy.device.map(|device| device.0));
        self.attempts.push(i32::try_from(copy.attempt).unwrap_or(i32::MAX));
    }

    fn bind(&self, text: &'static str) -> Statement<'_> {
        bind_places(sqlx::query(text).bind(Topic::Raw.name()), &self.places)
            .bind(&self.clients)
            .bind(&self.ids)
            .bind(&self.reasons)
            .bind(&self.sqlstates)
            .bind(&self.details)
            .bind(&self.copies.0)
            .bind(&self.copies.1)
            .bind(&self.devices)
            .bind(&self.attempts)
    }
}

#[async_trait]
impl DeadLetterStore for PostgresStore {
    async fn newest(&self, filter: &LetterFilter, limit: usize) -> Result<Vec<Letter>, StoreError> {
        self.letters(newest(filter, None, limit)).await
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
        self.letters(query).await
    }

    async fn count(&self, filter: &LetterFilter) -> Result<Vec<(String, u64)>, StoreError> {
        let mut session = self.session().await?;
        let query = filtered(COUNT, filter).try_map(|row: PgRow| {
            Ok((row.try_get("reason")?, row.try_get::<i64, _>("count")?.cast_unsigned()))
        });
        let counts = self.within(query.fetch_all(session.connection())).await?;
        session.keep();
        Ok(counts)
    }

    async fn mark_replayed(&self, marks: &[(LetterPlace, LetterPlace)]) -> Result<(), StoreError> {
        let mut marks = marks.to_vec();
        marks.sort_unstable();
        let (from, to): (Vec<_>, Vec<_>) = marks.into_iter().unzip();
        let query = bind_places(sqlx::query(MARK).bind(Topic::Raw.name()), &from);
        self.change_letters(bind_places(query, &to)).await.map(drop)
    }

    async fn purge(&self, letters: &[Letter]) -> Result<u64, StoreError> {
        let places: Vec<_> = letters.iter().map(|letter| letter.place).collect();
        let replays = letters.iter().map(|letter| letter.replay);
        let query = bind_places(sqlx::query(PURGE).bind(Topic::Raw.name()), &places)
            .bind(replays.clone().map(|it| it.map(|it| it.partition)).collect::<Vec<_>>())
            .bind(replays.clone().map(|it| it.map(|it| it.epoch)).collect::<Vec<_>>())
            .bind(replays.map(|it| it.map(|it| it.offset)).collect::<Vec<_>>())
            .bind(letters.iter().map(|letter| from_us(letter.died_at_us)).collect::<Vec<_>>());
        self.change_letters(query).await
    }
}

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

impl PostgresStore {
    async fn letters(&self, query: Statement<'_>) -> Result<Vec<Letter>, StoreError> {
        let mut session = self.session().await?;
        let query = query.try_map(|row: PgRow| letter(&row));
        let letters = self.within(query.fetch_all(session.connection())).await?;
        session.keep();
        Ok(letters)
    }

    async fn change_letters(&self, query: Statement<'_>) -> Result<u64, StoreError> {
        let mut session = self.session().await?;
        let changed = self.within(query.execute(session.connection())).await?;
        session.keep();
        Ok(changed.rows_affected())
    }
}

/// What both the operator's list and a client's own is read with.
pub(super) fn newest<'q>(
    filter: &LetterFilter,
    after: Option<LetterKey>,
    limit: usize,
) -> Statement<'q> {
    filtered(NEWEST, filter)
        .bind(rows_at_most(limit))
        .bind(after.map(|key| from_us(key.died_at_us)))
        .bind(after.map(|key| key.place.partition))
        .bind(after.map(|key| key.place.epoch))
        .bind(after.map(|key| key.place.offset))
}

fn bind_places<'q>(query: Statement<'q>, places: &[LetterPlace]) -> Statement<'q> {
    query
        .bind(places.iter().map(|place| place.partition).collect::<Vec<_>>())
        .bind(places.iter().map(|place| place.epoch).collect::<Vec<_>>())
        .bind(places.iter().map(|place| place.offset).collect::<Vec<_>>())
}

fn filtered<'q>(text: &'static str, filter: &LetterFilter) -> Statement<'q> {
    sqlx::query(text)
        .bind(Topic::Raw.name())
        .bind(filter.reason.map(|reason| reason.as_str()))
        .bind(filter.since_us.map(from_us))
        .bind(filter.until_us.map(from_us))
        .bind(filter.client.map(|client| client.0))
        .bind(filter.device.map(|device| device.0))
        .bind(filter.id.map(|id| id.0))
        .bind(filter.partition)
        .bind(filter.offset)
        .bind(filter.epoch)
        .bind(filter.max_attempts.map(|most| i32::try_from(most).unwrap_or(i32::MAX)))
}

fn place(row: &PgRow) -> Result<LetterPlace, sqlx::Error> {
    Ok(LetterPlace {
        partition: row.try_get("part")?,
        epoch: row.try_get("epoch")?,
        offset: row.try_get("off")?,
    })
}

pub(super) fn letter(row: &PgRow) -> Result<Letter, sqlx::Error> {
    let copy = row.try_get::<Option<_>, _>("copy_part")?.zip(row.try_get("copy_off")?);
    let (partition, epoch) = (row.try_get("replay_part")?, row.try_get("replay_epoch")?);
    let replay = LetterPlace::of_columns(partition, epoch, row.try_get("replay_off")?);
    Ok(Letter {
        place: place(row)?,
        client: row.try_get::<Option<_>, _>("client_id")?.map(ClientId),
        id: row.try_get::<Option<_>, _>("id")?.map(EventId),
        device: row.try_get::<Option<_>, _>("device_id")?.map(DeviceId),
        reason: row.try_get("reason")?,
        sqlstate: row.try_get("sqlstate")?,
        detail: row.try_get("detail")?,
        attempt: u32::try_from(row.try_get::<i32, _>("attempt")?).unwrap_or(1),
        died_at_us: to_us(row.try_get::<OffsetDateTime, _>("created_at")?),
        copy,
        replay,
    })
}
