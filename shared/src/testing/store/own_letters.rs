//! Rules of dead letters as their client reads them: its own and nobody else's, newest first, in pages.
#![expect(missing_docs, reason = "the names of rules are sentences")]

use super::letters::{ALL, at, burial, dead, offsets};
use super::query::{ME, OTHER};
use super::{Fixture, GROUP, batch};
use crate::event::{ClientId, DeviceId};
use crate::log::Offset;
use crate::store::query::{LetterKey, LettersQuery, Page};
use crate::store::{DeadLetter, DeadReason, Letter, LetterFilter, LetterState};
use uuid::Uuid;

fn query() -> LettersQuery {
    LettersQuery { client: ME, filter: ALL, after: None, limit: 1_000 }
}

fn mine(offset: Offset) -> DeadLetter {
    dead(offset, ME.0, DeadReason::Malformed)
}

async fn page(fixture: &Fixture, query: &LettersQuery) -> Page<(Letter, LetterState), LetterKey> {
    let page = fixture.query.letters(query).await.unwrap();
    assert!(page.rows.len() <= query.limit);
    page
}

/// The letters of all pages.
async fn walk(fixture: &Fixture, mut query: LettersQuery) -> Vec<Letter> {
    let mut letters = Vec::new();
    loop {
        let page = page(fixture, &query).await;
        letters.extend(page.rows.into_iter().map(|(letter, _)| letter));
        match page.next {
            Some(next) => query.after = Some(next),
            None => return letters,
        }
    }
}

pub async fn a_client_reads_its_own_letters_newest_first_in_pages_of_any_size(fixture: Fixture) {
    fixture.begin(1).await;
    // Some die at one moment, and of the others nobody else's and nobody's lie between.
    let theirs = dead(3, OTHER.0, DeadReason::Malformed);
    let nobodys = DeadLetter { client: None, ..mine(4) };
    let at_once = vec![mine(0), mine(1), mine(2), theirs, nobodys];
    fixture.write(&burial(0, at_once)).await;
    for offset in 5..8 {
        fixture.write(&burial(offset, vec![mine(offset)])).await;
    }
    let all = walk(&fixture, query()).await;
    assert_eq!(offsets(&all), [7, 6, 5, 2, 1, 0]);
    assert!(all.is_sorted_by(|one, other| one.sort_key() > other.sort_key()));
    assert!(all.iter().all(|letter| letter.client == Some(ME) && letter.copy.is_some()));
    for limit in 1..8 {
        assert_eq!(walk(&fixture, LettersQuery { limit, ..query() }).await, all, "{limit}");
    }
    assert_eq!(offsets(&walk(&fixture, LettersQuery { client: OTHER, ..query() }).await), [3]);
    let stranger = LettersQuery { client: ClientId(3), ..query() };
    assert_eq!(walk(&fixture, stranger).await, []);
    // Whatever client a filter names.
    let filter = LetterFilter { client: Some(OTHER), ..ALL };
    assert_eq!(walk(&fixture, LettersQuery { filter, ..query() }).await, all);
}

pub async fn of_its_letters_a_client_reads_those_that_meet_a_filter(fixture: Fixture) {
    let out_of_range = dead(2, ME.0, DeadReason::OutOfRange);
    let theirs = dead(3, OTHER.0, DeadReason::OutOfRange);
    fixture.bury(vec![mine(0), mine(1), out_of_range, theirs]).await;
    let died_us: Vec<_> = walk(&fixture, query()).await.iter().map(|it| it.died_at_us).collect();
    let device = |number| Some(DeviceId(Uuid::from_u128(number)));
    let place = |offset| LetterFilter {
        partition: Some(0),
        offset: Some(offset),
        epoch: Some(at(0, offset).epoch),
        ..ALL
    };
    let cases: [(LetterFilter, &[Offset]); 8] = [
        (LetterFilter { reason: Some(DeadReason::OutOfRange), ..ALL }, &[2]),
        (LetterFilter { reason: Some(DeadReason::Rejected), ..ALL }, &[]),
        (LetterFilter { device: device(0xd), ..ALL }, &[2, 1, 0]),
        (LetterFilter { device: device(0xc), ..ALL }, &[]),
        (LetterFilter { since_us: Some(died_us[1]), ..ALL }, &[2, 1]),
        (LetterFilter { until_us: Some(died_us[1]), ..ALL }, &[1, 0]),
        (place(1), &[1]),
        (place(3), &[]),
    ];
    for (filter, expected) in cases {
        let found = walk(&fixture, LettersQuery { filter: filter.clone(), limit: 2, ..query() });
        assert_eq!(offsets(&found.await), expected, "{filter:?}");
    }
}

pub async fn pages_of_letters_neither_repeat_nor_skip_while_others_die(fixture: Fixture) {
    fixture.begin(1).await;
    fixture.write(&burial(0, (0..5).map(mine).collect())).await;
    fixture.write(&burial(5, (5..9).map(mine).collect())).await;
    let at_start = offsets(&walk(&fixture, query()).await);
    assert_eq!(at_start.len(), 9);
    let mut query = LettersQuery { limit: 2, ..query() };
    let (mut seen, mut late) = (Vec::new(), 9);
    loop {
        let page = page(&fixture, &query).await;
        seen.extend(page.rows.iter().map(|(letter, _)| letter.place.offset));
        fixture.write(&burial(late, vec![mine(late)])).await;
        late += 1;
        match page.next {
            Some(next) => query.after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, at_start);
}

pub async fn a_letter_is_read_with_what_it_waits_for(fixture: Fixture) {
    fixture.bury(vec![mine(0), mine(1)]).await;
    let states = async || {
        let page = page(&fixture, &query()).await;
        page.rows.iter().map(|(it, state)| (it.place.offset, *state)).collect::<Vec<_>>()
    };
    use LetterState::{Dead, Replayed};
    assert_eq!(states().await, [(1, Dead), (0, Dead)]);
    fixture.store.mark_replayed(&[(at(0, 0), at(0, 2))]).await.unwrap();
    assert_eq!(states().await, [(1, Dead), (0, Replayed)]);
    assert_eq!(fixture.store.progress(GROUP).await.unwrap()[0].next, 2, "it lies ahead");
    fixture.write(&batch(2, 3, Vec::new())).await;
    assert_eq!(states().await, [(1, Dead), (0, Dead)], "its replay was lost");
}
