//! The one task that writes. It takes whatever gathered while the previous commit ran, writes it all in
//! one transaction and answers each caller once: the busier the log, the larger the groups.
//!
//! Beside records a commit carries what else is due: outcomes, changed places of consumer groups, a
//! piece of an outcome run. Attached writers (operator commands beside a running pipeline) are the same
//! task, but look the next offsets up inside each transaction; the pipeline's own writer keeps them in
//! memory and learns from a conflict, or within [`TICK`], that somebody else wrote.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use uuid::Uuid;

use super::fault::Fault;
use super::folder::FolderLock;
use super::group::{Group, NextOffsets};
use super::outcome_run::push;
use super::record_batch::RecordBatch;
use super::shared::Shared;
use super::statements::{Step, Texts, Values, commit, roll_back};
use super::upkeep::Upkeep;
use super::{file, places, record_batch};
use crate::cache::Outcome;
use crate::clock::unix_ms;
use crate::log::{
    AppendError, AppendResult, Identity, LogError, NewRecord, Offset, Partition, Topic,
};

/// How often the writer looks for work nobody asked for.
const TICK: Duration = Duration::from_millis(100);

/// Requests taken at once.
const MAX_REQUESTS: usize = 1_024;

/// The size of the file is measured again after so many bytes.
const MEASURE_EVERY_BYTES: u64 = 16 << 20;

const DELETE: &str = "
BEGIN IMMEDIATE;
UPDATE places SET next = max(next, coalesce(
    (SELECT offset + coalesce(count, 1) FROM records
     WHERE topic = ?1 AND partition = ?2 ORDER BY offset DESC LIMIT 1), 0))
WHERE topic = ?1 AND partition = ?2;
DELETE FROM records
WHERE topic = ?1 AND partition = ?2 AND offset < ?3 AND offset + coalesce(count, 1) <= ?3;
UPDATE records SET offset = ?3, count = count - (?3 - offset)
WHERE topic = ?1 AND partition = ?2 AND offset < ?3;
COMMIT";

const RENEW: &str = "UPDATE meta SET value = ?1 WHERE name = 'epoch' AND value = ?2";

const USED: &str = "
SELECT ((SELECT page_count FROM pragma_page_count) - (SELECT freelist_count FROM pragma_freelist_count))
       * (SELECT page_size FROM pragma_page_size)";

/// What the writer can be asked for.
pub(super) enum Request {
    Append {
        topic: Topic,
        records: Vec<NewRecord>,
        answer: oneshot::Sender<Vec<AppendResult>>,
    },
    Renew {
        seen: Uuid,
        answer: oneshot::Sender<Result<Identity, LogError>>,
    },
    /// Deletes the records of a partition below an offset; answers how many.
    Delete {
        topic: Topic,
        partition: Partition,
        below: Offset,
        answer: oneshot::Sender<Result<u64, LogError>>,
    },
    Close {
        answer: oneshot::Sender<()>,
    },
    /// Runs a statement on the writer's connection.
    #[cfg(test)]
    Sql {
        sql: String,
        answer: oneshot::Sender<()>,
    },
}

/// Whether this writer may trust its memory of the next offsets.
pub(super) enum Role {
    /// The pipeline's own; it gives the folder up with the file closed.
    Owner { _lock: FolderLock },
    /// Beside a running pipeline.
    Attached,
}

pub(super) struct Writer {
    connection: SqliteConnection,
    shared: Arc<Shared>,
    commits: watch::Sender<u64>,
    role: Role,
    texts: Texts,
    next: NextOffsets,
    latest_ms: i64,
    data_version: i64,
    max_bytes: u64,
    unmeasured_bytes: u64,
    upkeep: Upkeep,
    /// The last commit went wrong.
    troubled: bool,
}

