//! A batch: its keys in one round trip, its records in one append.
//!
//! Events with ids of their own are locked one by one, like single events. An event whose id is derived
//! from the batch's key is guarded by that key: another body is refused there, so a first attempt locks
//! nothing else. Only when a batch is taken over, because its last attempt did not end well, is each
//! derived id claimed too: some of them may be in the log.
//!
//! **Invariant.** A batch's key is done only when every event of it is settled for good: in the log, or
//! refused for what it is. Otherwise the key stays open and the same body goes on where it ended.

use std::sync::Arc;

use pulsestream_shared::cache::{Fingerprint, LockKey, LockRecord};
use pulsestream_shared::codec::{Encoder, Unsure, shared_headers};
use pulsestream_shared::event::{ClientId, Event};
use pulsestream_shared::log::{AppendError, AppendResult, EventLog, Headers, NewRecord, Topic};
use pulsestream_shared::problem::Code;
use pulsestream_shared::traces::{Step, Steps, Trace, TraceParent};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Answer;
use super::breaker::{Breakers, Pass};
use super::locks::{Age, Claim, Claimed, Lease, Locks};
use super::settle::Change;
use crate::body::is_too_old;
use crate::idempotency::fingerprint;
use crate::metrics::GatewayMetrics;

/// The valid events of one request.
pub(crate) struct Batch {
    /// The request's own key and the hash of its whole body, when it has a key.
    pub(crate) key: Option<(LockKey, Fingerprint)>,
    pub(crate) client: ClientId,
    pub(crate) received_at_us: i64,
    /// No id twice. Shared with whoever tells what became of them.
    pub(crate) events: Arc<[BatchEvent]>,
    /// Of the request, when that is traced.
    pub(crate) trace: Option<Trace>,
}

/// One valid event of a batch.
pub(crate) struct BatchEvent {
    pub(crate) event: Event,
    /// Whether the id came with the event; else it is derived from the batch's key.
    pub(crate) own_id: bool,
    pub(crate) too_old: bool,
}

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BatchAnswer {
    /// Nothing was tried: the answer is the batch's as a whole.
    Whole(Answer),
    /// An answer for each event, in order.
    Events(Vec<Answer>),
}

pub(super) struct BatchCommit {
    pub(super) locks: Arc<Locks>,
    pub(super) log: Arc<dyn EventLog>,
    pub(super) partitions: u32,
    pub(super) breakers: Arc<Breakers>,
    /// Weak, or the settle stage would wait for the end of a door that stands open until the end.
    pub(super) settle: mpsc::WeakSender<Change>,
    pub(super) metrics: Arc<GatewayMetrics>,
}

/// Where one event of the batch stands.
enum Turn {
    /// To be appended; with the lease of its id when that was claimed.
    Append(Option<Lease>),
    Answered(Answer),
}

impl From<Claimed> for Turn {
    fn from(claimed: Claimed) -> Self {
        match claimed {
            Ok(lease) => Self::Append(Some(lease)),
            Err(answer) => Self::Answered(answer),
        }
    }
}

impl BatchCommit {
    pub(super) async fn run(&self, batch: Batch) -> BatchAnswer {
        let mut steps = Steps::of(batch.trace.as_ref());
        steps.next("lock");
        let (whole, mut turns) = match self.claim(&batch).await {
            Ok(claimed) => claimed,
            Err(answer) => return BatchAnswer::Whole(answer),
        };
        if let Some(whole) = whole.filter(|whole| whole.taken_over) {
            self.claim_again(&batch, &whole, &mut turns).await;
        }
        steps.end();
        self.append(&batch, whole.as_ref(), &mut turns).await;
        let answers = turns.into_iter().map(|turn| match turn {
            Turn::Answered(answer) => answer,
            Turn::Append(_) => Answer::Failed(Code::OutcomeUnknown),
        });
        let answers: Vec<_> = answers.collect();
        if let Some(whole) = &whole {
            self.settle_whole(&batch, whole, &answers);
        }
        BatchAnswer::Events(answers)
    }

