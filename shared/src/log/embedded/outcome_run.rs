//! Outcomes on disk: how they are packed, and the runs they are gathered into.
//!
//! Each commit appends its outcomes as one row of `outcome_groups`: cheap, in order of time, found only
//! through memory. When [`RUN_KEYS`] have gathered they become a *run*: [`PAGES`] rows of
//! `outcome_pages`, the page chosen by the key's hash, so that a key is found with one row, and a row of
//! `outcome_runs` with a filter that lives in memory too. Keys are random; a table ordered by key would
//! dirty one page per event, ten times what the event itself costs. Runs are deleted whole, by range.
//!
//! A packed outcome is [`ENTRY_BYTES`]: the key's 20 bytes, the record's 36.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use super::filter::Filter;
use crate::cache::{LockKey, LockRecord};
use crate::event::{ClientId, EventId};

/// Keys of one run. Fewer in this crate's own tests, so that they write several.
pub(super) const RUN_KEYS: usize = if cfg!(test) { 1 << 14 } else { 1 << 17 };

/// Pages of one run: 64 keys each on average, so that a row fits a page of the file.
pub(super) const PAGES: usize = RUN_KEYS / 64;

const KEY_BYTES: usize = 20;
const ENTRY_BYTES: usize = KEY_BYTES + 36;

/// Outcomes by key.
pub(super) type Entries = HashMap<LockKey, LockRecord>;

/// A run as it is kept in memory.
pub(super) struct Run {
    pub(super) number: i64,
    /// First attempt of its youngest key, unix milliseconds: the run is forgotten as a whole.
    pub(super) newest_ms: i64,
    pub(super) filter: Filter,
}

impl Run {
    /// The row that holds the key, if the run has it.
    pub(super) fn page_of(&self, key: LockKey) -> Option<i64> {
        let hash = hash(key);
        self.filter.may_hold(hash).then(|| first_page(self.number) + page(hash))
    }
}

/// Row id of a run's first page; also the end of the runs before it.
pub(super) fn first_page(run: i64) -> i64 {
    run * PAGES as i64
}

/// A run on its way to the file.
pub(super) struct NewRun {
    pub(super) run: Run,
    /// Row id and content of each page.
    pub(super) pages: Vec<(i64, Vec<u8>)>,
}

impl NewRun {
    pub(super) fn pack(number: i64, entries: &Entries) -> Self {
        let mut pages: Vec<(i64, Vec<u8>)> =
            (0..PAGES as i64).map(|page| (first_page(number) + page, Vec::new())).collect();
        for (key, record) in entries {
            let page = usize::try_from(page(hash(*key))).ok().and_then(|page| pages.get_mut(page));
            if let Some((_, packed)) = page {
                push(packed, *key, record);
            }
        }
        let filter = Filter::new(entries.keys().map(|key| hash(*key)));
        let newest_ms = entries.values().map(|record| record.first_at_ms).max().unwrap_or(0);
        Self { run: Run { number, newest_ms, filter }, pages }
    }
}

/// Appends an outcome to a packed row.
pub(super) fn push(packed: &mut Vec<u8>, key: LockKey, record: &LockRecord) {
    packed.extend_from_slice(&key.to_bytes());
    packed.extend_from_slice(&record.to_bytes());
}

/// The outcomes of a packed row; what cannot be read is left out.
pub(super) fn unpack(packed: &[u8]) -> impl Iterator<Item = (LockKey, LockRecord)> {
    packed.as_chunks::<ENTRY_BYTES>().0.iter().filter_map(|entry| {
        let (key, record) = entry.split_at(KEY_BYTES);
        Some((key_from(key)?, LockRecord::from_bytes(record)?))
    })
}

fn key_from(bytes: &[u8]) -> Option<LockKey> {
    let (client, id) = bytes.split_first_chunk::<4>()?;
    let id = uuid::Uuid::from_slice(id).ok()?;
    Some(LockKey { client: ClientId(i32::from_be_bytes(*client)), id: EventId(id) })
}

/// Part of the file's layout: never to be changed without a new version of it.
fn hash(key: LockKey) -> u64 {
    xxh3_64(&key.to_bytes())
}

fn page(hash: u64) -> i64 {
    (hash % PAGES as u64) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Fingerprint, LockState, Owner};

    #[test]
    fn every_key_of_a_run_is_on_the_page_that_is_looked_at() {
        let key = |n| LockKey { client: ClientId(-7), id: EventId(uuid::Uuid::from_u128(n)) };
        let record = |n: u128| LockRecord {
            state: LockState::Done,
            fingerprint: Fingerprint(n.to_le_bytes()),
            owner: Owner(9),
            first_at_ms: 1_000 + i64::try_from(n).unwrap(),
            lease_until_ms: 20_000,
        };
        let entries: Entries = (0..3_000).map(|n| (key(n), record(n))).collect();
        let new = NewRun::pack(5, &entries);
        assert_eq!(new.run.newest_ms, 3_999);
        for (key, record) in &entries {
            let id = new.run.page_of(*key).expect("a filter never denies");
            let (_, packed) = new.pages.iter().find(|(page, _)| *page == id).unwrap();
            assert!(unpack(packed).any(|found| found == (*key, *record)));
        }
        let end = first_page(6);
        assert!(new.pages.iter().all(|(id, _)| (first_page(5)..end).contains(id)));
    }
}
