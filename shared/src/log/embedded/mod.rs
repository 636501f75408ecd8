//! The embedded engine: the whole log in one SQLite file, for a pipeline that is one process.
//!
//! One writer task does group commit with `fsync`; a few read-only connections serve catch-up; whoever
//! reads at the end is served from memory. Consumer groups exist within the process alone. Idempotency
//! outcomes are written in the same commit as their events ([`crate::cache::embedded`] reads them).
//!
//! **Durability.** An answered append survives `kill -9` and power loss as far as the disk keeps what it
//! flushed. **Size.** Beyond `max_bytes` appends are unavailable until [`EmbeddedLog::retain`] made
//! room; what the store has not taken is never deleted. Space of deleted records is used again, the
//! file does not shrink. **Time.** Records of a log are never stamped earlier than the ones before.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use self::coordinator::Coordinator;
use self::fault::Fault;
use self::group_places::GroupPlaces;
use self::member::Member;
use self::outcomes::Outcomes;
use self::places::Places;
use self::shared::{Counters, Shared};
use self::tail::Tail;
use self::writer::{Request, Role, Writer};
use super::{
    AppendError, AppendResult, Bounds, EventLog, Identity, LogConsumer, LogError, LogIdentity,
    NewRecord, Offset, Partition, ReadLimit, Record, Topic,
};
use crate::clock::unix_ms;

mod coordinator;
#[cfg(any(test, feature = "testing"))]
pub mod damage;
mod delivery;
pub(crate) mod fault;
mod file;
mod filter;
mod folder;
mod group;
mod group_places;
mod member;
mod outcome_run;
pub(crate) mod outcomes;
mod places;
mod reading;
mod record_batch;
mod retention;
pub(crate) mod shared;
mod statements;
mod tail;
#[cfg(test)]
mod tests;
mod upkeep;
mod writer;

/// Append requests waiting for the writer. Their bytes are bounded by whoever admits requests; beyond
/// this number callers wait, and beyond their deadline the log is unavailable.
const QUEUE: usize = 4_096;

/// Newest events kept in memory for whoever reads at the end.
const TAIL_BYTES: usize = 16 << 20;

/// How long an operator command waits for its append.
const ATTACHED_TIMEOUT: Duration = Duration::from_secs(30);

/// How an embedded log is kept.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// The data folder; created when absent.
    pub dir: PathBuf,
    /// Partitions; a log keeps the count it was made with.
    pub partitions: u32,
    /// How long an event is kept at least, once the store has it.
    pub retention: Duration,
    /// Size at which appends become unavailable.
    pub max_bytes: u64,
    /// Deadline of one append.
    pub append_timeout: Duration,
}

/// What an operator wants to know of a running log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedStats {
    /// Commits that carried records, since the start.
    pub commits: u64,
    /// Records appended, since the start.
    pub records: u64,
    /// Bytes in use in the file, as last measured.
    pub used_bytes: u64,
}

/// The embedded log. Clones are handles to the same one; it closes when the last is dropped, or sooner
/// with [`close`](Self::close).
#[derive(Clone)]
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    retention: Duration,
    append_timeout: Duration,
    owner: bool,
    left_bytes: u64,
}

impl EmbeddedLog {
    /// Opens the log in a data folder, making both when there are none.
    ///
    /// # Errors
    /// [`LogError::Unusable`], a sentence for the operator: the folder is in use by another process, is
    /// no folder, cannot be written; the file is damaged, from a newer version, of another partition
    /// count.
    pub async fn open(config: EmbeddedConfig) -> Result<Self, LogError> {
        if config.partitions == 0 {
            return Err(LogError::Unusable("a log has at least one partition".to_owned()));
        }
        let lock = folder::own(&config.dir)?;
        let left_bytes = file::left_bytes(&config.dir);
        let mut connection = file::open(&config.dir, config.partitions).await?;
        let unusable = |error| LogError::Unusable(Fault::of(&error).sentence());
        let outcomes = Outcomes::load(&mut connection, unix_ms()).await.map_err(unusable)?;
        let groups = GroupPlaces::load(&mut connection).await.map_err(unusable)?;
        let (commits, commits_seen) = watch::channel(0);
        let shared =
            shared(&config.dir, config.partitions, commits_seen, groups, outcomes, TAIL_BYTES)?;
        let role = Role::Owner { _lock: lock };
        let max_bytes = config.max_bytes;
        let writer = Writer::new(connection, Arc::clone(&shared), commits, role, max_bytes).await;
        let writer = writer.map_err(|fault| LogError::Unusable(fault.sentence()))?;
        let (requests, taken) = mpsc::channel(QUEUE);
        tokio::spawn(writer.run(taken));
        let EmbeddedConfig { retention, append_timeout, .. } = config;
        Ok(Self { shared, requests, retention, append_timeout, owner: true, left_bytes })
    }