    /// Claims the batch's key and every id that came with its event.
    async fn claim(&self, batch: &Batch) -> Result<(Option<Lease>, Vec<Turn>), Answer> {
        let whole = batch.key.map(|(key, fingerprint)| Claim { key, fingerprint, age: Age::Fine });
        let own = batch.events.iter().filter(|event| event.own_id).map(|event| batch.claim(event));
        let claims: Vec<_> = whole.into_iter().chain(own).collect();
        let mut claimed = self.locks.claim(&claims).await.into_iter();
        let whole = match batch.key.and_then(|_| claimed.next()).transpose() {
            Ok(whole) => whole,
            Err(answer) => {
                claimed.flatten().for_each(|lease| self.release(&lease));
                return Err(answer);
            }
        };
        let lost = || Turn::Answered(Answer::Failed(Code::Unavailable));
        let turn = |event: &BatchEvent| match (event.own_id, event.too_old) {
            (true, _) => claimed.next().map_or_else(lost, Turn::from),
            // Of a batch that was tried before, judged again by `claim_again`.
            (false, true) => Turn::Answered(Answer::TooOld),
            (false, false) => Turn::Append(None),
        };
        Ok((whole, batch.events.iter().map(turn).collect()))
    }

    /// After a takeover: claims the derived ids, and what was not too old at the batch's first attempt.
    async fn claim_again(&self, batch: &Batch, whole: &Lease, turns: &mut [Turn]) {
        let first_at_ms = whole.record.first_at_ms;
        let young = |event: &BatchEvent| {
            !is_too_old(event.event.timestamp_ms, first_at_ms, self.locks.max_event_age)
        };
        let open: Vec<_> = batch
            .events
            .iter()
            .zip(turns.iter_mut())
            .filter(|(event, turn)| match turn {
                Turn::Append(None) => true,
                Turn::Answered(Answer::TooOld) => young(event),
                _ => false,
            })
            .collect();
        let claim = |event: &BatchEvent| Claim { age: Age::Fine, ..batch.claim(event) };
        let claims: Vec<_> = open.iter().map(|(event, _)| claim(event)).collect();
        let claimed = self.locks.claim(&claims).await;
        for ((_, turn), claimed) in open.into_iter().zip(claimed) {
            *turn = claimed.into();
        }
    }

    async fn append(&self, batch: &Batch, whole: Option<&Lease>, turns: &mut [Turn]) {
        let late = |lease: &Lease| lease.ends <= Instant::now();
        let any = whole.or_else(|| {
            turns.iter().find_map(|turn| match turn {
                Turn::Append(lease) => lease.as_ref(),
                Turn::Answered(_) => None,
            })
        });
        // All leases of a batch were taken about the same time; its own the first of all.
        if any.is_some_and(late) {
            return;
        }
        let (mut records, mut places) = (Vec::with_capacity(turns.len()), Vec::new());
        let mut passes = Vec::new();
        passes.resize_with(self.breakers.len(), || None);
        let to_append = || turns.iter().filter(|turn| matches!(turn, Turn::Append(_))).count();
        let mut step = batch.trace.as_ref().map(|trace| trace.send(Topic::Raw, to_append()));
        let trace = step.as_ref().map(Step::parent);
        let mut headers = ByLock { batch, trace, known: Vec::new() };
        let mut encoder = Encoder::new(self.partitions, turns.len());
        for (index, (event, turn)) in batch.events.iter().zip(turns.iter_mut()).enumerate() {
            let Turn::Append(lease) = turn else { continue };
            let unsure = lease.as_ref().or(whole).and_then(|lease| lease.unsure);
            let mut record = encoder.record(&event.event, headers.of(unsure));
            record.outcomes.extend(lease.as_ref().map(Lease::outcome));
            if self.admits(&mut passes, &record) {
                records.push(record);
                places.push(index);
            } else {
                lease.iter().for_each(|lease| self.release(lease));
                *turn = Turn::Answered(Answer::Failed(Code::LogUnavailable));
            }
        }
        self.carry_outcome(whole, turns, &mut records);
        if records.is_empty() {
            return;
        }
        self.metrics.group_records.observe(records.len() as f64);
        let lanes: Vec<_> =
            records.iter().map(|record| self.breakers.lane_of(record.partition)).collect();
        let started = std::time::Instant::now();
        let results = self.log.append(Topic::Raw, records).await;
        self.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        self.note_breakers(&lanes, &results);
        if let (Some(step), Some(error)) =
            (&mut step, results.iter().find_map(|result| result.as_ref().err()))
        {
            step.failed(error.kind());
        }
        for (index, result) in places.into_iter().zip(results) {
            if let Some(turn) = turns.get_mut(index) {
                let lease = if let Turn::Append(lease) = turn { lease.take() } else { None };
                *turn = Turn::Answered(self.answer(result, lease, whole));
            }
        }
    }

