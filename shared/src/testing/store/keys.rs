//! Rules of [`KeyStore`].
#![expect(missing_docs, reason = "the names of rules are sentences")]

use super::{Fixture, NOW_MS};
use crate::event::ClientId;
use crate::store::{CHANGES_AT_ONCE, KeyError, KeyHash, KeyRecord, KeyStore, NewKey, Scope};

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
        hash: given.hash,
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

/// Interleaving 16: a number is never given again, not even by a database that was restored.
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
    let revoked = fixture.store.revoke("ps_test_1", NOW_MS).await.unwrap();
    assert_eq!(revoked.hash, KeyHash([1; 32]));
    assert_eq!(revoked.revoked_at_ms, Some(NOW_MS));
    let again = fixture.other.revoke("ps_test_1", NOW_MS + 5).await.unwrap();
    assert_eq!(again, revoked);
    assert_eq!(fixture.other.find(&revoked.hash).await.unwrap(), Some(revoked));
    let other = fixture.store.find(&KeyHash([2; 32])).await.unwrap().unwrap();
    assert_eq!(other.revoked_at_ms, None);
    let unknown = fixture.store.revoke("ps_test_9", NOW_MS).await;
    assert!(matches!(unknown, Err(KeyError::Unknown)));
}

pub async fn an_end_given_later_never_lies_behind_one_given_before(fixture: Fixture) {
    let created =
        fixture.store.create(NewKey { expires_at_ms: None, ..key(1, "a") }).await.unwrap();
    for (given, in_force) in [(5_000, 5_000), (9_000, 5_000), (2_000, 2_000)] {
        let expired = fixture.store.expire("ps_test_1", NOW_MS + given).await.unwrap();
        let expected = KeyRecord { expires_at_ms: Some(NOW_MS + in_force), ..created.clone() };
        assert_eq!(expired, expected);
        assert_eq!(fixture.other.find(&created.hash).await.unwrap(), Some(expected));
    }
    let unknown = fixture.store.expire("ps_test_9", NOW_MS).await;
    assert!(matches!(unknown, Err(KeyError::Unknown)));
}

/// The keys changed after `seen`, by the number that names them here; `seen` moves on.
async fn changed(store: &dyn KeyStore, seen: &mut i64) -> Vec<u8> {
    let changes = store.changes(*seen).await.unwrap();
    let in_order = changes.iter().is_sorted_by(|one, two| one.number < two.number);
    assert!(in_order && changes.first().is_none_or(|first| first.number > *seen), "{changes:?}");
    *seen = changes.last().map_or(*seen, |last| last.number);
    changes.iter().map(|change| change.hash.0[0]).collect()
}

pub async fn every_change_of_a_key_is_told_once_and_in_order(fixture: Fixture) {
    let mut seen = 0;
    let other = fixture.other.as_ref();
    assert!(changed(other, &mut seen).await.is_empty());
    for number in [1, 2, 3] {
        fixture.store.create(key(number, "a")).await.unwrap();
    }
    assert_eq!(changed(other, &mut seen).await, [1, 2, 3]);
    assert!(changed(other, &mut seen).await.is_empty());
    fixture.store.revoke("ps_test_2", NOW_MS).await.unwrap();
    fixture.store.expire("ps_test_1", NOW_MS).await.unwrap();
    assert_eq!(changed(other, &mut seen).await, [2, 1]);
    // Again: whoever heard nothing of the first time hears of the second.
    fixture.store.revoke("ps_test_2", NOW_MS).await.unwrap();
    assert_eq!(changed(other, &mut seen).await, [2]);
    assert!(fixture.store.revoke("ps_test_9", NOW_MS).await.is_err());
    assert!(changed(other, &mut seen).await.is_empty());
    assert_eq!(changed(other, &mut 0).await, [3, 1, 2], "a key is told with its last change");
}

pub async fn changes_made_together_are_all_told(fixture: Fixture) {
    let watch = async {
        let (mut seen, mut told) = (0, Vec::new());
        while told.len() < 20 {
            told.extend(changed(fixture.other.as_ref(), &mut seen).await);
        }
        told.sort_unstable();
        told
    };
    let make = futures_util::future::join_all((0..20).map(|number| {
        let store = if number % 2 == 0 { &fixture.store } else { &fixture.other };
        store.create(key(number, "a"))
    }));
    let (made, told) = tokio::join!(make, watch);
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    assert_eq!(told, (0..20).collect::<Vec<_>>());
}

pub async fn changes_come_in_portions(fixture: Fixture) {
    let count = CHANGES_AT_ONCE + 1;
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        let mut hash = [0; 32];
        (hash[0], hash[1]) = (high, low);
        let new = NewKey { hash: KeyHash(hash), prefix: format!("p{number}"), ..key(0, "a") };
        fixture.store.create(new).await.unwrap();
    }
    let mut seen = 0;
    let first = changed(fixture.other.as_ref(), &mut seen).await;
    assert_eq!(first.len(), usize::from(CHANGES_AT_ONCE));
    assert_eq!(changed(fixture.other.as_ref(), &mut seen).await.len(), 1);
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
