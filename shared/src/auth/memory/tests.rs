use super::*;
use crate::event::ClientId;

const HASH: KeyHash = KeyHash([7; 32]);
const LIFE: Duration = Duration::from_secs(20);
const MS: Duration = Duration::from_millis(1);

fn record() -> Arc<KeyRecord> {
    Arc::new(KeyRecord {
        hash: HASH,
        prefix: "ps_test".into(),
        client: ClientId(1),
        client_name: "tenant".into(),
        scopes: Vec::new(),
        rate: None,
        burst: None,
        created_at_ms: 0,
        expires_at_ms: None,
        revoked_at_ms: None,
    })
}

fn found() -> Found {
    Found::Key { record: record(), age: Duration::ZERO, life: LIFE }
}

fn memory() -> Arc<Memory> {
    Memory::new(Duration::from_secs(5))
}

/// Begins the lookup of the key.
#[track_caller]
fn lead(memory: &Arc<Memory>, now: Instant) -> Lookup {
    match memory.join(HASH, now) {
        Joined::Lead(lookup, _) => lookup,
        Joined::Follow(_) => panic!("another lookup is under way"),
        Joined::Recalled(recalled) => panic!("{recalled:?}"),
    }
}

#[test]
fn a_key_is_fresh_for_its_life_and_then_asked_for() {
    let (memory, now) = (memory(), Instant::now());
    assert_eq!(memory.recall(&HASH, now), None);
    assert!(lead(&memory, now).finish(&found(), now).is_some());
    assert_eq!(memory.recall(&HASH, now + LIFE - MS), Some(Recall::Fresh(record())));
    assert_eq!(memory.recall(&HASH, now + LIFE), None);
    assert!(lead(&memory, now + LIFE).known);
}

#[test]
fn a_lookup_that_began_before_a_change_is_not_remembered() {
    for answer in [found(), Found::Unknown] {
        let (memory, now) = (memory(), Instant::now());
        let slow = lead(&memory, now);
        memory.changed(&HASH);
        // One that begins after the change does not wait for it, and is.
        let quick = lead(&memory, now);
        assert!(slow.finish(&answer, now).is_none());
        assert_eq!(memory.recall(&HASH, now), None);
        assert!(quick.finish(&answer, now).is_some());
        assert!(memory.recall(&HASH, now).is_some());
    }
}

#[test]
fn a_lookup_that_began_before_notices_were_missed_serves_an_outage_alone() {
    let (memory, now) = (memory(), Instant::now());
    let slow = lead(&memory, now);
    memory.missed();
    assert!(slow.finish(&found(), now).is_none());
    assert_eq!(memory.recall(&HASH, now), None);
    lead(&memory, now).finish(&Found::Unavailable, now);
    assert_eq!(memory.recall(&HASH, now), Some(Recall::Stale(record())));

    // Unknown then may be known now.
    let (memory, now) = (self::memory(), Instant::now());
    let slow = lead(&memory, now);
    memory.missed();
    assert!(slow.finish(&Found::Unknown, now).is_none());
    assert_eq!(memory.recall(&HASH, now), None);
}

#[test]
fn after_missed_notices_a_lookup_begins_anew_and_the_older_one_says_nothing() {
    let (memory, now) = (memory(), Instant::now());
    let older = lead(&memory, now);
    memory.missed();
    let newer = lead(&memory, now);
    newer.finish(&Found::Unknown, now);
    assert!(older.finish(&found(), now).is_none());
    assert_eq!(memory.recall(&HASH, now), Some(Recall::Unknown));
}

#[test]
fn a_changed_key_is_forgotten_for_good_and_others_are_not() {
    let (memory, now) = (memory(), Instant::now());
    lead(&memory, now).finish(&found(), now);
    memory.changed(&KeyHash([8; 32]));
    assert_eq!(memory.recall(&HASH, now), Some(Recall::Fresh(record())));
    memory.changed(&HASH);
    assert_eq!(memory.recall(&HASH, now), None);
    // Not even while nobody can be asked.
    lead(&memory, now).finish(&Found::Unavailable, now);
    assert_eq!(memory.recall(&HASH, now), None);
}

