//! One connection and the devices that use it.
//!
//! A worker shares nothing with the others but the tally: it keeps an agenda of what is due when (a
//! device's next event, another attempt, a repeat), does the earliest thing, and sleeps when nothing is
//! due. A device that waits for its retry therefore holds up no other device.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep_until, timeout_at};
use uuid::Uuid;

use super::Options;
use super::event::{Device, Event, backoff, request_head, uuid_v4};
use super::report::Tally;
use crate::control::Control;
use crate::http::{Answer, Connection, Origin};
use crate::jsonl::JsonLines;
use crate::ledger::Kind;

/// What all workers of a run share.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) options: Options,
    control: Arc<Control>,
    ledger: Option<Arc<JsonLines>>,
    tally: Mutex<Tally>,
    gateways: Vec<Gateway>,
    start: Instant,
}

#[derive(Debug)]
struct Gateway {
    origin: Origin,
    head: String,
}

impl Plan {
    pub(super) fn new(
        options: Options,
        origins: Vec<Origin>,
        ledger: Option<Arc<JsonLines>>,
        control: Arc<Control>,
        start: Instant,
    ) -> Self {
        let gateway = |origin| Gateway { head: request_head(&origin, &options.key), origin };
        let gateways = origins.into_iter().map(gateway).collect();
        Self { options, control, ledger, tally: Mutex::default(), gateways, start }
    }

    /// Held for a few additions, never across an await.
    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the device's `slot`-th event is due: devices take turns at the global rate.
    fn due(&self, rate: f64, device_index: usize, slot: u64) -> Instant {
        let turn = slot as f64 * self.options.devices as f64 + device_index as f64;
        self.start + Duration::from_secs_f64(turn / rate)
    }
}

/// Something to do at an instant.
enum Task {
    /// The device at this place makes its next event.
    Next(usize),
    /// An attempt at an event that exists: a retry or a repeat.
    Attempt(Box<Event>),
}

/// Why an attempt brought no answer.
enum Fault {
    /// Refused, cut, or not HTTP.
    Connection,
    Timeout,
}

/// One connection's worth of devices.
pub(super) struct Worker {
    plan: Arc<Plan>,
    devices: Vec<Device>,
    agenda: BTreeMap<(Instant, u64), Task>,
    /// Breaks ties in the agenda in order of entry.
    entered: u64,
    connection: Option<Connection>,
    /// Which gateway the connection goes to.
    gateway: usize,
    request: String,
    /// No event is begun at or after this instant.
    end: Instant,
    /// Nothing at all is done at or after this instant.
    deadline: Instant,
    /// Seeded: what is bad, what is repeated, when.
    choices: StdRng,
    /// Not seeded: two runs with one seed must not reuse each other's keys.
    keys: StdRng,
    bad_made: usize,
}

impl Worker {
    pub(super) fn new(plan: Arc<Plan>, number: usize, devices: Vec<Device>) -> Self {
        let end = plan.start + plan.options.duration;
        let mut worker = Self {
            gateway: number % plan.gateways.len(),
            choices: StdRng::seed_from_u64(plan.options.seed ^ (number as u64 + 1)),
            keys: StdRng::from_rng(&mut rand::rng()),
            deadline: end + plan.options.grace,
            end,
            agenda: BTreeMap::new(),
            entered: 0,
            connection: None,
            request: String::with_capacity(512),
            bad_made: number,
            devices,
            plan,
        };
        for place in 0..worker.devices.len() {
            worker.schedule_next(place, worker.plan.start);
        }
        worker
    }

    /// Works until nothing is left to do or the grace period is over.
    pub(super) async fn run(mut self) {
        while let Some((due, task)) = self.next_task().await {
            match task {
                Task::Next(place) => {
                    let event = self.next_event(place, due);
                    self.attempt(event).await;
                }
                Task::Attempt(event) => self.attempt(event).await,
            }
        }
        self.give_up_rest();
    }

    /// Waits for the earliest task. `None` when there is none before the deadline.
    async fn next_task(&mut self) -> Option<(Instant, Task)> {
        let control = Arc::clone(&self.plan.control);
        loop {
            let (&(due, _), _) = self.agenda.first_key_value()?;
            let now = Instant::now();
            if now >= self.deadline {
                return None;
            }
            if due <= now {
                return self.agenda.pop_first().map(|((due, _), task)| (due, task));
            }
            let wake = sleep_until(due.min(self.deadline));
            if self.end <= now {
                wake.await;
                continue;
            }
            // A stop only moves the end; a sleep cut short is taken up again.
            tokio::select! {
                () = wake => {}
                () = control.stopped() => self.end_now(),
            }
        }
    }

    /// The run was stopped: what is not due yet will not be begun.
    fn end_now(&mut self) {
        self.end = Instant::now();
        self.deadline = self.deadline.min(self.end + self.plan.options.grace);
        let end = self.end;
        self.agenda.retain(|&(due, _), task| matches!(task, Task::Attempt(_)) || due < end);
    }

    fn enter(&mut self, due: Instant, task: Task) {
        self.entered += 1;
        self.agenda.insert((due, self.entered), task);
    }

    /// The device is free from this instant: its next event, if one is still to be begun.
    fn schedule_next(&mut self, place: usize, free_at: Instant) {
        if self.plan.control.is_stopped() && Instant::now() < self.end {
            self.end_now();
        }
        let device = &self.devices[place];
        let due = match self.plan.options.rate {
            Some(rate) => self.plan.due(rate, device.index, device.slot),
            None => free_at,
        };
        if due < self.end {
            self.enter(due, Task::Next(place));
        }
    }

