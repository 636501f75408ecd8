//! Dead letters as their client reads them: newest first, in pages, each with what it waits for.
//!
//! Not here: what an operator can do with them, and those of nobody. That is
//! [`DeadLetterStore`](crate::store::DeadLetterStore), which is read with the same statements.

use crate::event::ClientId;
use crate::store::{Letter, LetterFilter, LetterPlace, LetterState, Progress};

use super::{Page, page_of};

/// Which dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LettersQuery {
    /// Whose. A letter without a client is nobody's.
    pub client: ClientId,
    /// Those that meet this; a client it names is not looked at.
    pub filter: LetterFilter,
    /// Behind this key.
    pub after: Option<LetterKey>,
    /// At most so many; at least 1.
    pub limit: usize,
}

impl LettersQuery {
    /// The filter that leaves nothing of another client.
    pub(in crate::store) fn own(&self) -> LetterFilter {
        LetterFilter { client: Some(self.client), ..self.filter.clone() }
    }

    /// How many rows tell whether there is another page.
    pub(in crate::store) fn rows(&self) -> usize {
        self.limit.saturating_add(1)
    }
}

/// The one order of letters: by the time of the last death, then by place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LetterKey {
    /// Unix microseconds.
    pub died_at_us: i64,
    /// The key of its row.
    pub place: LetterPlace,
}

impl Letter {
    /// Where it stands among all letters. Dying again, it moves to the front.
    pub fn sort_key(&self) -> LetterKey {
        LetterKey { died_at_us: self.died_at_us, place: self.place }
    }
}

/// A page of rows, judged by progress that was read before them.
pub(in crate::store) fn judged_page(
    rows: Vec<Letter>,
    limit: usize,
    progress: &[Progress],
) -> Page<(Letter, LetterState), LetterKey> {
    let Page { rows, next } = page_of(rows, limit, Letter::sort_key);
    let judged = |letter: Letter| {
        let state = letter.state(progress);
        (letter, state)
    };
    Page { rows: rows.into_iter().map(judged).collect(), next }
}
