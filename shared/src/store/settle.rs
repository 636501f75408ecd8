//! What happens to the rows of a batch around the database, the same for both engines: which are out of
//! range, which repeat another, and which the database refuses.
//!
//! The engine gives one thing, a [`Shelf`]: it stores a slice of rows with all different keys, or
//! nothing of it. From that [`settle`] makes a verdict for every row:
//!
//! - Rounds. Of rows with one (client, id) the first in log order is tried. If it is in the table
//!   afterwards, the others are compared with it in memory; if it died, the others get their own try.
//! - Bisection. A slice with poison is halved until the poison stands alone: k poisons in n rows cost
//!   about 2 k log2 n tries.

use async_trait::async_trait;
use serde_json::Value;

use super::{DeadLetter, DeadReason, StoreBatch, StoreError, StoreRow};
use crate::event::{ClientId, EventId};

/// Milliseconds of a UTC day.
pub(super) const DAY_MS: i64 = 86_400_000;

/// Last instant both engines can hold with room for a day: 9999-12-30, unix milliseconds.
const LAST_MS: i64 = 253_402_128_000_000;

/// What became of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Stored by this batch.
    New,
    /// An equal row was there.
    Duplicate,
    /// A different row was there.
    Conflict,
    /// The database refused the values, with this code.
    Rejected(String),
}

/// Why the database did not do what it was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// The values are at fault; the code of the database.
    Data(String),
    /// The table has no place for the day of some row.
    NoDay,
    /// Anything else.
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Failure> for StoreError {
    /// For statements whose values are not a device's: a refusal of those is a fault of ours or of the
    /// schema, and trying again would not help.
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Data(code) => Self::Deployment(format!("values refused with code {code}")),
            Failure::NoDay => Self::Transient("a day's partition vanished".to_owned()),
            Failure::Store(error) => error,
        }
    }
}

/// Where rows are put.
#[async_trait]
pub(super) trait Shelf: Send {
    /// Stores rows whose (client, id) are all different, and says for each what became of it; after an
    /// error nothing of the slice is stored and the transaction can go on.
    async fn put(&mut self, rows: &[&StoreRow]) -> Result<Vec<Verdict>, Failure>;
}

/// The verdicts of a batch, summed up.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) new: u64,
    pub(super) duplicates: u64,
    pub(super) dead: Vec<DeadLetter>,
}

impl Settled {
    fn count(&mut self, row: &StoreRow, verdict: &Verdict) {
        match verdict {
            Verdict::New => self.new += 1,
            Verdict::Duplicate => self.duplicates += 1,
            Verdict::Conflict => {
                let detail = "another event of this client is stored under this id";
                self.dead.push(letter(row, DeadReason::IdConflict, detail.to_owned(), None));
            }
            Verdict::Rejected(code) => {
                let detail = format!("the store refused the values (code {code})");
                self.dead.push(letter(row, DeadReason::Rejected, detail, Some(code.clone())));
            }
        }
    }
}

fn letter(
    row: &StoreRow,
    reason: DeadReason,
    detail: String,
    sqlstate: Option<String>,
) -> DeadLetter {
    DeadLetter {
        partition: row.partition,
        offset: row.offset,
        client: Some(row.client),
        id: Some(row.event.id),
        reason,
        sqlstate,
        detail,
        replay: row.replay.clone(),
    }
}

/// Refuses a batch that contradicts itself: places that do not pair, or a record without a place.
pub(super) fn check_places(batch: &StoreBatch<'_>) -> Result<(), StoreError> {
    let pairs = batch.from.len() == batch.to.len()
        && batch.from.iter().zip(&batch.to).all(|(from, to)| from.partition == to.partition);
    let placed = |partition| batch.from.iter().any(|place| place.partition == partition);
    let rows = batch.rows.iter().map(|row| row.partition);
    let mut records = rows.chain(batch.dead.iter().map(|letter| letter.partition));
    if pairs && records.all(placed) {
        Ok(())
    } else {
        Err(StoreError::Deployment("the batch names no place for one of its records".to_owned()))
    }
}

