//! Consumers that come, go and are killed while records keep coming; afterwards the ledger of what was appended is
//! compared with the tables.
//!
//! Records are appended behind the gateway's back, so that the load is as steady as the schedule says and the
//! ledger is exact: some are repeated byte by byte, as a device's retry would be, and some are no events. The
//! consumers are the product's processes on real servers. All choices come from one seed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use prometheus::Registry;
use pulsestream_shared::admin::Readiness;
use pulsestream_shared::clock;
use pulsestream_shared::codec::{self, Accepted};
use pulsestream_shared::engine::Engine;
use pulsestream_shared::event::{ClientId, DeviceId, Event, EventId};
use pulsestream_shared::log::{NewRecord, Offset, Partition, STORE_GROUP, Topic};
use pulsestream_shared::store::StoredEvent;
use pulsestream_shared::store::postgres::{PostgresConfig, PostgresStore};
use pulsestream_shared::testing::store::TestedStore;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::client::Client;
use crate::harness::{Engines, Home};
use crate::process::{Process, free_port};

/// How long the store may take to catch up once nothing comes any more.
const CATCH_UP: Duration = Duration::from_secs(120);
/// How often records are appended, and the store's places looked at.
const TICK: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_millis(100);
/// A repeat is of one of so many latest events.
const REPEATED_AMONG: usize = 10_000;

/// How large a run is.
#[derive(Debug, Clone)]
pub struct Size {
    /// Records a second.
    pub rate: usize,
    /// Partitions of the log.
    pub partitions: u32,
    /// Devices.
    pub devices: usize,
    /// Consumers at the start.
    pub consumers: usize,
    /// Share of records that repeat an earlier one.
    pub repeats: f64,
    /// Share of records that are no events.
    pub poison: f64,
    /// How partitions are dealt anew: `log.rebalance_protocol`.
    pub protocol: &'static str,
    /// Each consumer keeps a name over its restarts: `log.group_instance_id`.
    pub named: bool,
    /// Decides records and victims.
    pub seed: u64,
}

/// What happens to the consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// One more.
    Start,
    /// One at random is asked to end, and does.
    Stop,
    /// One at random is killed.
    Kill,
    /// One at random is killed and started again at once.
    Restart,
}

/// What came of a run. Every number but the first four should be zero, or is a time.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Outcome {
    /// Records appended: events, repeats, poison.
    pub appended: usize,
    /// Different events among them.
    pub events: usize,
    /// Rows in the store.
    pub stored: usize,
    /// Dead letters.
    pub dead: usize,
    /// Events without a row.
    pub lost: usize,
    /// Rows beyond the first of an event.
    pub double: usize,
    /// Rows of nothing that was sent, or with another value.
    pub foreign: usize,
    /// Rows that do not follow the earlier ones of their device.
    pub out_of_order: usize,
    /// Poison without a dead letter, and dead letters of anything else.
    pub wrong_dead: usize,
    /// Consumers whose counts of records do not add up.
    pub unbalanced: Vec<String>,
    /// Processes that did not end with code 0 when asked to.
    pub unclean_ends: usize,
    /// The longest time a partition with records to store stood still, and when: seconds of the run.
    pub longest_idle_s: f64,
    /// When that ended.
    pub idle_until_s: f64,
    /// Seconds from the last record to the store being level with the log.
    pub caught_up_s: f64,
    /// What happened, in order.
    pub acts: Vec<String>,
}

impl Outcome {
    /// What is wrong; empty when all is well.
    pub fn faults(&self) -> Vec<String> {
        let counts = [
            ("lost", self.lost),
            ("double", self.double),
            ("foreign", self.foreign),
            ("out of order", self.out_of_order),
            ("wrong dead letters", self.wrong_dead),
            ("unclean ends", self.unclean_ends),
        ];
        let mut faults: Vec<_> =
            counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")).collect();
        faults.extend(self.unbalanced.iter().cloned());
        faults
    }
}

