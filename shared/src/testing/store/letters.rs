//! Rules of dead letters: how they are listed, what settles them, and that a replay happens once.
#![expect(missing_docs, reason = "the names of rules are sentences")]

use uuid::Uuid;

use super::{Copies, EPOCH, Fixture, GROUP, NOW_MS, batch, place, row, verdict};
use crate::event::{ClientId, DeviceId, EventId};
use crate::log::{Offset, Partition};
use crate::store::{
    DeadLetter, DeadReason, Letter, LetterFilter, LetterPlace, LetterState, StoreBatch, StoreRow,
    Written,
};

/// Everything.
pub(super) const ALL: LetterFilter = LetterFilter {
    reason: None,
    since_us: None,
    until_us: None,
    client: None,
    device: None,
    id: None,
    partition: None,
    offset: None,
    epoch: None,
    max_attempts: None,
};

pub(super) fn at(partition: Partition, offset: Offset) -> LetterPlace {
    LetterPlace { partition, epoch: EPOCH, offset }
}

pub(super) fn dead(offset: Offset, client: i32, reason: DeadReason) -> DeadLetter {
    DeadLetter {
        partition: 0,
        offset,
        client: Some(ClientId(client)),
        id: Some(EventId(Uuid::from_u128(offset.unsigned_abs().into()))),
        reason,
        sqlstate: Some("22P05".to_owned()),
        detail: format!("number {offset}"),
        replay: None,
    }
}

/// A record at an offset that comes from the letter at another.
fn replayed(offset: Offset, letter: Offset) -> StoreRow {
    let id = letter.unsigned_abs().into();
    StoreRow { replay: Some(Box::new(at(0, letter))), ..row(0, offset, id) }
}

/// The same, dead again.
fn dead_again(offset: Offset, letter: Offset) -> DeadLetter {
    DeadLetter {
        replay: Some(Box::new(at(0, letter))),
        ..dead(offset, 1, DeadReason::UnknownClient)
    }
}

pub(super) fn burial(from: Offset, letters: Vec<DeadLetter>) -> StoreBatch<'static> {
    let to = letters.last().map_or(from, |letter| letter.offset + 1);
    StoreBatch { dead: letters, ..batch(from, to, Vec::new()) }
}

impl Fixture {
    /// Buries these letters of partition 0, each in a batch of its own, from offset 0 on.
    pub(super) async fn bury(&self, letters: Vec<DeadLetter>) {
        self.begin(1).await;
        let mut from = 0;
        for letter in letters {
            let batch = burial(from, vec![letter]);
            from = batch.to[0].next;
            assert!(matches!(self.write(&batch).await, Written::Stored { .. }));
        }
    }

    async fn walked(&self, filter: &LetterFilter) -> Vec<Letter> {
        self.store.walk(filter, None, 1_000).await.unwrap()
    }

    async fn offsets(&self, filter: &LetterFilter) -> Vec<Offset> {
        offsets(&self.walked(filter).await)
    }
}

pub(super) fn offsets(letters: &[Letter]) -> Vec<Offset> {
    letters.iter().map(|letter| letter.place.offset).collect()
}

pub async fn a_letter_is_told_as_it_was_buried(fixture: Fixture) {
    fixture.bury(vec![dead(4, 7, DeadReason::Rejected)]).await;
    let letters = fixture.store.newest(&ALL, 10).await.unwrap();
    let letter = Letter {
        place: at(0, 4),
        client: Some(ClientId(7)),
        id: Some(EventId(Uuid::from_u128(4))),
        device: Some(DeviceId(Uuid::from_u128(0xd))),
        reason: "rejected".to_owned(),
        sqlstate: Some("22P05".to_owned()),
        detail: "number 4".to_owned(),
        attempt: 1,
        died_at_us: letters[0].died_at_us,
        copy: Some((0, 1_004)),
        replay: None,
    };
    assert_eq!(letters, std::slice::from_ref(&letter));
    assert_eq!(fixture.walked(&ALL).await, [letter]);
}