    fn next_event(&mut self, place: usize, due: Instant) -> Box<Event> {
        let bad = self.plan.options.bad;
        let kind = if bad > 0.0 && self.choices.random_bool(bad) {
            self.bad_made += 1;
            Kind::BAD[self.bad_made % Kind::BAD.len()]
        } else {
            Kind::Good
        };
        let id: Uuid = uuid_v4(&mut self.keys);
        // A closed loop has no schedule that the start could be late against.
        let due = if self.plan.options.rate.is_some() { due } else { Instant::now() };
        Box::new(self.devices[place].next_event(place, id, kind, due))
    }

    async fn attempt(&mut self, mut event: Box<Event>) {
        let result = self.exchange(&mut event).await;
        event.tries += 1;
        match result {
            Ok(answer) => {
                event.note_answer(answer.status, answer.replayed);
                self.plan.tally().answered(&answer);
                if self.plan.options.retry && says_later(answer.status) {
                    self.try_again(event, answer.retry_after);
                } else {
                    self.settle(event, &answer);
                }
            }
            Err(fault) => {
                self.gateway = (self.gateway + 1) % self.plan.gateways.len();
                self.plan.control.add_problem();
                self.plan.tally().faulted(matches!(fault, Fault::Timeout));
                if self.plan.options.retry {
                    self.try_again(event, None);
                } else {
                    self.settle(event, &Answer::default());
                }
            }
        }
    }

    /// Sends the event once. The connection is put back only when it may be used again: on every other
    /// way out, a timeout included, it is dropped, so a late answer can never be taken for another's.
    async fn exchange(&mut self, event: &mut Event) -> Result<Answer, Fault> {
        let plan = Arc::clone(&self.plan);
        let gateway = &plan.gateways[self.gateway];
        let limit = (Instant::now() + plan.options.timeout).min(self.deadline);
        let kept = self.connection.take().filter(|connection| !connection.is_stale());
        let once = async {
            let mut connection = match kept {
                Some(connection) => connection,
                None => Connection::open(&gateway.origin).await?,
            };
            event.write_request(&gateway.head, &mut self.request);
            if event.count_write(Instant::now()) {
                plan.tally().retries += 1;
            }
            let answer = connection.exchange(self.request.as_bytes()).await?;
            Ok::<_, std::io::Error>((connection, answer))
        };
        let done = timeout_at(limit, once).await.map_err(|_| Fault::Timeout)?;
        let (connection, answer) = done.map_err(|_| Fault::Connection)?;
        self.connection = Some(connection).filter(|_| !answer.close);
        Ok(answer)
    }

    fn try_again(&mut self, event: Box<Event>, asked: Option<Duration>) {
        let pause = backoff(asked, event.tries, &mut self.choices);
        self.enter(Instant::now() + pause, Task::Attempt(event));
    }

    /// Nothing more will be done for this answer: the device may go on, the event may be due a repeat.
    fn settle(&mut self, mut event: Box<Event>, answer: &Answer) {
        if event.repeat.is_some() {
            self.plan.tally().repeat_settled(&event, answer);
            self.close(*event);
            return;
        }
        if event.entry.accepted() {
            self.plan.control.add_done();
        }
        let expected = self.plan.tally().settled(&event, answer, self.end);
        if !expected {
            self.plan.control.add_problem();
        }
        // Without retries a closed loop would spin on a server that is gone.
        let pause =
            if answer.status == 0 { backoff(None, 0, &mut self.choices) } else { Duration::ZERO };
        self.schedule_next(event.place, Instant::now() + pause);
        let repeats = self.plan.options.repeats;
        if event.entry.accepted() && repeats > 0.0 && self.choices.random_bool(repeats) {
            event.repeat = Some(0);
            event.tries = 0;
            let later = Duration::from_millis(self.choices.random_range(100..=2_000));
            self.enter(Instant::now() + later, Task::Attempt(event));
        } else {
            self.close(*event);
        }
    }

    /// Writes the event's ledger line.
    fn close(&self, event: Event) {
        if let Some(ledger) = &self.plan.ledger {
            ledger.write(&event.into_entry());
        }
    }

    /// The grace period is over: what is outstanding keeps the last status it was told, 0 if none.
    fn give_up_rest(&mut self) {
        for task in std::mem::take(&mut self.agenda).into_values() {
            match task {
                Task::Next(place) => self.count_unsent(place),
                Task::Attempt(event) => {
                    if event.repeat.is_none() {
                        self.plan.tally().gave_up(&event);
                        self.count_unsent(event.place);
                    }
                    self.close(*event);
                }
            }
        }
    }

    /// How many of the device's events the schedule wanted begun that never were.
    fn count_unsent(&self, place: usize) {
        let device = &self.devices[place];
        let Some(rate) = self.plan.options.rate else { return };
        let due = |slot: &u64| self.plan.due(rate, device.index, *slot) < self.end;
        let unsent = (device.slot..).take_while(due).count();
        self.plan.tally().unsent += unsent as u64;
    }
}

/// Statuses after which a device sends the same bytes again.
fn says_later(status: u16) -> bool {
    matches!(status, 408 | 409 | 429 | 502 | 503 | 504)
}