/// Runs consumers under load, doing each act at its time, until `duration`; then lets them catch up and compares.
///
/// # Errors
/// A log or store that cannot be reached, or consumers that do not catch up.
///
/// # Panics
/// When a process does not start, or servers are absent.
pub async fn run(
    size: &Size,
    duration: Duration,
    acts: &[(Duration, Act)],
    folder: &Path,
) -> Result<Outcome> {
    let variables = [
        ("PULSESTREAM__LOG__PARTITIONS".to_owned(), size.partitions.to_string()),
        ("PULSESTREAM__LOG__REBALANCE_PROTOCOL".to_owned(), size.protocol.to_owned()),
    ];
    let home = Home::new(Engines::Servers, variables.into()).await;
    home.make_key("tenant").await;
    let site = Site::open(&home).await?;
    let mut crew = Crew::new(&home, folder, size);
    for _ in 0..size.consumers {
        crew.act(Act::Start, Instant::now()).await;
    }
    crew.ready().await;

    let stop = CancellationToken::new();
    let begin = Instant::now();
    let load = async {
        let ledger = site.load(size, begin + duration).await;
        let level = site.caught_up().await;
        stop.cancel();
        ledger.and_then(|ledger| Ok((ledger, level?)))
    };
    let changes = async {
        for (at, act) in acts {
            sleep_until(begin + *at).await;
            crew.act(*act, begin).await;
        }
    };
    let (loaded, (), idle) = tokio::join!(load, changes, site.watch(begin, stop.clone()));
    let (ledger, caught_up) = loaded?;
    let (longest, until) = idle?;

    crew.ready().await;
    let unbalanced = crew.unbalanced().await?;
    let unclean_ends = crew.unclean_ends + crew.end().await;
    let outcome = Outcome {
        unbalanced,
        unclean_ends,
        longest_idle_s: longest.as_secs_f64(),
        idle_until_s: until.as_secs_f64(),
        caught_up_s: caught_up.as_secs_f64(),
        acts: std::mem::take(&mut crew.acts),
        ..ledger.compare(site.tables.as_ref()).await?
    };
    drop(site);
    home.remove().await;
    Ok(outcome)
}

/// The consumers of a run.
struct Crew<'a> {
    home: &'a Home,
    folder: &'a Path,
    named: bool,
    chance: StdRng,
    processes: Vec<Process>,
    started: usize,
    acts: Vec<String>,
    unclean_ends: usize,
}

impl<'a> Crew<'a> {
    fn new(home: &'a Home, folder: &'a Path, size: &Size) -> Self {
        let chance = StdRng::seed_from_u64(size.seed ^ 1);
        let (processes, acts, named) = (Vec::new(), Vec::new(), size.named);
        Self { home, folder, named, chance, processes, started: 0, acts, unclean_ends: 0 }
    }

    async fn act(&mut self, act: Act, begin: Instant) {
        self.acts.push(format!("{act:?} at {:.2} s", begin.elapsed().as_secs_f64()));
        if act == Act::Start {
            self.started += 1;
            let name = format!("consumer-{}", self.started);
            let (port, output) = (free_port(), Some(self.folder.join(&name)));
            let mut variables = self.home.variables.clone();
            if self.named {
                variables.insert("PULSESTREAM__LOG__GROUP_INSTANCE_ID".to_owned(), name);
            }
            self.processes.push(Process::start_at(port, "consumer", &variables, output).await);
            return;
        }
        let victim = self.chance.random_range(0..self.processes.len());
        match act {
            Act::Start => {}
            Act::Stop => {
                let code = self.processes.remove(victim).terminate().await;
                self.unclean_ends += usize::from(code != Some(0));
            }
            Act::Kill => self.processes.remove(victim).kill().await,
            Act::Restart => {
                if let Some(process) = self.processes.get_mut(victim) {
                    process.kill().await;
                    process.restart().await;
                }
            }
        }
    }

    async fn ready(&self) {
        for process in &self.processes {
            process.ready().await;
        }
    }