pub async fn letters_are_listed_newest_first_and_walked_by_place(fixture: Fixture) {
    fixture.bury((0..5).map(|offset| dead(offset, 1, DeadReason::Malformed)).collect()).await;
    let newest = fixture.store.newest(&ALL, 3).await.unwrap();
    assert_eq!(newest.len(), 3);
    assert!(newest.is_sorted_by_key(|letter| std::cmp::Reverse(letter.died_at_us)));
    assert!(offsets(&newest).contains(&4));

    let mut walked = Vec::new();
    let mut after = None;
    loop {
        let page = fixture.store.walk(&ALL, after, 2).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.place);
        walked.extend(offsets(&page));
    }
    assert_eq!(walked, [0, 1, 2, 3, 4]);
    assert_eq!(fixture.store.count(&ALL).await.unwrap(), [("malformed".to_owned(), 5)]);
}

pub async fn every_filter_leaves_what_meets_it(fixture: Fixture) {
    use DeadReason::{Malformed, OutOfRange, UnknownClient};
    let letters = vec![dead(0, 1, Malformed), dead(1, 2, UnknownClient), dead(2, 2, OutOfRange)];
    fixture.bury(letters).await;
    let all = fixture.walked(&ALL).await;
    let died_us: Vec<_> = all.iter().map(|letter| letter.died_at_us).collect();
    let until_us = died_us[0];
    let id = Some(EventId(Uuid::from_u128(1)));
    let device = |device| Some(DeviceId(Uuid::from_u128(device)));
    let cases: [(LetterFilter, &[Offset]); 14] = [
        (ALL, &[0, 1, 2]),
        (LetterFilter { reason: Some(UnknownClient), ..ALL }, &[1]),
        (LetterFilter { client: Some(ClientId(2)), ..ALL }, &[1, 2]),
        (LetterFilter { client: Some(ClientId(2)), reason: Some(OutOfRange), ..ALL }, &[2]),
        (LetterFilter { id, ..ALL }, &[1]),
        (LetterFilter { device: device(0xd), ..ALL }, &[0, 1, 2]),
        (LetterFilter { device: device(0xc), ..ALL }, &[]),
        (LetterFilter { partition: Some(0), offset: Some(2), ..ALL }, &[2]),
        (LetterFilter { partition: Some(1), ..ALL }, &[]),
        (LetterFilter { epoch: Some(EPOCH), ..ALL }, &[0, 1, 2]),
        (LetterFilter { epoch: Some(Uuid::nil()), ..ALL }, &[]),
        (LetterFilter { max_attempts: Some(1), ..ALL }, &[]),
        (LetterFilter { max_attempts: Some(2), ..ALL }, &[0, 1, 2]),
        (LetterFilter { since_us: Some(died_us[2] + 1), ..ALL }, &[]),
    ];
    for (filter, expected) in cases {
        assert_eq!(fixture.offsets(&filter).await, expected, "{filter:?}");
        let newest = fixture.store.newest(&filter, 10).await.unwrap();
        assert_eq!(newest.len(), expected.len(), "{filter:?}");
        let counted = fixture.store.count(&filter).await.unwrap();
        let counted: u64 = counted.iter().map(|(_, count)| count).sum();
        assert_eq!(counted, expected.len() as u64, "{filter:?}");
    }
    // Times are inclusive on both sides.
    let at_once = LetterFilter { since_us: Some(until_us), until_us: Some(until_us), ..ALL };
    assert!(fixture.offsets(&at_once).await.contains(&0));
}

pub async fn a_letter_goes_with_the_batch_that_stores_its_replay(fixture: Fixture) {
    fixture.bury(vec![dead(0, 1, DeadReason::UnknownClient)]).await;
    let other = dead(1, 1, DeadReason::Malformed);
    fixture.write(&burial(1, vec![other])).await;

    let replay = batch(2, 3, vec![replayed(2, 0)]);
    let copies = Copies { failures: 1.into(), ..Copies::default() };
    let with_poison = StoreBatch { dead: vec![dead_again(2, 0)], ..replay.clone() };
    assert!(fixture.store.write(&with_poison, &copies).await.is_err());
    assert_eq!(fixture.offsets(&ALL).await, [0, 1], "rolled back with the rest");

    assert_eq!(verdict(&fixture.write(&replay).await), (1, 0, vec![]));
    assert_eq!(fixture.offsets(&ALL).await, [1], "a letter of another record stays");
    assert_eq!(fixture.count().await, 1);
}

