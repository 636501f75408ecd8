//! `pulsestream dlq purge`: rows are deleted, after a question. The copies on `metrics.dlq` stay and mean
//! nothing any more.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use pulsestream_shared::process::Failure;
use pulsestream_shared::store::{Letter, LetterFilter, LetterState};
use serde_json::json;

use super::tally::Tally;
use super::{Desk, Pages, filter};
use crate::output::print;

/// What is to be purged.
pub(super) struct Order {
    pub(super) filter: LetterFilter,
    pub(super) limit: Option<usize>,
    pub(super) dry_run: bool,
    pub(super) yes: bool,
    pub(super) json: bool,
}

/// What was found.
#[derive(Default)]
struct Found {
    dead: Tally,
    /// On their way to the store; left.
    waiting: u64,
    /// When the last of them died.
    newest_us: Option<i64>,
}

pub(super) async fn run(desk: &Desk, order: Order) -> Result<(), Failure> {
    let mut found = Found::default();
    walk(desk, &order.filter, order.limit, async |letters, waiting| {
        for letter in &letters {
            found.dead.add(&letter.reason, 1);
            found.newest_us = found.newest_us.max(Some(letter.died_at_us));
        }
        found.waiting += waiting;
        Ok(())
    })
    .await?;
    if order.dry_run || found.dead.total() == 0 {
        return tell(&order, &found, 0);
    }
    if !order.yes {
        confirm(&found)?;
    }
    // What died after the question was asked is not meant.
    let filter = LetterFilter { until_us: found.newest_us, ..order.filter.clone() };
    let mut purged = 0;
    walk(desk, &filter, order.limit, async |letters, _| {
        let gone = desk.stores.letters.purge(&letters).await;
        purged += gone.map_err(|error| error.to_string())?;
        Ok(())
    })
    .await?;
    tell(&order, &found, purged)
}

/// Calls `each` with the dead letters of every page, and how many of it wait for the store.
async fn walk(
    desk: &Desk,
    filter: &LetterFilter,
    limit: Option<usize>,
    mut each: impl AsyncFnMut(Vec<Letter>, u64) -> Result<(), String>,
) -> Result<(), String> {
    let mut left = limit.unwrap_or(usize::MAX);
    let mut pages = Pages::of(desk, filter);
    while left > 0 {
        let page = pages.next().await?;
        if page.is_empty() {
            break;
        }
        let count = page.len();
        let dead = page.into_iter().filter(|(_, state)| *state == LetterState::Dead);
        let dead: Vec<_> = dead.map(|(letter, _)| letter).collect();
        let waiting = (count - dead.len()) as u64;
        let dead: Vec<_> = dead.into_iter().take(left).collect();
        left -= dead.len();
        each(dead, waiting).await?;
    }
    Ok(())
}

fn confirm(found: &Found) -> Result<(), Failure> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(filter::usage("purge asks before it deletes: give --yes in scripts"));
    }
    let question = format!("Delete {} for good? Type yes: ", found.dead.text());
    let mut answer = String::new();
    let asked = std::io::stderr().write_all(question.as_bytes());
    let read = asked.and_then(|()| stdin.lock().read_line(&mut answer));
    read.map_err(|error| format!("the question could not be asked: {error}"))?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    Err("nothing was purged".to_owned().into())
}

fn tell(order: &Order, found: &Found, purged: u64) -> Result<(), Failure> {
    if order.json {
        let report = json!({
            "dryRun": order.dry_run,
            "found": found.dead.total(),
            "reasons": found.dead.json(),
            "waiting": found.waiting,
            "purged": purged,
        });
        return Ok(print(&format!("{report}\n"))?);
    }
    let mut text = match order.dry_run {
        true => format!("would purge {}\n", found.dead.text()),
        false if purged == found.dead.total() => format!("purged {}\n", found.dead.text()),
        false => format!("purged {purged} of {}\n", found.dead.text()),
    };
    if found.waiting > 0 {
        text.push_str(&format!("left {}: replayed, on their way\n", found.waiting));
    }
    Ok(print(&text)?)
}
