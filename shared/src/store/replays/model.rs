//! Letters against a model: poison arrives, is mended and spoilt, and two careless operators replay and purge
//! what they read a while ago, and end at any point, while a store settles the log and at times loses a
//! replay. A letter is in the table, or its event is stored, never both and never twice.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::event::ClientId;
use crate::store::{DeadReason, Letter, LetterState, Progress};
use crate::testing::store::row;

const EPOCH: Uuid = Uuid::from_u128(0xe);

#[derive(Debug, Clone)]
enum Step {
    Arrive,
    Mend(usize),
    Spoil(usize),
    Settle(usize),
    ReadProgress,
    ReadLetters,
    Append(usize),
    Mark,
    Purge(usize),
    Crash,
    LoseReplay,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Arrive),
        2 => (0..8_usize).prop_map(Step::Mend),
        1 => (0..8_usize).prop_map(Step::Spoil),
        5 => (1..6_usize).prop_map(Step::Settle),
        3 => Just(Step::ReadProgress),
        4 => Just(Step::ReadLetters),
        4 => (0..4_usize).prop_map(Step::Append),
        3 => Just(Step::Mark),
        1 => (0..4_usize).prop_map(Step::Purge),
        1 => Just(Step::Crash),
        1 => Just(Step::LoseReplay),
    ];
    proptest::collection::vec(step, 1..80)
}

type EventNumber = usize;

#[derive(Default)]
struct World {
    /// Each record is of one event, and maybe the replay of a letter.
    log: Vec<(EventNumber, Option<LetterPlace>)>,
    next: usize,
    events: EventNumber,
    mended: BTreeSet<EventNumber>,
    table: BTreeMap<LetterPlace, (EventNumber, Letter)>,
    stored: BTreeSet<EventNumber>,
    purged: BTreeSet<EventNumber>,
    /// What operators know: the store's place, letters they read, replays they have not noted yet.
    progress: usize,
    read: Vec<Vec<Letter>>,
    unmarked: Vec<(LetterPlace, LetterPlace)>,
}

fn place(offset: usize) -> LetterPlace {
    LetterPlace { partition: 0, epoch: EPOCH, offset: i64::try_from(offset).unwrap() }
}

impl World {
    fn take(&mut self, step: &Step) {
        match step {
            Step::Arrive => {
                self.log.push((self.events, None));
                self.events += 1;
            }
            Step::Mend(event) => drop(self.mended.insert(*event)),
            Step::Spoil(event) => drop(self.mended.remove(event)),
            Step::Settle(count) => self.settle(*count),
            Step::ReadProgress => self.progress = self.next,
            Step::ReadLetters => self.read.push(self.dead()),
            Step::Append(which) => self.append(*which),
            Step::Mark => self.mark(),
            Step::Purge(which) => self.purge(*which),
            Step::Crash => {
                self.read.clear();
                self.unmarked.clear();
            }
            Step::LoseReplay if self.log.get(self.next).is_some_and(|it| it.1.is_some()) => {
                self.next += 1;
            }
            Step::LoseReplay => {}
        }
    }

    /// One transaction, as both engines have it.
    fn settle(&mut self, count: usize) {
        let end = self.log.len().min(self.next + count);
        let (mut rows, mut dead) = (Vec::new(), Vec::new());
        for (offset, (event, letter)) in (0..).zip(&self.log).take(end).skip(self.next) {
            let replay = letter.map(Box::new);
            let row = row(0, offset, *event as u128);
            if self.mended.contains(event) {
                rows.push(StoreRow { replay, ..row });
            } else {
                dead.push(death(offset, replay));
            }
        }
        for letter in stored_letters(rows.iter(), &dead) {
            self.table.remove(&letter);
        }
        let event_at = |offset: i64| self.log[usize::try_from(offset).unwrap()].0;
        self.stored.extend(rows.iter().map(|row| event_at(row.offset)));
        let mut changed = HashSet::new();
        for death in &dead {
            let event = event_at(death.offset);
            let Some(letter) = death.replay.as_deref() else {
                let offset = usize::try_from(death.offset).unwrap();
                self.table.insert(place(offset), (event, letter_of(death, place(offset))));
                continue;
            };
            if let Some((_, row)) = self.table.get_mut(letter) {
                row.attempt += 1;
                row.died_at_us = death.offset;
                changed.insert(*letter);
            }
        }
        let (there, gone) = leave_out_gone(dead.clone(), &changed);
        assert_eq!(there.len() + usize::try_from(gone).unwrap(), dead.len());
        self.next = end;
    }