pub async fn a_replay_that_dies_changes_its_letter(fixture: Fixture) {
    fixture.bury(vec![dead(0, 1, DeadReason::UnknownClient)]).await;
    let before = fixture.walked(&ALL).await;
    let death = DeadLetter { reason: DeadReason::OutOfRange, ..dead_again(3, 0) };
    let written = fixture.write(&burial(1, vec![death])).await;
    assert_eq!(verdict(&written), (0, 0, vec![(3, "out_of_range")]));
    let after = fixture.walked(&ALL).await;
    let changed = Letter {
        reason: "out_of_range".to_owned(),
        detail: "number 3".to_owned(),
        attempt: 2,
        died_at_us: after[0].died_at_us,
        copy: Some((0, 1_003)),
        id: Some(EventId(Uuid::from_u128(3))),
        ..before[0].clone()
    };
    assert_eq!(after, [changed]);
    assert!(after[0].died_at_us > before[0].died_at_us);
}

pub async fn of_two_replays_of_one_letter_the_second_leaves_one_letter_or_none(fixture: Fixture) {
    fixture.bury(vec![dead(0, 1, DeadReason::UnknownClient)]).await;
    for offset in 1..3 {
        let died = fixture.write(&burial(offset, vec![dead_again(offset, 0)])).await;
        assert_eq!(verdict(&died), (0, 0, vec![(offset, "unknown_client")]));
        assert_eq!(fixture.offsets(&ALL).await, [0]);
    }
    let mut stored = replayed(3, 0);
    assert_eq!(verdict(&fixture.write(&batch(3, 4, vec![stored.clone()])).await), (1, 0, vec![]));
    assert_eq!(fixture.offsets(&ALL).await, [0; 0]);
    stored.offset = 4;
    assert_eq!(verdict(&fixture.write(&batch(4, 5, vec![stored])).await), (0, 1, vec![]));
    let late = fixture.write(&burial(5, vec![dead_again(5, 0)])).await;
    assert_eq!(verdict(&late), (0, 1, vec![]), "its event is stored");
    assert_eq!((fixture.count().await, fixture.offsets(&ALL).await), (1, vec![]));
}

pub async fn of_two_replays_in_one_batch_the_second_leaves_one_letter_or_none(fixture: Fixture) {
    fixture.bury(vec![dead(0, 1, DeadReason::UnknownClient)]).await;
    let both = burial(1, vec![dead_again(1, 0), dead_again(2, 0)]);
    let both = verdict(&fixture.write(&both).await);
    assert_eq!(both, (0, 0, vec![(1, "unknown_client"), (2, "unknown_client")]));
    assert_eq!(fixture.offsets(&ALL).await, [0]);

    let both = batch(3, 5, vec![replayed(3, 0), replayed(4, 0)]);
    assert_eq!(verdict(&fixture.write(&both).await), (1, 1, vec![]));
    assert_eq!((fixture.count().await, fixture.offsets(&ALL).await), (1, vec![]));
}

pub async fn a_replay_that_meets_another_event_stays_a_letter(fixture: Fixture) {
    fixture.bury(vec![dead(0, 1, DeadReason::UnknownClient)]).await;
    let mut other = row(0, 1, 0);
    other.event.value += 1.0;
    fixture.write(&batch(1, 2, vec![other])).await;
    let good = dead(2, 1, DeadReason::Malformed);
    fixture.write(&burial(2, vec![good])).await;
    let mixed = batch(3, 5, vec![replayed(3, 0), replayed(4, 2)]);
    assert_eq!(verdict(&fixture.write(&mixed).await), (1, 0, vec![(3, "id_conflict")]));
    assert_eq!(fixture.offsets(&ALL).await, [0]);
}

pub async fn a_replay_whose_letter_was_purged_is_not_buried_again(fixture: Fixture) {
    fixture.bury(vec![dead(0, 1, DeadReason::UnknownClient)]).await;
    let letters = fixture.walked(&ALL).await;
    assert_eq!(fixture.store.purge(&letters).await.unwrap(), 1);
    let written = fixture.write(&burial(1, vec![dead_again(1, 0)])).await;
    assert_eq!(verdict(&written), (0, 1, vec![]));
    assert_eq!(fixture.offsets(&ALL).await, [0; 0]);
}

