//! How many letters of each reason.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Counts by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tally(BTreeMap<String, u64>);

impl Tally {
    pub(super) fn add(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.0.entry(reason.to_owned()).or_default() += count;
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// `3 dead letters: 2 malformed, 1 rejected`.
    pub(super) fn text(&self) -> String {
        let reasons: Vec<_> =
            self.0.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        match self.total() {
            0 => "no dead letters".to_owned(),
            1 => format!("1 dead letter: {}", reasons.join(", ")),
            total => format!("{total} dead letters: {}", reasons.join(", ")),
        }
    }

    pub(super) fn json(&self) -> Value {
        json!(self.0)
    }
}

impl FromIterator<(String, u64)> for Tally {
    fn from_iter<I: IntoIterator<Item = (String, u64)>>(counts: I) -> Self {
        let mut tally = Self::default();
        counts.into_iter().for_each(|(reason, count)| tally.add(&reason, count));
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_counted_by_reason() {
        let mut tally = Tally::default();
        assert_eq!(tally.text(), "no dead letters");
        tally.add("rejected", 1);
        assert_eq!(tally.text(), "1 dead letter: 1 rejected");
        tally.add("malformed", 2);
        assert_eq!(tally.text(), "3 dead letters: 2 malformed, 1 rejected");
    }
}
