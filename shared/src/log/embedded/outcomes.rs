//! Idempotency locks and outcomes in memory, beside the file that keeps the outcomes.
//!
//! A key is looked for among the locks in flight, then among the outcomes that are not in a run yet,
//! then, through the filters, in the runs of the file. Only the last needs a query, and only for a key
//! that is most likely there.
//!
//! | what | bound |
//! |---|---|
//! | locks in flight or left open | the caller's; beyond it no lock is given |
//! | outcomes not in a run | twice [`RUN_KEYS`]: those gathering, those being written |
//! | filters | 2 bytes per key of the last [`LOCK_LIFE`] |

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use sqlx::SqliteConnection;
use sqlx::sqlite::SqlitePool;

use super::filter::Filter;
use super::locked;
use super::outcome_run::{Entries, NewRun, RUN_KEYS, Run, unpack};
use crate::cache::{LOCK_LIFE, LockKey, LockRecord, LockRequest, Outcome};

/// At the bound, dead locks are looked for this often, not with every call.
const SWEEP_MS: i64 = 1_000;

#[derive(Default)]
pub(crate) struct Outcomes(Mutex<State>);

#[derive(Default)]
struct State {
    held: HashMap<LockKey, LockRecord>,
    /// When dead locks were last looked for, unix milliseconds.
    swept_ms: i64,
    gathering: Entries,
    /// Last row of `outcome_groups` among those gathering.
    last_group: i64,
    writing: Option<Arc<Entries>>,
    runs: Vec<Arc<Run>>,
    next_run: i64,
}

/// What memory knows of a key that somebody asks to lock, or only about.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Somebody has, or had, it.
    Held(LockRecord),
    /// It is ours now; one of these rows may say that it is done.
    Ours(Vec<i64>),
    /// Nobody in memory has it, and the caller only looked; one of these rows may say that it is done.
    Free(Vec<i64>),
    /// Nobody in memory has it, and there is no room for another lock; one of these rows may say that it
    /// is done.
    Full(Vec<i64>),
}

/// Outcomes frozen to become a run, and the last row of `outcome_groups` they came from.
pub(super) struct Frozen {
    pub(super) entries: Arc<Entries>,
    pub(super) number: i64,
    pub(super) last_group: i64,
}

impl Outcomes {
    /// Reads filters and what is not in a run yet.
    pub(super) async fn load(
        connection: &mut SqliteConnection,
        now_ms: i64,
    ) -> Result<Self, sqlx::Error> {
        let runs: Vec<(i64, i64, Vec<u8>)> =
            sqlx::query_as("SELECT run, newest_ms, filter FROM outcome_runs ORDER BY run")
                .fetch_all(&mut *connection)
                .await?;
        let next_run = runs.last().map_or(0, |(run, ..)| run + 1);
        // A run whose last row was never written is written again from its groups.
        let half = sqlx::query("DELETE FROM outcome_pages WHERE id >= ?");
        half.bind(super::outcome_run::first_page(next_run)).execute(&mut *connection).await?;
        let run = |(number, newest_ms, filter): (i64, i64, Vec<u8>)| {
            let filter = Filter::from_bytes(&filter)?;
            Some(Arc::new(Run { number, newest_ms, filter }))
        };
        let runs = runs.into_iter().filter_map(run).collect();
        let groups: Vec<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT seq, packed FROM outcome_groups ORDER BY seq")
                .fetch_all(connection)
                .await?;
        let last_group = groups.last().map_or(0, |(seq, _)| *seq);
        let gathering = groups.iter().flat_map(|(_, packed)| unpack(packed));
        let gathering = gathering.filter(|(_, record)| alive(record, now_ms)).collect();
        let state = State { gathering, last_group, runs, next_run, ..State::default() };
        Ok(Self(Mutex::new(state)))
    }

    /// The number of the next row of `outcome_groups`.
    pub(super) fn next_group(&self) -> i64 {
        locked(&self.0).last_group + 1
    }

    /// Remembers outcomes whose commit is durable; their locks are no longer in flight.
    pub(super) fn committed(&self, group: i64, outcomes: Vec<Outcome>) {
        let mut state = locked(&self.0);
        state.last_group = group;
        for Outcome { key, record } in outcomes {
            state.held.remove(&key);
            state.gathering.insert(key, record);
        }
    }

    /// Hands out a full gathering to be written as a run, one at a time.
    pub(super) fn freeze(&self) -> Option<Frozen> {
        let mut state = locked(&self.0);
        if state.writing.is_some() || state.gathering.len() < RUN_KEYS {
            return None;
        }
        // At most one group more than the filter is sized for: a handful of wrong answers more.
        let entries = Arc::new(std::mem::take(&mut state.gathering));
        state.writing = Some(Arc::clone(&entries));
        Some(Frozen { entries, number: state.next_run, last_group: state.last_group })
    }