pub async fn a_fenced_replay_leaves_its_letter(fixture: Fixture) {
    fixture.bury(vec![dead(0, 1, DeadReason::UnknownClient)]).await;
    let zombie = batch(7, 8, vec![replayed(7, 0)]);
    assert_eq!(fixture.write(&zombie).await, Written::Fenced);
    assert_eq!(fixture.offsets(&ALL).await, [0]);
}

pub async fn a_marked_letter_waits_until_the_store_has_passed_its_replay(fixture: Fixture) {
    let letters = [0, 1].map(|offset| dead(offset, 1, DeadReason::UnknownClient));
    fixture.bury(letters.into()).await;
    let marks = [(at(0, 0), at(0, 2)), (at(0, 9), at(0, 3))];
    fixture.store.mark_replayed(&marks).await.unwrap();
    let states = async || {
        let progress = fixture.store.progress(GROUP).await.unwrap();
        let letters = fixture.walked(&ALL).await;
        letters.iter().map(|it| (it.place.offset, it.state(&progress))).collect::<Vec<_>>()
    };
    use LetterState::{Dead, Replayed};
    assert_eq!(states().await, [(0, Replayed), (1, Dead)]);
    assert_eq!(fixture.walked(&ALL).await[0].replay, Some(at(0, 2)));
    // The store passes the place, and the replay is not there: its log lost it.
    fixture.write(&batch(2, 3, Vec::new())).await;
    assert_eq!(states().await, [(0, Dead), (1, Dead)]);
    fixture.store.mark_replayed(&[(at(0, 0), at(0, 3))]).await.unwrap();
    assert_eq!(states().await, [(0, Replayed), (1, Dead)]);
    let other = crate::store::Progress { epoch: Uuid::from_u128(0xf), ..place(0, 0) };
    let stands = fixture.store.progress(GROUP).await.unwrap()[0];
    fixture.store.place(GROUP, Some(stands), other).await.unwrap();
    assert_eq!(states().await, [(0, Dead), (1, Dead)], "lost with its log");
}

pub async fn purge_takes_what_is_as_it_was_seen(fixture: Fixture) {
    let letters = (0..4).map(|offset| dead(offset, 1, DeadReason::Malformed)).collect();
    fixture.bury(letters).await;
    let mut seen = fixture.walked(&ALL).await;
    fixture.other.mark_replayed(&[(at(0, 1), at(0, 9))]).await.unwrap();
    assert_eq!(fixture.store.purge(&seen[..2]).await.unwrap(), 1, "one was replayed since");
    assert_eq!(fixture.offsets(&ALL).await, [1, 2, 3]);
    assert_eq!(fixture.store.purge(&seen[..2]).await.unwrap(), 0);
    seen = fixture.walked(&ALL).await;
    assert_eq!(fixture.store.purge(&seen[..2]).await.unwrap(), 2, "seen as it is now");
    assert_eq!(fixture.store.purge(&[]).await.unwrap(), 0);
    assert_eq!(fixture.offsets(&ALL).await, [3]);
    fixture.write(&burial(4, vec![dead_again(4, 3)])).await;
    assert_eq!(fixture.store.purge(&seen).await.unwrap(), 0, "it died of something else since");
    assert_eq!(fixture.offsets(&ALL).await, [3]);
}

pub async fn a_replay_meets_its_id_under_another_timestamp(fixture: Fixture) {
    fixture.bury(vec![dead(0, 1, DeadReason::UnknownClient)]).await;
    let mut stored = row(0, 1, 0);
    stored.event.timestamp_ms = NOW_MS - 2 * super::DAY_MS;
    assert_eq!(verdict(&fixture.write(&batch(1, 2, vec![stored])).await), (1, 0, vec![]));
    let replay = batch(2, 3, vec![replayed(2, 0)]);
    assert_eq!(verdict(&fixture.write(&replay).await), (0, 0, vec![(2, "id_conflict")]));
    let letters = fixture.walked(&ALL).await;
    assert_eq!((letters.len(), letters[0].attempt), (1, 2));
    assert_eq!(fixture.count().await, 1);
}
