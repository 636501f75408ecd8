//! Devices that POST events: `loadgen ingest`.
//!
//! A device has one event outstanding at a time and sends the next one only when the last one was
//! answered, so the order of acceptance is the order of sending. It retries blindly, same key and same
//! bytes, as a real device does. In an open loop the schedule is fixed before the first byte is sent, and
//! latency counts from the scheduled start: a server that stalls is charged for every event that was due
//! meanwhile, not just for the one it held (no coordinated omission).
//!
//! Devices are dealt to connections, connections to gateways; a connection that is refused, cut or timed
//! out goes on at the next gateway and takes its devices along. A connection carries one request at a
//! time, so in an open loop `connections` must exceed rate x latency, or events queue here (which the
//! latency from the intended start shows).

mod event;
mod report;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use crate::control::Control;
use crate::http::Origin;
use crate::jsonl::JsonLines;

use event::Device;
use report::Tally;
pub use report::{LatencyReport, Report, Unexpected};
use worker::{Plan, Worker};

/// One run of devices.
#[derive(Debug, Clone)]
pub struct Options {
    /// Gateways, `http://host:port`. At least one.
    pub urls: Vec<String>,
    /// API key, sent as `x-api-key`.
    pub key: String,
    /// How many devices.
    pub devices: usize,
    /// Events per second over all devices, on a fixed schedule; `None`: each device sends as soon as it
    /// was answered (closed loop).
    pub rate: Option<f64>,
    /// How many connections; more than `devices` would idle and are not opened.
    pub connections: usize,
    /// How long new events are started.
    pub duration: Duration,
    /// Share (0-1) of accepted events that are sent once more, 0.1-2 s later, with the same bytes.
    pub repeats: f64,
    /// Share (0-1) of events that are bad on purpose and must be answered 400.
    pub bad: f64,
    /// Decides device ids and which events are bad or repeated; never the idempotency keys, which are
    /// fresh in every run.
    pub seed: u64,
    /// Where to write the [ledger](crate::ledger).
    pub ledger: Option<PathBuf>,
    /// Retry on connection errors, timeouts and answers that say "later" (408, 409, 429, 502, 503, 504).
    pub retry: bool,
    /// How long after `duration` outstanding events are still retried.
    pub grace: Duration,
    /// How long one attempt may take, connecting included.
    pub timeout: Duration,
}

impl Options {
    /// One gateway, ten devices on ten connections, closed loop for ten seconds, nothing bad.
    pub fn new(url: impl Into<String>, key: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            key: key.into(),
            devices: 10,
            rate: None,
            connections: 10,
            duration: Duration::from_secs(10),
            repeats: 0.0,
            bad: 0.0,
            seed: rand::rng().random(),
            ledger: None,
            retry: true,
            grace: Duration::from_secs(20),
            timeout: Duration::from_secs(10),
        }
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.urls.is_empty(), "no gateway URL");
        ensure!(self.devices > 0 && self.connections > 0, "no device or no connection");
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "the rate must be above 0");
        let share = |share: f64| (0.0..=1.0).contains(&share);
        ensure!(share(self.repeats) && share(self.bad), "a share is between 0 and 1");
        ensure!(self.key.bytes().all(|byte| byte.is_ascii_graphic()), "the API key is not ASCII");
        Ok(())
    }
}

/// The ids of the devices of a run with this seed: the same seed gives the same devices.
pub fn device_ids(seed: u64, devices: usize) -> Vec<Uuid> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..devices).map(|_| event::uuid_v4(&mut rng)).collect()
}

/// Runs to the end of the duration plus what of the grace period is needed.
///
/// # Errors
/// Options that make no sense, or a ledger that cannot be written. Whatever the servers do is not an
/// error but part of the report.
pub async fn run(options: Options) -> Result<Report> {
    run_controlled(options, Arc::default()).await
}

/// [`run`] that can be watched and stopped early. Dropping the future ends the run at once; the ledger
/// is then incomplete.
///
/// # Errors
/// As [`run`].
pub async fn run_controlled(options: Options, control: Arc<Control>) -> Result<Report> {
    options.check()?;
    let origins = options.urls.iter().map(|url| Origin::parse(url)).collect::<Result<Vec<_>>>()?;
    let ledger = options.ledger.as_deref().map(JsonLines::create).transpose();
    let ledger = ledger.context("create the ledger")?.map(Arc::new);
    let start = Instant::now();
    let plan = Arc::new(Plan::new(options, origins, ledger.clone(), control, start));
    let mut workers = spawn_workers(&plan);
    let mut each_second = interval(Duration::from_secs(1));
    each_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Neither arm loses anything when the other one wins.
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(ended) => ended.context("a worker panicked")?,
                None => break,
            },
            _ = each_second.tick() => ledger.iter().for_each(|ledger| ledger.flush()),
        }
    }
    ledger.map_or(Ok(()), |ledger| ledger.finish()).context("write the ledger")?;
    Ok(Tally::report(&plan, start.elapsed()))
}

/// Deals the devices to the connections like cards, so that each connection's share of an open-loop
/// schedule is spread evenly over time.
fn spawn_workers(plan: &Arc<Plan>) -> JoinSet<()> {
    let connections = plan.options.connections.min(plan.options.devices);
    let mut hands: Vec<Vec<Device>> = vec![Vec::new(); connections];
    for (index, id) in device_ids(plan.options.seed, plan.options.devices).into_iter().enumerate() {
        hands[index % connections].push(Device::new(index, id));
    }
    let mut workers = JoinSet::new();
    for (number, devices) in hands.into_iter().enumerate() {
        workers.spawn(Worker::new(Arc::clone(plan), number, devices).run());
    }
    workers
}
