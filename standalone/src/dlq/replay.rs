//! `pulsestream dlq replay`: letters go to `metrics.raw` once more, as they were, and their rows are told
//! where the replays lie.
//!
//! Append, then note: a command that ends in between has replayed letters it does not know of, and the next
//! one replays them again, which changes nothing. The other way round a letter could wait for a replay that
//! was never made.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use pulsestream_shared::dead_letter::{self, Copies};
use pulsestream_shared::engine::AttachedLog;
use pulsestream_shared::log::{AppendError, Record, Topic};
use pulsestream_shared::process::Failure;
use pulsestream_shared::retry::Backoff;
use pulsestream_shared::store::{Letter, LetterFilter, LetterPlace, LetterState, StoreError};
use serde_json::{Value, json};

use super::tally::Tally;
use super::{Desk, Pages};
use crate::output::print;

/// Letters that died so often are left out unless they are asked for.
pub(super) const MOST_ATTEMPTS: u32 = 5;
/// Failures that are told one by one.
const TOLD: usize = 20;
/// How often progress is told where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How often a note is tried that the store did not take.
const TRIES: u32 = 6;

/// What is to be replayed.
pub(super) struct Order {
    pub(super) filter: LetterFilter,
    pub(super) most_attempts: Option<u32>,
    pub(super) limit: Option<usize>,
    pub(super) dry_run: bool,
    pub(super) json: bool,
}

/// What became of the letters that were meant.
#[derive(Default)]
struct Report {
    replayed: Tally,
    /// An earlier replay is on its way.
    waiting: u64,
    /// Died too often.
    exhausted: u64,
    failed: u64,
    /// Some of those that failed, and why.
    faults: Vec<(String, String)>,
}

pub(super) async fn run(desk: &Desk, log: &AttachedLog, order: Order) -> Result<(), Failure> {
    // Those that died too often are counted, so they are not left out by the store.
    let filter = LetterFilter { max_attempts: None, ..order.filter.clone() };
    let total = desk.stores.letters.count(&filter).await.map_err(|error| error.to_string())?;
    let total: Tally = total.into_iter().collect();
    let mut run = Run { desk, log, report: Report::default(), told: Told::new(total.total()) };
    let ended = run.all(&filter, &order).await;
    let report = run.end();
    print(&if order.json { report.json(&order) } else { report.text(&order) })?;
    ended?;
    match report.failed {
        0 => Ok(()),
        1 => Err("1 dead letter could not be replayed".to_owned().into()),
        failed => Err(format!("{failed} dead letters could not be replayed").into()),
    }
}

struct Run<'a> {
    desk: &'a Desk,
    log: &'a AttachedLog,
    report: Report,
    told: Told,
}

