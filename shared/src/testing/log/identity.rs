//! Rules of identity, and what a reopen keeps.

use uuid::Uuid;

use super::{Fixture, PARTITIONS, append, bounds_of, numbered, read_all, values};
use crate::log::Topic;

/// What was confirmed is there; offsets go on where they were.
pub async fn records_and_offsets_survive_a_reopen(it: Fixture) {
    let before = append(&it.log, Topic::Raw, numbered(1, "before", 20)).await;
    let it = it.reopen().await;
    assert_eq!(bounds_of(&it.log, Topic::Raw, 1).await.next, 20);
    let after = append(&it.log, Topic::Raw, numbered(1, "after", 1)).await;
    assert!(after[0] > before[19]);
    let read = values(&read_all(&it.log, Topic::Raw, 1).await);
    assert_eq!(read.len(), 21);
    assert_eq!((read[0].as_str(), read[20].as_str()), ("before-0", "after-0"));
}

/// Written once, read for ever.
pub async fn the_identity_is_stable_over_a_reopen(it: Fixture) {
    let before = it.identity.identity().await.expect("a migrated log has a name");
    assert_eq!(before.partitions, PARTITIONS);
    assert!(!before.epoch.is_nil());
    let it = it.reopen().await;
    assert_eq!(it.identity.identity().await.expect("the same log"), before);
}

/// The second caller gets what the first one made; so does whoever asks.
pub async fn renewing_changes_the_epoch_once_for_two_that_saw_the_same(it: Fixture) {
    let seen = it.identity.identity().await.expect("a migrated log has a name");
    let first = it.identity.renew(seen.epoch).await.expect("renewed");
    assert_ne!(first.epoch, seen.epoch);
    assert_eq!(first.partitions, seen.partitions);
    assert_eq!(it.identity.renew(seen.epoch).await.expect("already renewed"), first);
    assert_eq!(it.identity.renew(Uuid::new_v4()).await.expect("never in force"), first);
    assert_eq!(it.identity.identity().await.expect("in force"), first);
    let second = it.identity.renew(first.epoch).await.expect("renewed again");
    assert_ne!(second.epoch, first.epoch);
}

/// A new epoch is as durable as the first.
pub async fn a_renewed_identity_survives_a_reopen(it: Fixture) {
    let seen = it.identity.identity().await.expect("a migrated log has a name");
    let renewed = it.identity.renew(seen.epoch).await.expect("renewed");
    let it = it.reopen().await;
    assert_eq!(it.identity.identity().await.expect("in force"), renewed);
}
