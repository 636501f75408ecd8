//! What a run of devices amounts to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::event::Event;
use super::worker::Plan;
use crate::http::Answer;
use crate::latency::{Latency, Percentiles};
use crate::ledger::Kind;

const MAX_UNEXPECTED: usize = 10;

/// The result of a run. Events are counted once, whatever their attempts, unless a field says "answers".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Events of which at least one byte was written, good and bad, repeats excluded.
    pub sent: u64,
    /// Good events whose last answer was 202.
    pub accepted: u64,
    /// Answers with `Idempotency-Replayed: true`, to retries and to repeats.
    pub replayed: u64,
    /// Repeats of accepted events that were answered, whatever the status.
    pub repeats: u64,
    /// Bad events whose last answer is in, or was given up.
    pub bad: u64,
    /// Bad events answered 400, as they must be.
    pub bad_answered_400: u64,
    /// Events by their last status.
    pub by_status: BTreeMap<u16, u64>,
    /// Answers by status: every attempt, repeats included.
    pub answers_by_status: BTreeMap<u16, u64>,
    /// How many final answers nobody expected: a good event or a repeat refused, a bad one not answered
    /// 400. An event given up while the server said "later" is not among them.
    pub unexpected_total: u64,
    /// The first ten of these.
    pub unexpected: Vec<Unexpected>,
    /// Attempts beyond the first of an event or of a repeat.
    pub retries: u64,
    /// Attempts that ended with a refused or broken connection.
    pub connection_errors: u64,
    /// Attempts that took longer than the timeout.
    pub timeouts: u64,
    /// Events that were begun and never answered at all: nobody knows whether the server has them.
    pub unanswered: u64,
    /// Events whose last answer was "later" when the grace period ended.
    pub given_up: u64,
    /// Events the open-loop schedule wanted begun that never were.
    pub unsent: u64,
    /// Events per second the schedule asked for; absent in a closed loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_target: Option<f64>,
    /// Good events accepted before the duration ended, per second of it.
    pub rate_achieved: f64,
    /// Of accepted good events.
    pub latency_ms: LatencyReport,
    /// From the start to the last answer, in seconds.
    pub duration_s: f64,
    /// Repeats the run's choices when given as an option.
    pub seed: u64,
}

/// The same events measured from two starts. They differ when the server, or this program, lagged behind
/// the schedule. Timers tick in milliseconds, so up to 1 ms of `intended` is our own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// From the scheduled start to the final answer; in a closed loop the same start as `actual`'s but
    /// connecting included.
    pub intended: Percentiles,
    /// From the first byte written to the final answer, retries included.
    pub actual: Percentiles,
}

/// A final answer that the contract does not foresee.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unexpected {
    /// HTTP status.
    pub status: u16,
    /// What was sent.
    pub kind: Kind,
    /// True when it answered the repeat of an accepted event.
    pub repeat: bool,
    /// Start of the body; empty for a 2xx.
    pub body: String,
}

/// Running totals. Each method is called at one point of an event's life.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) retries: u64,
    pub(super) unsent: u64,
    sent: u64,
    accepted: u64,
    accepted_in_time: u64,
    replayed: u64,
    repeats: u64,
    bad: u64,
    bad_answered_400: u64,
    by_status: BTreeMap<u16, u64>,
    answers_by_status: BTreeMap<u16, u64>,
    unexpected_total: u64,
    unexpected: Vec<Unexpected>,
    connection_errors: u64,
    timeouts: u64,
    unanswered: u64,
    given_up: u64,
    intended: Latency,
    actual: Latency,
}

impl Tally {
    /// An attempt was answered.
    pub(super) fn answered(&mut self, answer: &Answer) {
        *self.answers_by_status.entry(answer.status).or_default() += 1;
        self.replayed += u64::from(answer.replayed);
    }

    /// An attempt was not answered.
    pub(super) fn faulted(&mut self, timeout: bool) {
        if timeout {
            self.timeouts += 1;
        } else {
            self.connection_errors += 1;
        }
    }

    /// An event has its final answer, or none and no retry is wanted. Returns whether that was expected.
    pub(super) fn settled(&mut self, event: &Event, answer: &Answer, end: Instant) -> bool {
        self.count_event(event);
        let status = event.entry.status;
        if event.entry.accepted() {
            let now = Instant::now();
            self.accepted += 1;
            self.accepted_in_time += u64::from(now < end);
            self.intended.record(now - event.due);
            self.actual.record(now - event.first_write.unwrap_or(event.due));
        }
        let wanted = if event.entry.kind == Kind::Good { 202 } else { 400 };
        self.expect(status == 0 || status == wanted, event, answer)
    }

    /// A repeat has its final answer, or none and no retry is wanted.
    pub(super) fn repeat_settled(&mut self, event: &Event, answer: &Answer) {
        let status = event.entry.repeat_status;
        self.repeats += u64::from(status.is_some());
        self.expect(status.is_none_or(|status| status == 202), event, answer);
    }

    /// The grace period ended before the event was settled.
    pub(super) fn gave_up(&mut self, event: &Event) {
        self.count_event(event);
        self.given_up += u64::from(event.entry.status != 0);
    }

    fn count_event(&mut self, event: &Event) {
        let status = event.entry.status;
        *self.by_status.entry(status).or_default() += 1;
        self.sent += u64::from(event.entry.attempts > 0);
        self.unanswered += u64::from(status == 0);
        if event.entry.kind != Kind::Good {
            self.bad += 1;
            self.bad_answered_400 += u64::from(status == 400);
        }
    }

    fn expect(&mut self, expected: bool, event: &Event, answer: &Answer) -> bool {
        if !expected {
            self.unexpected_total += 1;
            if self.unexpected.len() < MAX_UNEXPECTED {
                self.unexpected.push(Unexpected {
                    status: answer.status,
                    kind: event.entry.kind,
                    repeat: event.repeat.is_some(),
                    body: answer.excerpt.clone(),
                });
            }
        }
        expected
    }

    /// The report of a run that took this long.
    pub(super) fn report(plan: &Plan, took: Duration) -> Report {
        let mut tally = plan.tally();
        let intended_s = plan.options.duration.min(took).as_secs_f64();
        Report {
            sent: tally.sent,
            accepted: tally.accepted,
            replayed: tally.replayed,
            repeats: tally.repeats,
            bad: tally.bad,
            bad_answered_400: tally.bad_answered_400,
            by_status: std::mem::take(&mut tally.by_status),
            answers_by_status: std::mem::take(&mut tally.answers_by_status),
            unexpected_total: tally.unexpected_total,
            unexpected: std::mem::take(&mut tally.unexpected),
            retries: tally.retries,
            connection_errors: tally.connection_errors,
            timeouts: tally.timeouts,
            unanswered: tally.unanswered,
            given_up: tally.given_up,
            unsent: tally.unsent,
            rate_target: plan.options.rate,
            rate_achieved: tally.accepted_in_time as f64 / intended_s.max(f64::EPSILON),
            latency_ms: LatencyReport {
                intended: tally.intended.percentiles(),
                actual: tally.actual.percentiles(),
            },
            duration_s: took.as_secs_f64(),
            seed: plan.options.seed,
        }
    }
}