impl Run<'_> {
    async fn all(&mut self, filter: &LetterFilter, order: &Order) -> Result<(), String> {
        let mut pages = Pages::of(self.desk, filter);
        loop {
            let page = pages.next().await?;
            if page.is_empty() {
                return Ok(());
            }
            let (letters, enough) = self.choose(page, order);
            if order.dry_run {
                letters.iter().for_each(|letter| self.report.replayed.add(&letter.reason, 1));
            } else {
                self.replay(letters).await?;
            }
            if enough {
                return Ok(());
            }
        }
    }

    /// The letters of a page that are to be replayed, and whether these are the last.
    fn choose(&mut self, page: Vec<(Letter, LetterState)>, order: &Order) -> (Vec<Letter>, bool) {
        let done = usize::try_from(self.report.replayed.total() + self.report.failed);
        let left = order.limit.unwrap_or(usize::MAX).saturating_sub(done.unwrap_or(usize::MAX));
        let mut chosen = Vec::new();
        for (letter, state) in page {
            if chosen.len() == left {
                return (chosen, true);
            }
            if state == LetterState::Replayed {
                self.report.waiting += 1;
            } else if order.most_attempts.is_some_and(|most| letter.attempt >= most) {
                self.report.exhausted += 1;
            } else {
                chosen.push(letter);
                continue;
            }
            self.told.passed(1);
        }
        (chosen, false)
    }

    async fn replay(&mut self, letters: Vec<Letter>) -> Result<(), String> {
        let mut copies = Copies::of(letters);
        loop {
            let found = copies.next(self.log.log.as_ref()).await;
            let found = found.map_err(|error| error.to_string())?;
            if found.is_empty() {
                return Ok(());
            }
            self.told.passed(found.len());
            let mut there = Vec::with_capacity(found.len());
            for (letter, copy) in found {
                match copy {
                    Ok(copy) => there.push((letter, copy)),
                    Err(reason) => self.report.fail(&letter, reason.to_owned()),
                }
            }
            self.append(there).await?;
        }
    }

    async fn append(&mut self, copies: Vec<(Letter, Record)>) -> Result<(), String> {
        let identity = self.log.identity;
        let replay = |(letter, copy): &(Letter, Record)| {
            dead_letter::replay(copy, letter.place, identity.partitions)
        };
        let records: Vec<_> = copies.iter().map(replay).collect();
        let partitions: Vec<_> = records.iter().map(|record| record.partition).collect();
        let results = self.log.log.append(Topic::Raw, records).await;
        let (mut marks, mut away) = (Vec::with_capacity(copies.len()), None);
        for (((letter, _), partition), result) in copies.iter().zip(partitions).zip(results) {
            match result {
                Ok(offset) => {
                    let replay = LetterPlace { partition, epoch: identity.epoch, offset };
                    marks.push((letter.place, replay));
                    self.report.replayed.add(&letter.reason, 1);
                }
                Err(error) => {
                    self.report.fail(letter, error.to_string());
                    if !matches!(error, AppendError::Refused(_)) {
                        away = Some(error.to_string());
                    }
                }
            }
        }
        self.note(&marks).await?;
        match away {
            None => Ok(()),
            Some(error) => Err(format!("{error}; run the command again, it goes on where it was")),
        }
    }

    async fn note(&self, marks: &[(LetterPlace, LetterPlace)]) -> Result<(), String> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
        let mut tries = 1;
        loop {
            match self.desk.stores.letters.mark_replayed(marks).await {
                Err(StoreError::Transient(_)) if tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                noted => return noted.map_err(|error| error.to_string()),
            }
        }
    }

    fn end(self) -> Report {
        self.told.bar.finish_and_clear();
        self.report
    }
}

impl Report {
    fn fail(&mut self, letter: &Letter, reason: String) {
        self.failed += 1;
        if self.faults.len() < TOLD {
            self.faults.push((letter.place.to_string(), reason));
        }
    }

    fn text(&self, order: &Order) -> String {
        let done = if order.dry_run { "would replay" } else { "replayed" };
        let mut text = format!("{done} {}\n", self.replayed.text());
        if self.waiting > 0 {
            text.push_str(&format!("left out {}: replayed before, on their way\n", self.waiting));
        }
        if let (Some(most), true) = (order.most_attempts, self.exhausted > 0) {
            let exhausted = self.exhausted;
            text.push_str(&format!(
                "left out {exhausted}: died {most} times or more; --max-attempts N allows more\n"
            ));
        }
        for (letter, reason) in &self.faults {
            text.push_str(&format!("{letter}: {reason}\n"));
        }
        text
    }

    fn json(&self, order: &Order) -> String {
        let fault =
            |(letter, reason): &(String, String)| json!({ "letter": letter, "error": reason });
        let faults: Vec<Value> = self.faults.iter().map(fault).collect();
        let report = json!({
            "dryRun": order.dry_run,
            "replayed": self.replayed.total(),
            "reasons": self.replayed.json(),
            "waiting": self.waiting,
            "tooManyAttempts": self.exhausted,
            "failed": self.failed,
            "faults": faults,
        });
        format!("{report}\n")
    }
}

/// What is told while it lasts: a bar on a terminal, else a line now and then.
struct Told {
    bar: ProgressBar,
    last: Instant,
}

impl Told {
    fn new(total: u64) -> Self {
        // Hidden by the library when standard error is not a terminal.
        let bar = ProgressBar::new(total);
        let template = "{elapsed} [{wide_bar}] {pos} of {len}, {per_sec}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, last: Instant::now() }
    }

    fn passed(&mut self, letters: usize) {
        self.bar.inc(letters as u64);
        if self.bar.is_hidden() && self.last.elapsed() >= TELL_EVERY {
            self.last = Instant::now();
            let (done, of) = (self.bar.position(), self.bar.length().unwrap_or_default());
            tracing::info!(done, of, "replaying");
        }
    }
}
