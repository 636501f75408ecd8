//! What rides along with commits: changed places of consumer groups once a second, outcome runs piece by
//! piece, the end of runs that are past their life. A commit that fails gives everything back.

use tokio::sync::oneshot;

use super::group_places::GroupPlace;
use super::outcome_run::{NewRun, first_page};
use super::shared::Shared;
use super::statements::{Kind, Step, Values};
use crate::clock::unix_ms;

/// Changed group places wait at most this many ticks for a commit to ride on.
const PLACES_TICKS: u32 = 10;

/// Pages of an outcome run written with one commit: about half a megabyte.
const RUN_STEP: usize = 128;

#[derive(Default)]
pub(super) struct Upkeep {
    packing: Option<oneshot::Receiver<Writing>>,
    run: Option<Writing>,
    ticks: u32,
}

/// A run on its way into the file.
struct Writing {
    new: NewRun,
    pages_written: usize,
    /// The last of the groups it came from.
    last_group: i64,
}

/// What one commit carries; to be handed to [`Upkeep::end`].
pub(super) struct Carried {
    places: Vec<GroupPlace>,
    pages: usize,
    expired: Option<i64>,
}

impl Upkeep {
    pub(super) fn tick(&mut self) {
        self.ticks = self.ticks.saturating_add(1);
    }

    /// Adds what is due.
    pub(super) fn begin(&mut self, shared: &Shared, steps: &mut Vec<Step>) -> Carried {
        if let Some(packed) = self.packing.as_mut().and_then(|packing| packing.try_recv().ok()) {
            self.packing = None;
            self.run = Some(packed);
        }
        let pages = self.run_steps(steps);
        let expired = shared.outcomes.expired_run(unix_ms());
        if let Some(run) = expired {
            steps.push(Step::new(Kind::ForgetOutcomePages, |it| it.int(first_page(run + 1))));
            steps.push(Step::new(Kind::ForgetOutcomeRuns, |it| it.int(run)));
        }
        let mut places = Vec::new();
        if self.ticks >= PLACES_TICKS {
            self.ticks = 0;
            places = group_places(shared, steps);
        }
        Carried { places, pages, expired }
    }

    /// Adds what must not be lost at the end.
    pub(super) fn begin_last(&mut self, shared: &Shared, steps: &mut Vec<Step>) -> Carried {
        Carried { places: group_places(shared, steps), pages: 0, expired: None }
    }

    /// Takes note of what became of the commit.
    pub(super) fn end(&mut self, shared: &Shared, carried: Carried, committed: bool) {
        if !committed {
            shared.group_places.put_back(carried.places);
            return;
        }
        if let Some(run) = carried.expired {
            shared.outcomes.forget_run(run);
        }
        if let Some(writing) = &mut self.run {
            writing.pages_written += carried.pages;
            if writing.pages_written == writing.new.pages.len()
                && let Some(written) = self.run.take()
            {
                shared.outcomes.frozen_is_written(written.new);
            }
        }
    }

    /// Starts a run when enough outcomes have gathered. Packing takes milliseconds, so not here.
    pub(super) fn freeze_outcomes(&mut self, shared: &Shared) {
        let Some(frozen) = shared.outcomes.freeze() else { return };
        let (packed, packing) = oneshot::channel();
        self.packing = Some(packing);
        tokio::task::spawn_blocking(move || {
            let new = NewRun::pack(frozen.number, &frozen.entries);
            let last_group = frozen.last_group;
            if packed.send(Writing { new, pages_written: 0, last_group }).is_err() {
                tracing::debug!("the log closed before a run of outcomes was packed");
            }
        });
    }

    /// Adds the next piece of a run; with the last one the run itself takes the place of its groups.
    fn run_steps(&self, steps: &mut Vec<Step>) -> usize {
        let Some(Writing { new, pages_written, last_group }) = &self.run else { return 0 };
        let left = new.pages.get(*pages_written..).unwrap_or_default();
        let now = left.get(..RUN_STEP).unwrap_or(left);
        Step::many(now, Kind::OutcomePages, fill_page, steps);
        if now.len() == left.len() {
            steps.push(Step::new(Kind::OutcomeRun, |values| {
                values.int(new.run.number);
                values.int(new.run.newest_ms);
                values.blob(new.run.filter.as_bytes());
            }));
            steps.push(Step::new(Kind::ForgetOutcomeGroups, |values| values.int(*last_group)));
        }
        now.len()
    }
}

fn group_places(shared: &Shared, steps: &mut Vec<Step>) -> Vec<GroupPlace> {
    let changed = shared.group_places.take_changed();
    Step::many(&changed, Kind::GroupPlaces, fill_group_place, steps);
    changed
}

fn fill_page((id, packed): &(i64, Vec<u8>), values: &mut Values) {
    values.int(*id);
    values.blob(packed);
}

fn fill_group_place((group, partition, next): &GroupPlace, values: &mut Values) {
    values.text(group);
    values.int(i64::from(*partition));
    values.int(*next);
}