/// Parts the rows that can be kept from those that are out of range. An event is judged by the gateway's
/// time of receipt, never by the clock of this machine: how late it is read must not matter.
pub(super) fn part_by_range(
    rows: &[StoreRow],
    retention_days: u32,
) -> (Vec<&StoreRow>, Vec<DeadLetter>) {
    let retention_ms = i64::from(retention_days) * DAY_MS;
    let (kept, out): (Vec<_>, Vec<_>) = rows.iter().partition(|row| {
        let received_ms = row.received_at_us.div_euclid(1_000);
        (0..=LAST_MS).contains(&received_ms)
            && row.event.timestamp_ms > 0
            && row.event.timestamp_ms >= received_ms - retention_ms
            && row.event.timestamp_ms <= received_ms + DAY_MS
    });
    let detail = || "the timestamp is outside what the store keeps".to_owned();
    let dead = out.into_iter().map(|row| letter(row, DeadReason::OutOfRange, detail(), None));
    (kept, dead.collect())
}

/// Stores what can be stored of `rows`, given in log order.
///
/// # Errors
/// [`Failure::NoDay`] and [`Failure::Store`]: the transaction is to be given up.
pub(super) async fn settle(
    shelf: &mut dyn Shelf,
    rows: Vec<&StoreRow>,
) -> Result<Settled, Failure> {
    let mut settled = Settled::default();
    let mut waiting = rows;
    while !waiting.is_empty() {
        let (firsts, repeats) = part_repeats(std::mem::take(&mut waiting));
        let verdicts = bisect(shelf, &firsts).await?;
        for (first, row) in repeats {
            let (Some(first), Some(verdict)) = (firsts.get(first), verdicts.get(first)) else {
                continue;
            };
            let same = same_event(first, row);
            match verdict {
                Verdict::New | Verdict::Duplicate if same => settled.duplicates += 1,
                Verdict::New | Verdict::Duplicate => settled.count(row, &Verdict::Conflict),
                dead if same => settled.count(row, dead),
                _ => waiting.push(row),
            }
        }
        firsts.iter().zip(&verdicts).for_each(|(row, verdict)| settled.count(row, verdict));
    }
    Ok(settled)
}

type Repeat<'a> = (usize, &'a StoreRow);

/// The first row of each (client, id), sorted by id so that repeats stand together, and the
/// others with the index of their first, in log order where they share it.
fn part_repeats(rows: Vec<&StoreRow>) -> (Vec<&StoreRow>, Vec<Repeat<'_>>) {
    let sort_key = |place, row: &StoreRow| (row.event.id.0.as_u128(), row.client, place);
    let sorted = rows.iter().enumerate().map(|(place, row)| (sort_key(place, row), *row));
    let mut sorted: Vec<_> = sorted.collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    let mut firsts: Vec<&StoreRow> = Vec::with_capacity(rows.len());
    let mut repeats = Vec::new();
    for (_, row) in sorted {
        match firsts.last() {
            Some(first) if key(first) == key(row) => repeats.push((firsts.len() - 1, row)),
            _ => firsts.push(row),
        }
    }
    (firsts, repeats)
}

fn key(row: &StoreRow) -> (EventId, ClientId) {
    (row.event.id, row.client)
}

