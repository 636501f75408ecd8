//! What the writer, the readers and the members of one open log have in common.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::sqlite::SqlitePool;
use tokio::sync::watch;

use super::coordinator::Coordinator;
use super::group_places::GroupPlaces;
use super::outcomes::Outcomes;
use super::places::Places;
use super::tail::Tail;

pub(crate) struct Shared {
    pub(super) places: Places,
    pub(super) tail: Tail,
    pub(super) coordinator: Mutex<Coordinator>,
    pub(super) group_places: GroupPlaces,
    pub(crate) outcomes: Outcomes,
    pub(crate) readers: SqlitePool,
    /// Changes after every commit; ends with the writer.
    pub(super) commits: watch::Receiver<u64>,
    pub(super) counters: Counters,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) commits: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) used_bytes: AtomicU64,
}

impl Counters {
    pub(super) fn add_commit(&self, records: usize) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records as u64, Ordering::Relaxed);
    }
}