impl Writer {
    pub(super) async fn new(
        connection: SqliteConnection,
        shared: Arc<Shared>,
        commits: watch::Sender<u64>,
        role: Role,
        max_bytes: u64,
    ) -> Result<Self, Fault> {
        let mut writer = Self {
            connection,
            shared,
            commits,
            role,
            texts: Texts::default(),
            next: NextOffsets::default(),
            latest_ms: 0,
            data_version: 0,
            max_bytes,
            unmeasured_bytes: 0,
            upkeep: Upkeep::default(),
            troubled: false,
        };
        writer.data_version = writer.read_data_version().await?;
        writer.reload().await?;
        writer.measure().await?;
        Ok(writer)
    }

    /// Runs until asked to close or until nobody can ask any more.
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut tick = ticks();
        let mut taken = Vec::with_capacity(MAX_REQUESTS);
        let closer = loop {
            // Both arms lose nothing when the other is taken.
            let count = tokio::select! {
                count = requests.recv_many(&mut taken, MAX_REQUESTS) => count,
                _ = tick.tick() => {
                    self.tick().await;
                    continue;
                }
            };
            if count == 0 {
                break None;
            }
            if let Some(closer) = self.serve(&mut taken).await {
                break Some(closer);
            }
        };
        requests.close();
        while requests.recv_many(&mut taken, MAX_REQUESTS).await > 0 {
            self.serve(&mut taken).await;
        }
        self.close().await;
        if closer.is_some_and(|closer| closer.send(()).is_err()) {
            tracing::trace!("nobody waited for the log to close");
        }
    }

    async fn serve(&mut self, requests: &mut Vec<Request>) -> Option<oneshot::Sender<()>> {
        let partitions = self.next.raw.len();
        let mut group = Group::default();
        let mut closer = None;
        for request in requests.drain(..) {
            match request {
                Request::Append { topic, records, answer } => {
                    group.add(topic, records, partitions, answer);
                    if group.is_full() {
                        self.commit(std::mem::take(&mut group)).await;
                    }
                }
                Request::Close { answer } => closer = Some(answer),
                other => {
                    self.commit(std::mem::take(&mut group)).await;
                    self.command(other).await;
                }
            }
        }
        self.commit(group).await;
        closer
    }

    async fn command(&mut self, request: Request) {
        let told = match request {
            Request::Renew { seen, answer } => answer.send(self.renew(seen).await).is_ok(),
            Request::Delete { topic, partition, below, answer } => {
                let deleted = self.delete(topic, partition, below).await;
                answer.send(deleted.map_err(|fault| fault.log_error())).is_ok()
            }
            #[cfg(test)]
            Request::Sql { sql, answer } => {
                let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
                statement.execute(&mut self.connection).await.unwrap();
                answer.send(()).is_ok()
            }
            Request::Append { .. } | Request::Close { .. } => true,
        };
        if !told {
            tracing::trace!("a caller did not wait for its answer");
        }
    }

    /// Writes a group and whatever else is due, and answers its callers.
    async fn commit(&mut self, mut group: Group) {
        if group.rows.is_empty() {
            return group.confirm();
        }
        if matches!(self.role, Role::Attached) {
            group.outcomes.clear();
        }
        match self.has_room(group.bytes()).await {
            Ok(true) => {}
            Ok(false) => {
                let used = self.shared.counters.used_bytes.load(Ordering::Relaxed);
                let full = format!("the log is full: {used} of {} bytes used", self.max_bytes);
                return group.fail(&AppendError::Unavailable(full));
            }
            Err(fault) => return group.fail(&fault.append_error()),
        }
        let mut result = match self.role {
            Role::Owner { .. } => self.write(&mut group, false).await,
            Role::Attached => self.look_up_and_commit(&mut group).await,
        };
        if result == Err(Fault::Conflict) {
            // Somebody else wrote since we looked. With the write lock held nobody can.
            result = self.look_up_and_commit(&mut group).await;
        }
        match result {
            Ok(logged_at_ms) => {
                self.note(None);
                self.publish(group, logged_at_ms);
            }
            Err(fault) => {
                self.note(Some(&fault));
                group.fail(&fault.append_error());
            }
        }
    }

    async fn look_up_and_commit(&mut self, group: &mut Group) -> Result<i64, Fault> {
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut self.connection).await?;
        if let Err(fault) = self.reload().await {
            roll_back(&mut self.connection).await;
            return Err(fault);
        }
        self.write(group, true).await
    }

    /// `begun`: the transaction is, so our memory of the next offsets is right for sure.
    async fn write(&mut self, group: &mut Group, begun: bool) -> Result<i64, Fault> {
        let mut next = self.next.clone();
        group.place(&mut next);
        let logged_at_ms = unix_ms().max(self.latest_ms);
        let mut steps = Vec::new();
        let outcome_group = self.shared.outcomes.next_group();
        let outcomes = |values: &mut Values| {
            values.int(outcome_group);
            values.blob(&pack(&group.outcomes));
        };
        Step::records(
            &record_batch::pack(&group.rows),
            |batch, values| fill_batch(batch, logged_at_ms, values),
            (!group.outcomes.is_empty()).then_some(outcomes),
            &mut steps,
        );
        let upkeep = self.upkeep.begin(&self.shared, &mut steps);
        let result = commit(&mut self.connection, &mut self.texts, steps, begun).await;
        self.upkeep.end(&self.shared, upkeep, result.is_ok());
        result?;
        self.next = next;
        self.latest_ms = logged_at_ms;
        if !group.outcomes.is_empty() {
            let outcomes = std::mem::take(&mut group.outcomes);
            self.shared.outcomes.committed(outcome_group, outcomes);
        }
        Ok(logged_at_ms)
    }

    /// After the commit: first what readers see, then their wake-up, then the callers.
    fn publish(&mut self, mut group: Group, logged_at_ms: i64) {
        let rows = std::mem::take(&mut group.rows);
        self.shared.counters.add_commit(rows.len());
        self.unmeasured_bytes += group.bytes() as u64;
        self.shared.places.set_next(Topic::Raw, &self.next.raw);
        self.shared.places.set_next(Topic::Dlq, &self.next.dlq);
        let events = rows.into_iter().filter(|row| row.topic == Topic::Raw);
        self.shared.tail.push(events.map(|row| row.into_record(logged_at_ms)));
        self.commits.send_modify(|count| *count += 1);
        group.confirm();
        self.upkeep.freeze_outcomes(&self.shared);
    }

    /// Work nobody asked for. A fault here is met again by the next tick.
    async fn tick(&mut self) {
        self.upkeep.tick();
        if let Err(fault) = self.try_tick().await {
            self.note(Some(&fault));
        }
    }

    /// Logs the first of a row of faults, and its end.
    fn note(&mut self, fault: Option<&Fault>) {
        match fault {
            Some(fault) if !self.troubled => {
                tracing::warn!(fault = fault.sentence(), "the log cannot be written");
            }
            None if self.troubled => tracing::info!("the log can be written again"),
            _ => {}
        }
        self.troubled = fault.is_some();
    }

    async fn try_tick(&mut self) -> Result<(), Fault> {
        let version = self.read_data_version().await?;
        if version != self.data_version {
            self.data_version = version;
            self.shared.tail.clear();
            self.reload().await?;
            self.commits.send_modify(|count| *count += 1);
        }
        let mut steps = Vec::new();
        let upkeep = self.upkeep.begin(&self.shared, &mut steps);
        if steps.is_empty() {
            return Ok(());
        }
        let result = commit(&mut self.connection, &mut self.texts, steps, false).await;
        self.upkeep.end(&self.shared, upkeep, result.is_ok());
        result
    }

    async fn renew(&mut self, seen: Uuid) -> Result<Identity, LogError> {
        let epoch = Uuid::new_v4().to_string();
        let renew = sqlx::query(RENEW).bind(epoch).bind(seen.to_string());
        let unavailable = |error| Fault::of(&error).log_error();
        renew.execute(&mut self.connection).await.map_err(unavailable)?;
        let found = file::identity(&mut self.connection).await.map_err(unavailable)?;
        found.ok_or_else(|| LogError::Unusable("the log has lost its epoch".to_owned()))
    }

    async fn delete(
        &mut self,
        topic: Topic,
        partition: Partition,
        below: Offset,
    ) -> Result<u64, Fault> {
        let first = |writer: &Self| {
            writer.shared.places.get(topic, partition).map_or(0, |bounds| bounds.first)
        };
        let before = first(self);
        let delete = sqlx::query(DELETE)
            .bind(file::topic_number(topic))
            .bind(i64::from(partition))
            .bind(below);
        if let Err(error) = delete.execute(&mut self.connection).await {
            roll_back(&mut self.connection).await;
            return Err(error.into());
        }
        self.reload().await?;
        self.measure().await?;
        // Offsets have no holes.
        Ok(u64::try_from(first(self) - before).unwrap_or(0))
    }

    /// Reads bounds and clock from the file.
    async fn reload(&mut self) -> Result<(), Fault> {
        let raw = places::read(&mut self.connection, Topic::Raw).await?;
        let dlq = places::read(&mut self.connection, Topic::Dlq).await?;
        let latest_ms = places::latest_ms(&mut self.connection).await?;
        self.latest_ms = self.latest_ms.max(latest_ms);
        self.next.raw = raw.iter().map(|bounds| bounds.next).collect();
        self.next.dlq = dlq.iter().map(|bounds| bounds.next).collect();
        if self.next.raw != self.shared.places.all_next(Topic::Raw) {
            self.shared.tail.clear();
        }
        self.shared.places.set(Topic::Raw, &raw);
        self.shared.places.set(Topic::Dlq, &dlq);
        Ok(())
    }

    async fn has_room(&mut self, bytes: usize) -> Result<bool, Fault> {
        let known = self.shared.counters.used_bytes.load(Ordering::Relaxed);
        let used = known + self.unmeasured_bytes + bytes as u64;
        if used <= self.max_bytes && self.unmeasured_bytes < MEASURE_EVERY_BYTES {
            return Ok(true);
        }
        Ok(self.measure().await? + bytes as u64 <= self.max_bytes)
    }

    async fn measure(&mut self) -> Result<u64, Fault> {
        let used: i64 = sqlx::query_scalar(USED).fetch_one(&mut self.connection).await?;
        let used = u64::try_from(used).unwrap_or(0);
        self.shared.counters.used_bytes.store(used, Ordering::Relaxed);
        self.unmeasured_bytes = 0;
        Ok(used)
    }

    /// Changes when another process commits.
    async fn read_data_version(&mut self) -> Result<i64, Fault> {
        Ok(sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut self.connection).await?)
    }

    async fn close(mut self) {
        let mut steps = Vec::new();
        let upkeep = self.upkeep.begin_last(&self.shared, &mut steps);
        if !steps.is_empty() {
            let result = commit(&mut self.connection, &mut self.texts, steps, false).await;
            if let Err(fault) = &result {
                tracing::warn!(fault = fault.sentence(), "the last group places were not written");
            }
            self.upkeep.end(&self.shared, upkeep, result.is_ok());
        }
        self.shared.readers.close().await;
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "the log did not close cleanly; the next start tidies up");
        }
        drop(self.role);
    }
}

fn ticks() -> Interval {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

fn pack(outcomes: &[Outcome]) -> Vec<u8> {
    let mut packed = Vec::new();
    outcomes.iter().for_each(|outcome| push(&mut packed, outcome.key, &outcome.record));
    packed
}

fn fill_batch(batch: &RecordBatch, logged_at_ms: i64, values: &mut Values) {
    values.int(file::topic_number(batch.topic));
    values.int(i64::from(batch.partition));
    values.int(batch.offset);
    values.int(logged_at_ms);
    values.blob(&batch.packed);
    values.int(batch.count);
}