/// Puts the rows on the shelf, halving slices with poison.
async fn bisect(shelf: &mut dyn Shelf, rows: &[&StoreRow]) -> Result<Vec<Verdict>, Failure> {
    let mut verdicts = Vec::with_capacity(rows.len());
    let mut slices = vec![rows];
    // The slices lie left to right from the top of the stack, so verdicts come in the order of rows.
    while let Some(slice) = slices.pop() {
        match shelf.put(slice).await {
            Ok(found) if found.len() == slice.len() => verdicts.extend(found),
            Ok(_) => return Err(transient("the engine did not judge every row").into()),
            Err(Failure::Data(code)) if slice.len() == 1 => verdicts.push(Verdict::Rejected(code)),
            Err(Failure::Data(_)) => {
                let (left, right) = slice.split_at(slice.len() / 2);
                slices.extend([right, left]);
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(verdicts)
}

pub(super) fn transient(sentence: &str) -> StoreError {
    StoreError::Transient(sentence.to_owned())
}

/// True when two rows with one (client, id) tell the same.
pub(super) fn same_event(a: &StoreRow, b: &StoreRow) -> bool {
    a.event.timestamp_ms == b.event.timestamp_ms
        && a.event.device_id == b.event.device_id
        && a.event.event_type == b.event.event_type
        && same_value(a.event.value, b.event.value)
        && same_metadata(
            a.event.metadata.as_ref().map(crate::metadata::Metadata::as_json),
            b.event.metadata.as_ref().map(crate::metadata::Metadata::as_json),
        )
}

/// Equal as numbers, hence to the last bit but for the sign of zero: the log's JSON has one zero.
#[expect(clippy::float_cmp, reason = "a retry carries the very same number")]
pub(super) fn same_value(a: f64, b: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

/// Equal as maps: neither the order of the keys nor the spelling of a number matters, as in jsonb.
pub(super) fn same_metadata(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) if a == b => true,
        (Some(a), Some(b)) => match (serde_json::from_str(a), serde_json::from_str(b)) {
            (Ok(Value::Object(a)), Ok(Value::Object(b))) => {
                a.len() == b.len()
                    && a.iter().all(|(key, x)| b.get(key).is_some_and(|y| same_scalar(x, y)))
            }
            _ => false,
        },
        _ => false,
    }
}

fn same_scalar(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) if x.is_f64() || y.is_f64() => {
            x.as_f64() == y.as_f64()
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::store::{row, rows};

    /// Refuses every slice with a negative value, and counts.
    #[derive(Default)]
    struct Picky {
        tries: usize,
    }

    #[async_trait]
    impl Shelf for Picky {
        async fn put(&mut self, rows: &[&StoreRow]) -> Result<Vec<Verdict>, Failure> {
            self.tries += 1;
            if rows.iter().any(|row| row.event.value < 0.0) {
                return Err(Failure::Data("22000".to_owned()));
            }
            Ok(vec![Verdict::New; rows.len()])
        }
    }

    #[tokio::test]
    async fn poison_costs_the_logarithm_of_the_batch_in_tries() {
        for (poisons, most) in [(0, 1), (1, 27), (4, 108)] {
            let mut batch = rows(0, 1..=5_000);
            batch.iter_mut().step_by(1_111).take(poisons).for_each(|row| row.event.value = -1.0);
            let mut shelf = Picky::default();
            let settled = settle(&mut shelf, batch.iter().collect()).await.unwrap();
            assert_eq!((settled.new, settled.dead.len()), (5_000 - poisons as u64, poisons));
            assert!(shelf.tries <= most, "{} tries for {poisons} poisons", shelf.tries);
        }
    }

    #[tokio::test]
    async fn equal_poison_is_refused_once_and_buried_as_often_as_it_came() {
        let mut batch = vec![row(0, 0, 1); 50];
        batch.iter_mut().for_each(|row| row.event.value = -1.0);
        let mut shelf = Picky::default();
        let settled = settle(&mut shelf, batch.iter().collect()).await.unwrap();
        assert_eq!((settled.new, settled.dead.len(), shelf.tries), (0, 50, 1));
    }

    #[test]
    fn metadata_is_compared_as_a_map_of_numbers_and_words() {
        let same = |a, b| same_metadata(Some(a), Some(b));
        assert!(same(r#"{"a":1.50,"b":true}"#, r#"{"b":true,"a":1.5}"#));
        assert!(same(r#"{"a":"\u00e9"}"#, r#"{"a":"é"}"#));
        assert!(!same(r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#));
        assert!(!same(r#"{"a":1}"#, r#"{"a":"1"}"#));
        assert!(!same(r#"{"a":1}"#, r#"{"a":1,"b":1}"#));
        assert!(!same_metadata(None, Some("{}")));
    }
}
