//! What happens to letters around the database when their replays are settled, the same for both engines.
//!
//! A replay names its letter. The transaction that settles it deletes the letter's row when the event is
//! stored, and changes the row when it died again: the row keeps its key, whatever it died of and however
//! often. Where there is no row, somebody purged it, or another replay of the same letter was stored
//! before; then nothing is buried. So there is one row a letter at most, and none beside its event.

use std::collections::HashSet;

use super::settle::transient;
use super::{DeadCopy, DeadLetter, DeadLetterSink, LetterPlace, StoreBatch, StoreError, StoreRow};

/// The letters of the rows that did not die, in the order of their places: two transactions lock them in
/// one order.
pub(super) fn stored_letters<'a>(
    rows: impl Iterator<Item = &'a StoreRow>,
    dead: &[DeadLetter],
) -> Vec<LetterPlace> {
    let replays =
        rows.filter_map(|row| Some(((row.partition, row.offset), row.replay.as_deref()?)));
    let replays: Vec<_> = replays.collect();
    if replays.is_empty() {
        return Vec::new();
    }
    let dead: HashSet<_> = dead.iter().map(|letter| (letter.partition, letter.offset)).collect();
    let stored = replays.into_iter().filter(|(place, _)| !dead.contains(place));
    let mut letters: Vec<_> = stored.map(|(_, letter)| *letter).collect();
    letters.sort_unstable();
    letters.dedup();
    letters
}

/// The name of a letter that dies for the first time: where it lies. Every record of a batch has a place in
/// it: `check_places`.
pub(super) fn place_of(letter: &DeadLetter, batch: &StoreBatch<'_>) -> LetterPlace {
    let place = batch.from.iter().find(|place| place.partition == letter.partition);
    let epoch = place.map(|place| place.epoch).unwrap_or_default();
    LetterPlace { partition: letter.partition, epoch, offset: letter.offset }
}

/// Parts the letters that are in the table from those whose row is gone; answers how many those are.
pub(super) fn leave_out_gone(
    dead: Vec<DeadLetter>,
    changed: &HashSet<LetterPlace>,
) -> (Vec<DeadLetter>, u64) {
    let before = dead.len();
    let is_there =
        |letter: &DeadLetter| letter.replay.as_deref().is_none_or(|it| changed.contains(it));
    let there: Vec<_> = dead.into_iter().filter(is_there).collect();
    let gone = (before - there.len()) as u64;
    (there, gone)
}

/// Has the letters copied, and holds the sink to one answer for each.
pub(super) async fn copies(
    sink: &dyn DeadLetterSink,
    dead: &[DeadLetter],
) -> Result<Vec<DeadCopy>, StoreError> {
    let copies = sink.accept(dead).await;
    let copies = copies.map_err(|error| transient(&format!("dead-letter copies: {error}")))?;
    if copies.len() == dead.len() {
        Ok(copies)
    } else {
        Err(StoreError::Deployment("not every dead letter was copied".to_owned()))
    }
}

#[cfg(test)]
mod model;