    /// Consumers that read another number of records than they settled, gave back or still hold.
    async fn unbalanced(&self) -> Result<Vec<String>> {
        let mut unbalanced = Vec::new();
        for process in &self.processes {
            let metrics = Client::new(&process.url, "").get_text("/metrics").await?;
            let sum = |name: &str| -> f64 {
                let of = |line: &&str| {
                    let rest = line.strip_prefix("pulsestream_consumer_").unwrap_or_default();
                    rest.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
                };
                let lines = metrics.lines().filter(of);
                lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
            };
            let read = sum("read_records_total");
            let told = sum("records_total") + sum("pending_records");
            if (read - told).abs() > 0.0 || sum("pending_records") != 0.0 {
                unbalanced.push(format!("{}: read {read}, told {told}", process.url));
            }
        }
        Ok(unbalanced)
    }

    async fn end(&mut self) -> usize {
        let mut unclean = 0;
        for mut process in self.processes.drain(..) {
            unclean += usize::from(process.terminate().await != Some(0));
        }
        unclean
    }
}

/// The log and the tables, behind the consumers' back.
struct Site {
    engine: Engine,
    tables: Arc<dyn TestedStore>,
    client: ClientId,
}

impl Site {
    async fn open(home: &Home) -> Result<Self> {
        let registry = Registry::new();
        let readiness = Readiness::new(&registry, &[]);
        let engine = Engine::open(&home.config(), &readiness, &registry).await?;
        let database = home.database.as_ref().context("servers have a database")?;
        let config = PostgresConfig::new(database.url.clone());
        let tables: Arc<dyn TestedStore> = Arc::new(PostgresStore::open(config).await?);
        let client = tables.list().await?.first().context("a key was made")?.client;
        Ok(Self { engine, tables, client })
    }

    /// Appends at the rate until `end`.
    async fn load(&self, size: &Size, end: Instant) -> Result<Ledger> {
        let mut maker = Maker::new(size, self.client);
        let mut ledger = Ledger::default();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let begin = Instant::now();
        while Instant::now() < end {
            ticks.tick().await;
            let due = (begin.elapsed().as_secs_f64() * size.rate as f64) as usize;
            let made: Vec<_> =
                (ledger.appended..due).map(|_| maker.next(size, &mut ledger)).collect();
            ledger.appended += made.len();
            let places: Vec<_> =
                made.iter().map(|(record, bad)| (record.partition, *bad)).collect();
            let records = made.into_iter().map(|(record, _)| record).collect();
            let results = self.engine.log.append(Topic::Raw, records).await;
            for ((partition, bad), result) in places.into_iter().zip(results) {
                let offset = result.context("no broker is disturbed here")?;
                if bad {
                    ledger.poison.insert((partition, offset));
                }
            }
        }
        Ok(ledger)
    }

    async fn caught_up(&self) -> Result<Duration> {
        let begin = Instant::now();
        while !self.behind().await?.is_empty() {
            ensure!(begin.elapsed() < CATCH_UP, "not level: {:?}", self.behind().await?);
            sleep(TICK).await;
        }
        Ok(begin.elapsed())
    }

    /// Partitions with records to store, and where each stands.
    async fn behind(&self) -> Result<BTreeMap<usize, Offset>> {
        let progress = self.engine.store.progress(STORE_GROUP).await?;
        let bounds = self.engine.log.bounds(Topic::Raw).await?;
        let stands = bounds.iter().enumerate().map(|(partition, bounds)| {
            let place = progress.iter().find(|p| usize::try_from(p.partition) == Ok(partition));
            (partition, place.map_or(bounds.first, |place| place.next), bounds.next)
        });
        Ok(stands
            .filter(|(_, at, end)| at < end)
            .map(|(partition, at, _)| (partition, at))
            .collect())
    }

    /// The longest time a partition was behind and did not move, and when that ended.
    async fn watch(&self, begin: Instant, stop: CancellationToken) -> Result<(Duration, Duration)> {
        let mut stood: HashMap<usize, (Offset, Instant)> = HashMap::new();
        let mut longest = (Duration::ZERO, Duration::ZERO);
        while stop.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let behind = self.behind().await?;
            stood.retain(|partition, _| behind.contains_key(partition));
            for (partition, at) in behind {
                let (seen, since) = stood.entry(partition).or_insert((at, Instant::now()));
                if *seen != at {
                    (*seen, *since) = (at, Instant::now());
                }
                longest = longest.max((since.elapsed(), begin.elapsed()));
            }
        }
        Ok(longest)
    }
}