    /// Whether a record's partition takes records; asked once a batch for each partition.
    fn admits(&self, passes: &mut [Option<Option<Pass>>], record: &NewRecord) -> bool {
        let lane = self.breakers.lane_of(record.partition);
        let pass =
            |asked: &mut Option<_>| asked.get_or_insert_with(|| self.breakers.pass(lane)).is_some();
        passes.get_mut(lane).is_some_and(pass)
    }

    /// An engine that keeps outcomes beside the log writes the batch's own with its records, which it
    /// takes all or none of; not before every event of the batch is there or refused for good.
    fn carry_outcome(&self, whole: Option<&Lease>, turns: &[Turn], records: &mut [NewRecord]) {
        let open = |turn: &Turn| matches!(turn, Turn::Answered(answer) if !answer.is_final());
        if turns.iter().any(open) {
            return;
        }
        if let (Some(whole), Some(last)) = (whole, records.last_mut()) {
            last.outcomes.push(whole.outcome());
        }
    }

    fn note_breakers(&self, lanes: &[usize], results: &[AppendResult]) {
        for lane in 0..self.breakers.len() {
            let last = lanes.iter().zip(results).rfind(|(of, _)| **of == lane);
            if let Some((_, last)) = last {
                self.breakers.note(lane, last);
            }
        }
    }

    fn answer(&self, result: AppendResult, lease: Option<Lease>, whole: Option<&Lease>) -> Answer {
        let Err(error) = result else {
            lease.iter().for_each(|lease| self.settle(Change::finish(lease)));
            let local = lease.as_ref().or(whole).is_some_and(Lease::is_local);
            return Answer::Accepted { local };
        };
        self.metrics.append_errors.with_label_values(&[error.kind()]).inc();
        if matches!(error, AppendError::Unknown(_)) {
            lease.iter().for_each(|lease| self.settle(Change::give_up(lease)));
            return Answer::Failed(Code::OutcomeUnknown);
        }
        lease.iter().for_each(|lease| self.release(lease));
        Answer::Failed(Code::LogUnavailable)
    }

    /// Done, open for the same body because something happened or may have, or forgotten because nothing did.
    fn settle_whole(&self, batch: &Batch, whole: &Lease, answers: &[Answer]) {
        if answers.iter().all(Answer::is_final) {
            return self.settle(Change::finish(whole).traced(batch.trace.clone()));
        }
        for (event, _) in
            batch.events.iter().zip(answers).filter(|(_, answer)| answer.is_accepted())
        {
            if !event.own_id && !whole.taken_over {
                self.remember(batch, event, whole);
            }
        }
        let happened =
            |answer: &Answer| answer.is_final() || *answer == Answer::Failed(Code::OutcomeUnknown);
        if answers.iter().any(happened) {
            self.settle(Change::give_up(whole));
        } else {
            self.release(whole);
        }
    }

    /// Notes that a derived id is in the log, so that going on with the batch does not append it again.
    fn remember(&self, batch: &Batch, event: &BatchEvent, whole: &Lease) {
        let record = LockRecord { fingerprint: fingerprint(&event.event), ..whole.record };
        let lease = Lease { key: batch.claim(event).key, record, ..*whole };
        self.settle(Change::finish(&lease));
    }

    fn release(&self, lease: &Lease) {
        self.settle(Change::release(lease));
    }

    fn settle(&self, change: Change) {
        match self.settle.upgrade() {
            Some(queue) => change.queue(&queue, &self.locks.finishing, &self.metrics),
            None => self.metrics.outcomes_lost.inc(),
        }
    }
}

/// The headers of a batch's records, which differ by what is known of their locks alone.
struct ByLock<'a> {
    batch: &'a Batch,
    /// The step that sends them, when it is traced.
    trace: Option<TraceParent>,
    /// Almost always one.
    known: Vec<(Option<Unsure>, Headers)>,
}

impl ByLock<'_> {
    fn of(&mut self, unsure: Option<Unsure>) -> Headers {
        if let Some((_, headers)) = self.known.iter().find(|(known, _)| *known == unsure) {
            return headers.clone();
        }
        let Batch { client, received_at_us, .. } = self.batch;
        let headers = shared_headers(*client, *received_at_us, unsure, self.trace);
        self.known.push((unsure, headers.clone()));
        headers
    }
}

impl Batch {
    fn claim(&self, event: &BatchEvent) -> Claim {
        Claim {
            key: LockKey { client: self.client, id: event.event.id },
            fingerprint: fingerprint(&event.event),
            age: Age::of(&event.event, event.too_old),
        }
    }
}