    /// The run is in the file.
    pub(super) fn frozen_is_written(&self, new: NewRun) {
        let mut state = locked(&self.0);
        state.next_run = new.run.number + 1;
        state.runs.push(Arc::new(new.run));
        state.writing = None;
    }

    /// The oldest run, when all its keys are past their life.
    pub(super) fn expired_run(&self, now_ms: i64) -> Option<i64> {
        let state = locked(&self.0);
        state.runs.first().filter(|run| !young(run.newest_ms, now_ms)).map(|run| run.number)
    }

    pub(super) fn forget_run(&self, number: i64) {
        locked(&self.0).runs.retain(|run| run.number != number);
    }

    #[cfg(test)]
    pub(crate) fn runs(&self) -> usize {
        locked(&self.0).runs.len()
    }

    /// Takes each free key that is asked for; answers in order.
    pub(crate) fn lock(
        &self,
        requests: &[LockRequest],
        now_ms: i64,
        max_held: usize,
    ) -> Vec<Known> {
        let mut state = locked(&self.0);
        if state.held.len() + requests.len() > max_held && now_ms >= state.swept_ms + SWEEP_MS {
            state.swept_ms = now_ms;
            state.held.retain(|_, record| alive(record, now_ms));
        }
        requests.iter().map(|request| state.lock(request, now_ms, max_held)).collect()
    }

    /// Gives back a key that [`lock`](Self::lock) took.
    pub(crate) fn give_back(&self, request: &LockRequest) {
        if let Some(record) = &request.record {
            self.swap(request.key, record, None);
        }
    }

    /// Writes an outcome over whatever is held; nothing to do when the log's commit brought it.
    pub(crate) fn finish(&self, key: LockKey, record: LockRecord) {
        let mut state = locked(&self.0);
        if state.outcome(key) == Some(&record) {
            state.held.remove(&key);
        } else {
            state.held.insert(key, record);
        }
    }

    /// Replaces or forgets a lock in flight, if it is still exactly the expected one.
    pub(crate) fn swap(
        &self,
        key: LockKey,
        expected: &LockRecord,
        record: Option<LockRecord>,
    ) -> bool {
        let mut state = locked(&self.0);
        if state.held.get(&key) != Some(expected) {
            return false;
        }
        match record {
            Some(record) => state.held.insert(key, record),
            None => state.held.remove(&key),
        };
        true
    }
}

/// The outcomes on those rows of `outcome_pages`.
pub(crate) async fn read_pages(
    readers: &SqlitePool,
    pages: &[i64],
) -> Result<Entries, sqlx::Error> {
    let mut connection = readers.acquire().await?;
    let mut found = Entries::new();
    for page in pages {
        let packed: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT packed FROM outcome_pages WHERE id = ?")
                .bind(page)
                .fetch_optional(&mut *connection)
                .await?;
        for (key, record) in unpack(packed.as_deref().unwrap_or_default()) {
            let kept = found.entry(key).or_insert(record);
            // The same key again after its life: the later attempt counts.
            if record.first_at_ms > kept.first_at_ms {
                *kept = record;
            }
        }
    }
    Ok(found)
}

impl State {
    fn lock(&mut self, request: &LockRequest, now_ms: i64, max_held: usize) -> Known {
        let key = request.key;
        let known = self.held.get(&key).or_else(|| self.outcome(key));
        if let Some(record) = known.filter(|record| alive(record, now_ms)) {
            return Known::Held(*record);
        }
        let young = self.runs.iter().rev().filter(|run| young(run.newest_ms, now_ms));
        let pages = young.filter_map(|run| run.page_of(key)).collect();
        let Some(record) = request.record else { return Known::Free(pages) };
        if self.held.len() >= max_held {
            return Known::Full(pages);
        }
        self.held.insert(key, record);
        Known::Ours(pages)
    }

    fn outcome(&self, key: LockKey) -> Option<&LockRecord> {
        self.gathering.get(&key).or_else(|| self.writing.as_ref()?.get(&key))
    }
}

fn young(first_at_ms: i64, now_ms: i64) -> bool {
    let life_ms = i64::try_from(LOCK_LIFE.as_millis()).unwrap_or(i64::MAX);
    now_ms.saturating_sub(first_at_ms) < life_ms
}

/// Whether a key is still remembered.
pub(crate) fn alive(record: &LockRecord, now_ms: i64) -> bool {
    young(record.first_at_ms, now_ms)
}