/// Makes records.
struct Maker {
    chance: StdRng,
    client: ClientId,
    devices: Vec<DeviceId>,
    /// How many events each has sent.
    sent: HashMap<DeviceId, u32>,
    latest: Vec<NewRecord>,
}

impl Maker {
    fn new(size: &Size, client: ClientId) -> Self {
        let mut chance = StdRng::seed_from_u64(size.seed);
        let devices = (0..size.devices).map(|_| DeviceId(uuid(&mut chance))).collect();
        Self { chance, client, devices, sent: HashMap::new(), latest: Vec::new() }
    }

    /// The next record, and whether it is no event.
    fn next(&mut self, size: &Size, ledger: &mut Ledger) -> (NewRecord, bool) {
        if !self.latest.is_empty() && self.chance.random_bool(size.repeats) {
            let one = self.chance.random_range(0..self.latest.len());
            if let Some(record) = self.latest.get(one) {
                return (record.clone(), false);
            }
        }
        let bad = self.chance.random_bool(size.poison);
        let device = self.chance.random_range(0..self.devices.len());
        let device = self.devices.get(device).copied().unwrap_or(DeviceId(Uuid::nil()));
        let id = EventId(uuid(&mut self.chance));
        let seq = self.sent.entry(device).or_default();
        *seq += u32::from(!bad);
        let event = Event {
            id,
            device_id: device,
            event_type: "temperature".to_owned(),
            value: f64::from(*seq),
            timestamp_ms: clock::unix_ms(),
            metadata: None,
        };
        let (client, received_at_us) = (self.client, clock::unix_us());
        let accepted = Accepted { event, client, received_at_us, unsure: None, replay: false };
        let mut record = codec::encode(&accepted, size.partitions);
        if bad {
            record.value = Bytes::from_static(b"{\"id\":");
            return (record, true);
        }
        ledger.events.insert(id, (device, *seq));
        if self.latest.len() < REPEATED_AMONG {
            self.latest.push(record.clone());
        } else {
            let one = self.chance.random_range(0..self.latest.len());
            if let Some(place) = self.latest.get_mut(one) {
                *place = record.clone();
            }
        }
        (record, false)
    }
}

fn uuid(chance: &mut StdRng) -> Uuid {
    uuid::Builder::from_random_bytes(chance.random()).into_uuid()
}

/// What was appended.
#[derive(Default)]
struct Ledger {
    appended: usize,
    /// Events by id: device, and which of its events it is, from 1. That is also the value.
    events: HashMap<EventId, (DeviceId, u32)>,
    /// Where records lie that are no events.
    poison: HashSet<(Partition, Offset)>,
}

impl Ledger {
    async fn compare(self, tables: &dyn TestedStore) -> Result<Outcome> {
        let mut stored = tables.stored_events().await?;
        let buried = tables.buried_records().await?;
        let dead: HashSet<_> = buried.iter().map(|it| (it.partition, it.offset)).collect();
        let mut outcome = Outcome {
            appended: self.appended,
            events: self.events.len(),
            stored: stored.len(),
            dead: buried.len(),
            wrong_dead: dead.symmetric_difference(&self.poison).count() + buried.len() - dead.len(),
            ..Outcome::default()
        };
        let mut seen = HashSet::new();
        outcome.double = stored.iter().filter(|row| !seen.insert(row.id)).count();
        outcome.lost = self.events.keys().filter(|id| !seen.contains(id)).count();
        let right =
            |row: &&StoredEvent| self.events.get(&row.id) == Some(&(row.device, row.value as u32));
        outcome.foreign = stored.len() - stored.iter().filter(right).count();
        stored.sort_by_key(|row| (row.device, row.pos));
        let goes_back = |pair: &&[StoredEvent]| {
            let [before, after] = pair else { return false };
            before.device == after.device && before.value >= after.value
        };
        outcome.out_of_order = stored.windows(2).filter(goes_back).count();
        Ok(outcome)
    }
}
