use super::*;
use crate::bus::local::LocalBus;
use crate::store::NewKey;
use crate::store::sqlite::{self, SqliteConfig, SqliteStore};
use crate::testing::faults::{Fault, FaultBus, FaultKeyStore, Faults, Method};

const HASH: KeyHash = KeyHash([7; 32]);

#[tokio::test]
async fn a_change_is_heard_on_the_bus_and_a_hole_is_told() {
    let faults = Faults::default();
    let bus = FaultBus::new(Arc::new(LocalBus::new()), faults.clone());
    let mut notices = KeyNotices::of_bus(&bus).await;
    assert_eq!(notices.next().await, Some(KeyNotice::Missed), "what was before is not known");
    announce(&bus, &HASH).await.unwrap();
    assert_eq!(notices.next().await, Some(KeyNotice::Changed(vec![HASH])));
    bus.publish(&[(Channel::Keys, Bytes::from_static(b"a later version"))]).await.unwrap();
    assert_eq!(notices.next().await, Some(KeyNotice::Missed));

    faults.next(Method::SubscriptionNext, 1, Fault::After);
    announce(&bus, &HASH).await.unwrap();
    assert_eq!(notices.next().await, Some(KeyNotice::Missed), "lagged");
    faults.next(Method::SubscriptionNext, 1, Fault::Before);
    announce(&bus, &HASH).await.unwrap();
    let after_the_cut = notices.next().await;
    assert_eq!(after_the_cut, Some(KeyNotice::Changed(vec![HASH])), "a cut alone is no notice");
}

#[tokio::test]
async fn changes_made_by_another_process_are_found_in_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    sqlite::migrate(&path).await.unwrap();
    let store = Arc::new(SqliteStore::open(SqliteConfig::new(&path)).await.unwrap());
    let command = SqliteStore::open(SqliteConfig::new(&path)).await.unwrap();
    let faults = Faults::default();
    let watched = Arc::new(FaultKeyStore::new(store.clone(), faults.clone()));
    let mut notices = KeyNotices::of_store(watched);

    let new = NewKey {
        hash: HASH,
        prefix: "ps_test".into(),
        client_name: "tenant".into(),
        scopes: Vec::new(),
        rate: None,
        burst: None,
        created_at_ms: 1,
        expires_at_ms: None,
    };
    command.create(new).await.unwrap();
    assert_eq!(notices.next().await, Some(KeyNotice::Changed(vec![HASH])));
    // A look that fails loses nothing.
    faults.next(Method::KeyChanges, 2, Fault::After);
    command.revoke("ps_test", 2).await.unwrap();
    assert_eq!(notices.next().await, Some(KeyNotice::Changed(vec![HASH])));
    assert!(faults.calls(Method::KeyChanges) >= 4);
    store.close().await;
    command.close().await;
}
