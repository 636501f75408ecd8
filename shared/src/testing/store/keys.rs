//! Rules of [`KeyStore`](crate::store::KeyStore).
#![expect(missing_docs, reason = "the names of rules are sentences")]

use super::{Fixture, NOW_MS};
use crate::event::ClientId;
use crate::store::{KeyError, KeyHash, KeyRecord, NewKey, Scope};

pub(super) fn key(number: u8, client_name: &str) -> NewKey {
    NewKey {
        hash: KeyHash([number; 32]),
        prefix: format!("ps_test_{number}"),
        client_name: client_name.to_owned(),
        scopes: vec![Scope::EventsWrite, Scope::EventsRead],
        rate: Some(100),
        burst: None,
        created_at_ms: NOW_MS + i64::from(number),
        expires_at_ms: Some(NOW_MS + 1_000),
    }
}

pub async fn a_created_key_is_found_as_it_was_given(fixture: Fixture) {
    let given = key(1, "Bläserquintett 🎷");
    let created = fixture.store.create(given.clone()).await.unwrap();
    let expected = KeyRecord {
        prefix: given.prefix,
        client: created.client,
        client_name: given.client_name,
        scopes: given.scopes,
        rate: Some(100),
        burst: None,
        created_at_ms: given.created_at_ms,
        expires_at_ms: given.expires_at_ms,
        revoked_at_ms: None,
    };
    assert_eq!(created, expected);
    assert_eq!(fixture.other.find(&given.hash).await.unwrap(), Some(expected));
    assert_eq!(fixture.store.find(&KeyHash([9; 32])).await.unwrap(), None);
}

pub async fn a_hash_or_prefix_exists_once(fixture: Fixture) {
    fixture.store.create(key(1, "a")).await.unwrap();
    let same_hash = NewKey { hash: KeyHash([1; 32]), ..key(2, "a") };
    let same_prefix = NewKey { prefix: key(1, "a").prefix, ..key(3, "a") };
    for twice in [same_hash, same_prefix] {
        assert!(matches!(fixture.other.create(twice).await, Err(KeyError::Exists)));
    }
    assert_eq!(fixture.store.list().await.unwrap().len(), 1);
    fixture.store.create(key(4, "a")).await.unwrap();
}

pub async fn a_refused_key_leaves_no_client_behind(fixture: Fixture) {
    fixture.store.create(key(1, "a")).await.unwrap();
    let refused = NewKey { hash: KeyHash([1; 32]), ..key(2, "b") };
    assert!(matches!(fixture.store.create(refused).await, Err(KeyError::Exists)));
    assert_eq!(fixture.store.client_names().await.unwrap(), ["a"]);
}

pub async fn one_name_has_one_random_number(fixture: Fixture) {
    let one = fixture.store.create(key(1, "a")).await.unwrap();
    let two = fixture.other.create(key(2, "a")).await.unwrap();
    let other = fixture.store.create(key(3, "b")).await.unwrap();
    assert_eq!(one.client, two.client);
    assert_ne!(one.client, other.client);
    assert!(one.client.0 > 0 && other.client.0 > 0);
    let greatest = one.client.0.max(other.client.0);
    assert!(greatest > 1_000_000, "serial numbers would be given again after a restore");

    let (three, four) =
        tokio::join!(fixture.store.create(key(4, "c")), fixture.other.create(key(5, "c")));
    assert_eq!(three.unwrap().client, four.unwrap().client, "made at the same time");
}

pub async fn keys_are_listed_newest_first(fixture: Fixture) {
    assert_eq!(fixture.store.list().await.unwrap(), []);
    for number in [2, 1, 3] {
        fixture.store.create(key(number, "a")).await.unwrap();
    }
    let prefixes: Vec<_> =
        fixture.store.list().await.unwrap().into_iter().map(|key| key.prefix).collect();
    assert_eq!(prefixes, ["ps_test_3", "ps_test_2", "ps_test_1"]);
}

pub async fn revoking_again_keeps_the_first_time(fixture: Fixture) {
    fixture.store.create(key(1, "a")).await.unwrap();
    fixture.store.create(key(2, "a")).await.unwrap();
    let (hash, revoked) = fixture.store.revoke("ps_test_1", NOW_MS).await.unwrap();
    assert_eq!(hash, KeyHash([1; 32]));
    assert_eq!(revoked.revoked_at_ms, Some(NOW_MS));
    let (_, again) = fixture.other.revoke("ps_test_1", NOW_MS + 5).await.unwrap();
    assert_eq!(again, revoked);
    assert_eq!(fixture.other.find(&hash).await.unwrap(), Some(revoked));
    let other = fixture.store.find(&KeyHash([2; 32])).await.unwrap().unwrap();
    assert_eq!(other.revoked_at_ms, None);
    let unknown = fixture.store.revoke("ps_test_9", NOW_MS).await;
    assert!(matches!(unknown, Err(KeyError::Unknown)));
}

pub async fn known_clients_are_those_that_exist(fixture: Fixture) {
    let client = fixture.store.create(key(1, "a")).await.unwrap().client;
    let stranger = ClientId(client.0 ^ 1);
    let known = fixture.store.known_clients(&[stranger, client, ClientId(-5)]).await.unwrap();
    assert_eq!(known, [client]);
    assert_eq!(fixture.store.known_clients(&[]).await.unwrap(), []);
}

pub async fn the_pepper_is_the_same_for_every_process(fixture: Fixture) {
    let pepper = fixture.store.pepper().await.unwrap();
    assert!(pepper.len() >= 32);
    assert!(pepper.iter().any(|byte| *byte != 0));
    assert_eq!(fixture.other.pepper().await.unwrap(), pepper);
}
