//! Committed places of consumer groups: in memory at once, in the file with one of the next commits.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use sqlx::SqliteConnection;

use super::locked;
use crate::log::{Offset, Partition};

type Key = (Arc<str>, Partition);

/// One place to be written.
pub(super) type GroupPlace = (Arc<str>, Partition, Offset);

#[derive(Debug, Default)]
pub(super) struct GroupPlaces(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    places: HashMap<Key, Offset>,
    /// Changed since they were last handed to the writer; at most one entry a place.
    changed: HashSet<Key>,
}

impl GroupPlaces {
    pub(super) async fn load(connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let rows: Vec<(String, i32, i64)> =
            sqlx::query_as("SELECT name, partition, next FROM groups")
                .fetch_all(connection)
                .await?;
        let places = rows.into_iter().map(|(name, p, next)| ((name.into(), p), next)).collect();
        Ok(Self(Mutex::new(State { places, changed: HashSet::new() })))
    }

    pub(super) fn get(&self, group: &Arc<str>, partition: Partition) -> Option<Offset> {
        locked(&self.0).places.get(&(Arc::clone(group), partition)).copied()
    }

    pub(super) fn set(&self, group: &Arc<str>, partition: Partition, next: Offset) {
        let mut state = locked(&self.0);
        let key = (Arc::clone(group), partition);
        if state.places.insert(key.clone(), next) != Some(next) {
            state.changed.insert(key);
        }
    }

    /// Hands out what changed; give it back with [`put_back`](Self::put_back) when it was not written.
    pub(super) fn take_changed(&self) -> Vec<GroupPlace> {
        let mut state = locked(&self.0);
        let changed = std::mem::take(&mut state.changed);
        let place = |key: Key| state.places.get(&key).map(|next| (key.0, key.1, *next));
        changed.into_iter().filter_map(place).collect()
    }

    pub(super) fn put_back(&self, places: Vec<GroupPlace>) {
        let keys = places.into_iter().map(|(group, partition, _)| (group, partition));
        locked(&self.0).changed.extend(keys);
    }
}