    fn dead(&self) -> Vec<Letter> {
        let next = i64::try_from(self.progress).unwrap();
        let progress = [Progress { partition: 0, epoch: EPOCH, next, last_id: None }];
        let letters = self.table.values().map(|(_, letter)| letter);
        letters.filter(|it| it.state(&progress) == LetterState::Dead).cloned().collect()
    }

    fn append(&mut self, which: usize) {
        for letter in self.read.get(which).cloned().unwrap_or_default() {
            // The letter's event: a copy has it, also when the row is gone by now.
            let event = self.log[usize::try_from(letter.place.offset).unwrap()].0;
            self.unmarked.push((letter.place, place(self.log.len())));
            self.log.push((event, Some(letter.place)));
        }
    }

    fn mark(&mut self) {
        for (letter, replay) in self.unmarked.drain(..) {
            if let Some((_, row)) = self.table.get_mut(&letter) {
                row.replay = Some(replay);
            }
        }
    }

    fn purge(&mut self, which: usize) {
        for seen in self.read.get(which).cloned().unwrap_or_default() {
            if self.table.get(&seen.place).is_some_and(|(_, letter)| *letter == seen) {
                self.purged.extend(self.table.remove(&seen.place).map(|(event, _)| event));
            }
        }
    }

    fn check(&self) {
        let arrived = self.log.iter().take(self.next).map(|(event, _)| *event);
        for event in arrived.collect::<BTreeSet<_>>() {
            let rows = self.table.values().filter(|(of, _)| *of == event).count();
            let kept = rows + usize::from(self.stored.contains(&event));
            let purged = self.purged.contains(&event);
            assert!(kept == 1 || (kept == 0 && purged), "event {event} is kept {kept} times");
        }
    }

    /// Everything is mended, and replayed by one careful operator.
    fn bring_home(&mut self) {
        self.mended.extend(0..self.events);
        self.take(&Step::Crash);
        self.settle(usize::MAX / 2);
        for step in [Step::ReadProgress, Step::ReadLetters, Step::Append(0), Step::Mark] {
            self.take(&step);
        }
        self.take(&Step::ReadLetters);
        assert_eq!(self.read[1], [], "what is on its way is not replayed again");
        self.settle(usize::MAX / 2);
        self.check();
        assert!(self.table.is_empty());
    }
}

fn death(offset: i64, replay: Option<Box<LetterPlace>>) -> DeadLetter {
    DeadLetter {
        partition: 0,
        offset,
        client: Some(ClientId(1)),
        id: None,
        reason: DeadReason::UnknownClient,
        sqlstate: None,
        detail: String::new(),
        replay,
    }
}

fn letter_of(death: &DeadLetter, place: LetterPlace) -> Letter {
    Letter {
        place,
        client: death.client,
        id: None,
        device: None,
        reason: death.reason.as_str().to_owned(),
        sqlstate: None,
        detail: String::new(),
        attempt: 1,
        died_at_us: death.offset,
        copy: None,
        replay: None,
    }
}

proptest! {
    #[test]
    fn a_letter_is_in_the_table_or_its_event_is_stored(steps in steps()) {
        let mut world = World::default();
        for step in &steps {
            world.take(step);
            world.check();
        }
        world.bring_home();
    }
}
