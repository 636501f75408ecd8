//! The answers of batches under way, as librdkafka's reports come in.
//!
//! Every record has a number, and those of a batch follow each other, so a number is all that librdkafka has to
//! carry: nothing is allocated for a record, nor freed by the thread that hears of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::log::{AppendError, AppendResult};

/// The batches of one producer. A batch stays until the last of its records is settled, also when its caller has
/// given up.
#[derive(Default)]
pub(super) struct Ballots(Mutex<Open>);

#[derive(Default)]
struct Open {
    next: usize,
    /// By the number of the first record.
    batches: BTreeMap<usize, Ballot>,
}

struct Ballot {
    results: Vec<Option<AppendResult>>,
    open: usize,
    /// `None` once it gave up.
    caller: Option<oneshot::Sender<Vec<AppendResult>>>,
}

impl Ballots {
    /// Begins a batch of at least one record: the number of its first, and where its results will come.
    pub(super) fn open(&self, records: usize) -> (usize, oneshot::Receiver<Vec<AppendResult>>) {
        let (caller, settled) = oneshot::channel();
        let results = std::iter::repeat_with(|| None).take(records).collect();
        let mut all = self.lock();
        // From the start again when the numbers are used up: the early ones were settled long ago.
        let first = if all.next.checked_add(records).is_some() { all.next } else { 0 };
        all.next = first + records;
        all.batches.insert(first, Ballot { results, open: records, caller: Some(caller) });
        (first, settled)
    }

    /// Whether no batch is open, and none was begun since this was asked with the same `last_opened`.
    pub(super) fn are_idle_since(&self, last_opened: &mut usize) -> bool {
        let all = self.lock();
        std::mem::replace(last_opened, all.next) == all.next && all.batches.is_empty()
    }

    /// Takes the result of one record; the last of a batch wakes the caller.
    pub(super) fn settle(&self, number: usize, result: AppendResult) {
        self.lock().change(number, |ballot, index| ballot.settle(index, result));
    }

    /// Gives the same result for this record and every later one of its batch.
    pub(super) fn settle_from(&self, number: usize, error: &AppendError) {
        self.lock().change(number, |ballot, index| {
            for index in index..ballot.results.len() {
                ballot.settle(index, Err(error.clone()));
            }
        });
    }

    /// The results so far of the batch that begins with this number; what is open is unknown.
    pub(super) fn give_up(&self, first: usize) -> Vec<AppendResult> {
        let mut all = self.lock();
        let Some(ballot) = all.batches.get_mut(&first) else { return Vec::new() };
        ballot.caller = None;
        answers(ballot.results.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn change(&mut self, number: usize, change: impl FnOnce(&mut Ballot, usize)) {
        let Some((&first, ballot)) = self.batches.range_mut(..=number).next_back() else { return };
        change(ballot, number - first);
        if ballot.open > 0 {
            return;
        }
        if let Some(Ballot { results, caller: Some(caller), .. }) = self.batches.remove(&first) {
            // A caller that went away only loses the answer.
            drop(caller.send(answers(results)));
        }
    }
}

impl Ballot {
    fn settle(&mut self, index: usize, result: AppendResult) {
        if let Some(place @ None) = self.results.get_mut(index) {
            *place = Some(result);
            self.open -= 1;
        }
    }
}

fn answers(results: Vec<Option<AppendResult>>) -> Vec<AppendResult> {
    let unsettled = || AppendError::Unknown("no answer within the append timeout".to_owned());
    results.into_iter().map(|result| result.unwrap_or_else(|| Err(unsettled()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown() -> AppendError {
        AppendError::Unknown("?".to_owned())
    }

    #[test]
    fn a_batch_is_answered_once_with_its_last_record_and_forgotten() {
        let ballots = Ballots::default();
        let (other, mut others) = ballots.open(1);
        let (first, mut settled) = ballots.open(3);
        ballots.settle(first + 2, Ok(7));
        ballots.settle(first, Err(unknown()));
        assert!(settled.try_recv().is_err());
        ballots.settle(first + 1, Ok(9));
        let results = settled.try_recv().unwrap();
        assert!(matches!(results[..], [Err(AppendError::Unknown(_)), Ok(9), Ok(7)]));
        assert!(others.try_recv().is_err());
        ballots.settle(other, Ok(1));
        assert!(matches!(others.try_recv().unwrap()[..], [Ok(1)]));
        assert!(ballots.lock().batches.is_empty());
    }

    #[test]
    fn what_is_open_at_the_deadline_is_unknown_and_late_reports_are_harmless() {
        let ballots = Ballots::default();
        let (first, mut settled) = ballots.open(2);
        ballots.settle(first, Ok(7));
        let results = ballots.give_up(first);
        assert!(matches!(results[..], [Ok(7), Err(AppendError::Unknown(_))]));
        ballots.settle(first, Ok(7));
        ballots.settle(first + 1, Ok(8));
        assert!(settled.try_recv().is_err());
        assert!(ballots.lock().batches.is_empty());
    }

    #[test]
    fn a_record_and_all_later_ones_of_its_batch_get_one_answer() {
        let ballots = Ballots::default();
        let (first, mut settled) = ballots.open(3);
        let (_, mut others) = ballots.open(1);
        ballots.settle_from(first + 1, &unknown());
        ballots.settle(first, Ok(7));
        let results = settled.try_recv().unwrap();
        assert!(matches!(results[0], Ok(7)) && results[1..].iter().all(Result::is_err));
        assert!(others.try_recv().is_err());
    }

    #[test]
    fn numbers_begin_again_when_they_are_used_up() {
        let ballots = Ballots::default();
        ballots.lock().next = usize::MAX - 2;
        let (first, _settled) = ballots.open(2);
        let (second, _settled) = ballots.open(2);
        assert_eq!((first, second), (usize::MAX - 2, 0));
    }
}