    /// Opens the log of a data folder for an operator command, whether or not a pipeline runs on it.
    /// Reads and appends; consumes nothing. The running pipeline sees what is appended within 100 ms.
    ///
    /// # Errors
    /// [`LogError::Unusable`]: there is no log, it is damaged, or of another version.
    pub async fn attach(dir: &Path) -> Result<Self, LogError> {
        let (connection, identity) = file::attach(dir).await?;
        let (commits, commits_seen) = watch::channel(0);
        let (groups, outcomes) = Default::default();
        let shared = shared(dir, identity.partitions, commits_seen, groups, outcomes, 0)?;
        let role = Role::Attached;
        let writer = Writer::new(connection, Arc::clone(&shared), commits, role, u64::MAX).await;
        let writer = writer.map_err(|fault| fault.log_error())?;
        let (requests, taken) = mpsc::channel(QUEUE);
        tokio::spawn(writer.run(taken));
        let append_timeout = ATTACHED_TIMEOUT;
        let retention = Duration::MAX;
        Ok(Self { shared, requests, retention, append_timeout, owner: false, left_bytes: 0 })
    }

    /// Writes what waits, closes the file and gives the folder up. Appends afterwards are unavailable.
    pub async fn close(&self) {
        let (answer, closed) = oneshot::channel();
        if self.requests.send(Request::Close { answer }).await.is_ok() && closed.await.is_err() {
            tracing::debug!("the log was closed by somebody else");
        }
    }

    /// Present counts.
    pub fn stats(&self) -> EmbeddedStats {
        let Counters { commits, records, used_bytes } = &self.shared.counters;
        EmbeddedStats {
            commits: commits.load(Ordering::Relaxed),
            records: records.load(Ordering::Relaxed),
            used_bytes: used_bytes.load(Ordering::Relaxed),
        }
    }

    /// Bytes of write-ahead log that were there when this pipeline took the folder: 0 after a clean end.
    pub(crate) fn left_bytes(&self) -> u64 {
        self.left_bytes
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, LogError>>) -> Request,
    ) -> Result<T, LogError> {
        let (answer, answered) = oneshot::channel();
        let closed = || LogError::Unavailable("the log is closed".to_owned());
        self.requests.send(request(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

fn shared(
    dir: &Path,
    partitions: u32,
    commits: watch::Receiver<u64>,
    group_places: GroupPlaces,
    outcomes: Outcomes,
    tail_bytes: usize,
) -> Result<Arc<Shared>, LogError> {
    let count = Partition::try_from(partitions).map_err(|_| too_many(partitions))?;
    Ok(Arc::new(Shared {
        places: Places::new(partitions),
        tail: Tail::new(partitions, tail_bytes),
        coordinator: Mutex::new(Coordinator::new(count)),
        group_places,
        outcomes,
        readers: file::readers(dir),
        commits,
        counters: Counters::default(),
    }))
}

fn too_many(partitions: u32) -> LogError {
    LogError::Unusable(format!("{partitions} partitions are too many"))
}

/// Locks a mutex whose holder may have panicked: every change under these is whole or not begun.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl EventLog for EmbeddedLog {
    async fn append(&self, topic: Topic, records: Vec<NewRecord>) -> Vec<AppendResult> {
        let count = records.len();
        let all = |error: AppendError| vec![Err(error); count];
        let unavailable = |text: &str| all(AppendError::Unavailable(text.to_owned()));
        let deadline = Instant::now() + self.append_timeout;
        let place = match timeout_at(deadline, self.requests.reserve()).await {
            Ok(Ok(place)) => place,
            Ok(Err(_)) => return unavailable("the log is closed"),
            Err(_) => return unavailable("too many appends are waiting"),
        };
        let (answer, answered) = oneshot::channel();
        place.send(Request::Append { topic, records, answer });
        match timeout_at(deadline, answered).await {
            Ok(Ok(results)) => results,
            Ok(Err(_)) => all(AppendError::Unknown("the log was closed".to_owned())),
            Err(_) => all(AppendError::Unknown("the disk did not confirm in time".to_owned())),
        }
    }

    fn partitions_fail_alone(&self) -> bool {
        false
    }

    async fn consume(&self, group: &str) -> Result<Box<dyn LogConsumer>, LogError> {
        if !self.owner {
            let text = "an operator command cannot join a consumer group of a running pipeline";
            return Err(LogError::Unavailable(text.to_owned()));
        }
        Ok(Box::new(Member::join(Arc::clone(&self.shared), group)))
    }

    async fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<Vec<Record>, LogError> {
        let read = reading::read(&self.shared.readers, topic, partition, from, limit).await;
        read.map_err(log_error)
    }

    async fn bounds(&self, topic: Topic) -> Result<Vec<Bounds>, LogError> {
        let mut connection = self.shared.readers.acquire().await.map_err(log_error)?;
        places::read(&mut connection, topic).await.map_err(log_error)
    }

    async fn locate(&self, logged_at_ms: i64) -> Result<Vec<Offset>, LogError> {
        reading::locate(&self.shared.readers, logged_at_ms).await.map_err(log_error)
    }
}

#[async_trait]
impl LogIdentity for EmbeddedLog {
    async fn identity(&self) -> Result<Identity, LogError> {
        let mut connection = self.shared.readers.acquire().await.map_err(log_error)?;
        let found = file::identity(&mut connection).await.map_err(log_error)?;
        found.ok_or_else(|| LogError::Unusable("the log has lost its epoch".to_owned()))
    }

    async fn renew(&self, seen: Uuid) -> Result<Identity, LogError> {
        self.ask(|answer| Request::Renew { seen, answer }).await
    }
}

fn log_error(error: sqlx::Error) -> LogError {
    Fault::of(&error).log_error()
}