#[test]
fn a_new_key_is_unknown_no_more() {
    let (memory, now) = (memory(), Instant::now());
    lead(&memory, now).finish(&Found::Unknown, now);
    assert_eq!(memory.recall(&HASH, now), Some(Recall::Unknown));
    memory.changed(&HASH);
    assert_eq!(memory.recall(&HASH, now), None);

    lead(&memory, now).finish(&Found::Unknown, now);
    memory.missed();
    assert_eq!(memory.recall(&HASH, now), None);
}

#[test]
fn after_missed_notices_every_key_is_asked_for_and_good_ones_are_kept_for_an_outage() {
    let (memory, now) = (memory(), Instant::now());
    lead(&memory, now).finish(&found(), now);
    memory.missed();
    assert_eq!(memory.recall(&HASH, now), None);
    lead(&memory, now).finish(&Found::Unavailable, now);
    assert_eq!(memory.recall(&HASH, now), Some(Recall::Stale(record())));
}

#[test]
fn a_known_key_goes_on_for_ten_minutes_from_its_last_reading() {
    let (memory, read_at) = (memory(), Instant::now());
    let age = Duration::from_secs(10);
    let aged = Found::Key { record: record(), age, life: LIFE };
    lead(&memory, read_at).finish(&aged, read_at);
    let end = read_at + STALE - age;
    let mut now = read_at + LIFE;
    let mut asked = 0;
    while now < end {
        match memory.recall(&HASH, now) {
            Some(Recall::Stale(_)) => {}
            None => {
                asked += 1;
                assert!(lead(&memory, now).finish(&Found::Unavailable, now).is_some());
            }
            other => panic!("{other:?}"),
        }
        now += 100 * MS;
    }
    assert!((500..1_200).contains(&asked), "about once a second, not {asked} times");
    let after = end + STALE_PAUSE;
    assert_eq!(memory.recall(&HASH, after), None);
    lead(&memory, after).finish(&Found::Unavailable, after);
    assert_eq!(memory.recall(&HASH, after), None);
}

#[test]
fn a_key_found_again_after_an_outage_is_fresh() {
    let (memory, now) = (memory(), Instant::now());
    lead(&memory, now).finish(&found(), now);
    let later = now + LIFE;
    lead(&memory, later).finish(&Found::Unavailable, later);
    let back = later + STALE_PAUSE;
    lead(&memory, back).finish(&found(), back);
    assert_eq!(memory.recall(&HASH, back), Some(Recall::Fresh(record())));
    // And a key that turns out gone is gone at once.
    let gone = back + LIFE;
    lead(&memory, gone).finish(&Found::Unknown, gone);
    assert_eq!(memory.recall(&HASH, gone), Some(Recall::Unknown));
}

#[tokio::test]
async fn a_lookup_that_dies_tells_its_followers_and_the_next_begins_anew() {
    let (memory, now) = (memory(), Instant::now());
    let lookup = lead(&memory, now);
    let Joined::Follow(answer) = memory.join(HASH, now) else { panic!("not under way") };
    drop(lookup);
    assert!(answer.await.is_err());
    lead(&memory, now).finish(&found(), now);
}

#[tokio::test]
async fn who_comes_after_the_end_of_a_lookup_begins_no_other() {
    let (memory, now) = (memory(), Instant::now());
    let lookup = lead(&memory, now);
    let Joined::Follow(answer) = memory.join(HASH, now) else { panic!("not under way") };
    lookup.finish(&found(), now);
    assert_eq!(answer.await.unwrap(), Ok(record()));
    assert!(matches!(memory.join(HASH, now), Joined::Recalled(Recall::Fresh(_))));
}
