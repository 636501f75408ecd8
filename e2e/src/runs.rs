//! The four runs: devices and dashboards on the whole product, as processes, undisturbed and with a
//! `kill -9` every few seconds; afterwards everything is compared ([`crate::verify`]).
//!
//! | run | engines | processes | killed |
//! |---|---|---|---|
//! | a | embedded | one | no |
//! | b | Kafka, PostgreSQL, Redis | two gateways, two consumers, two broadcasters | no |
//! | c | as a | as a | the one |
//! | d | as b | as b | one at random |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use prometheus::Registry;
use pulsestream_loadgen::control::Control;
use pulsestream_loadgen::live::Received;
use pulsestream_loadgen::{ingest, ledger, live};
use pulsestream_shared::admin::Readiness;
use pulsestream_shared::codec;
use pulsestream_shared::engine::Engine;
use pulsestream_shared::log::embedded::EmbeddedLog;
use pulsestream_shared::log::{EventLog, ReadLimit, STORE_GROUP, Topic};
use pulsestream_shared::store::postgres::{PostgresConfig, PostgresStore};
use pulsestream_shared::store::sqlite::{SqliteConfig, SqliteStore};
use pulsestream_shared::testing::store::TestedStore;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::Serialize;
use tokio::process::Command;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};

use crate::harness::{Engines, Home};
use crate::process::{Process, free_port};
use crate::verify::{Expect, Logged, Rule, Stored, Verdict, verify};

/// How long the pipeline may take to catch up once the devices are silent: several times the time after
/// which a consumer group gives up a member that was killed.
const CATCH_UP: Duration = Duration::from_secs(60);
/// Sockets on which nothing arrives for so long have got what they will get; beyond the silence after
/// which a broadcaster reads the log itself.
const QUIET: Duration = Duration::from_secs(4);

/// One of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the table above")]
pub enum Run {
    A,
    B,
    C,
    D,
}

impl Run {
    /// All, in order.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// What it runs on.
    pub const fn engines(self) -> Engines {
        match self {
            Self::A | Self::C => Engines::Embedded,
            Self::B | Self::D => Engines::Servers,
        }
    }

    /// Whether processes are killed.
    pub const fn kills(self) -> bool {
        matches!(self, Self::C | Self::D)
    }

    /// The letter.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
            Self::D => "d",
        }
    }
}

/// How large a run is.
#[derive(Debug, Clone)]
pub struct Size {
    /// How long new events are begun.
    pub duration: Duration,
    /// Events per second over all devices.
    pub rate: f64,
    /// Devices.
    pub devices: usize,
    /// Dashboards, each of which sees everything.
    pub sockets: usize,
    /// Partitions of the log.
    pub partitions: u32,
    /// Time between two kills.
    pub kill_every: Duration,
    /// Decides devices, what is bad or repeated, and who is killed.
    pub seed: u64,
    /// Where logs and records of the run stay; `None`: a folder that goes with the run.
    pub keep: Option<PathBuf>,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub struct Outcome {
    /// Which.
    pub run: Run,
    /// As given.
    pub seed: u64,
    /// Who was killed, in order: role and the second of the run.
    pub killed: Vec<String>,
    /// Processes that did not end with code 0 on SIGTERM.
    pub unclean_ends: u64,
    /// Seconds from the last answer to the store being level with the log.
    pub caught_up_s: f64,
    /// Records another reader counts in the topic; absent where that reader is, and when embedded.
    pub kcat_records: Option<u64>,
    /// What the devices say.
    pub ingest: ingest::Report,
    /// What the dashboards say.
    pub live: live::Report,
    /// The comparison.
    pub verdict: Verdict,
}

impl Outcome {
    /// Everything that is wrong, one line each; empty when all is well.
    pub fn faults(&self) -> Vec<String> {
        let rule = |(rule, breaches): (&Rule, &_)| format!("{rule:?}: {breaches:?}");
        let mut faults: Vec<_> = self.verdict.faults.iter().map(rule).collect();
        let kcat = self.kcat_records.filter(|records| *records != self.verdict.logged);
        faults.extend(kcat.map(|records| format!("kcat counts {records} records")));
        let numbers = [
            ("processes ended uncleanly", self.unclean_ends),
            ("answers nobody expected", self.ingest.unexpected_total),
            ("events never begun", self.ingest.unsent),
            ("frames that are no event", self.live.undecodable),
            ("WebSocket protocol errors", self.live.protocol_errors),
        ];
        faults
            .extend(numbers.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")));
        faults
    }
}

/// Does one run from start to end.
///
/// # Errors
/// A file, a log or a store that cannot be read, or a pipeline that does not catch up.
///
/// # Panics
/// When a process does not start or servers are absent.
pub async fn run(run: Run, size: &Size) -> Result<Outcome> {
    let scratch = tempfile::tempdir()?;
    let folder =
        size.keep.as_ref().map_or(scratch.path().to_owned(), |keep| keep.join(run.letter()));
    tokio::fs::create_dir_all(&folder).await?;
    let variables = [("PULSESTREAM__LOG__PARTITIONS".to_owned(), size.partitions.to_string())];
    let home = Home::new(run.engines(), variables.into()).await;
    let key = home.make_key("four-runs").await;
    let mut processes = start(&home, &folder).await;
    let load = Load::start(run, size, &processes, key, &folder).await?;
    let (ingest, killed) = load.devices(run, size, &mut processes).await?;
    let answered = Instant::now();
    ready(&processes).await;
    let reader = Reader::open(&home).await?;
    reader.caught_up().await?;
    let caught_up_s = answered.elapsed().as_secs_f64();
    let every_frame = (!run.kills()).then_some(ingest.accepted * size.sockets as u64);
    let live = load.finish(every_frame).await?;
    let ended = join_all(processes.iter_mut().map(Process::terminate)).await;
    let unclean_ends = ended.iter().filter(|code| **code != Some(0)).count() as u64;
    let expect = Expect {
        undisturbed: !run.kills(),
        sockets: size.sockets,
        open_at_end: live.open_at_end == live.sockets,
    };
    let kcat_records = count_with_kcat(&home).await?;
    let verdict = reader.compare(expect, &folder).await?;
    drop(reader);
    home.remove().await;
    Ok(Outcome {
        run,
        seed: size.seed,
        killed,
        unclean_ends,
        caught_up_s,
        kcat_records,
        ingest,
        live,
        verdict,
    })
}

/// The processes of the product, ready. Each logs to a file of its own.
async fn start(home: &Home, folder: &Path) -> Vec<Process> {
    let roles: &[&str] = match home.engines {
        Engines::Embedded => &["up"],
        Engines::Servers => {
            &["gateway", "gateway", "consumer", "consumer", "broadcaster", "broadcaster"]
        }
    };
    let mut processes = Vec::new();
    for (number, role) in roles.iter().enumerate() {
        let output = Some(folder.join(format!("{role}-{number}")));
        processes.push(Process::start_at(free_port(), role, &home.variables, output).await);
    }
    ready(&processes).await;
    processes
}

async fn ready(processes: &[Process]) {
    join_all(processes.iter().map(Process::ready)).await;
}

/// Where processes of these roles listen.
fn urls(processes: &[Process], roles: [&str; 2]) -> Vec<String> {
    let wanted = processes.iter().filter(|process| roles.contains(&process.role()));
    wanted.map(|process| process.url.clone()).collect()
}

/// The dashboards, open, and the devices, about to begin.
struct Load {
    devices: ingest::Options,
    dashboards: tokio::task::JoinHandle<Result<live::Report>>,
    control: Arc<Control>,
}

impl Load {
    async fn start(
        run: Run,
        size: &Size,
        processes: &[Process],
        key: String,
        folder: &Path,
    ) -> Result<Self> {
        let control = Arc::new(Control::default());
        let dashboards = live::Options {
            urls: urls(processes, ["up", "broadcaster"]),
            key: Some(key.clone()),
            sockets: size.sockets,
            duration: Duration::from_secs(86_400),
            reconnect: run.kills(),
            record: Some(folder.join("seen.jsonl")),
            ..live::Options::new("")
        };
        let devices = ingest::Options {
            urls: urls(processes, ["up", "gateway"]),
            devices: size.devices,
            rate: Some(size.rate),
            connections: 64,
            duration: size.duration,
            repeats: 0.05,
            bad: 0.01,
            seed: size.seed,
            ledger: Some(folder.join("ledger.jsonl")),
            // Longer than the lease of a gateway that was killed in the last second.
            grace: Duration::from_secs(30),
            ..ingest::Options::new("", key)
        };
        let dashboards = tokio::spawn(live::run_controlled(dashboards, Arc::clone(&control)));
        let load = Self { devices, dashboards, control };
        let open = async {
            while load.control.open() < size.sockets as u64 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(CATCH_UP, open).await.context("the sockets do not open")?;
        Ok(load)
    }

    /// Runs the devices to their end, killing meanwhile.
    async fn devices(
        &self,
        run: Run,
        size: &Size,
        processes: &mut [Process],
    ) -> Result<(ingest::Report, Vec<String>)> {
        let kills =
            async { if run.kills() { kill_at_random(size, processes).await } else { Vec::new() } };
        let (ingest, killed) = tokio::join!(ingest::run(self.devices.clone()), kills);
        Ok((ingest?, killed))
    }

    /// Waits until the sockets have got `frames`, or what they will get, and closes them.
    async fn finish(self, frames: Option<u64>) -> Result<live::Report> {
        let (mut seen, mut since) = (self.control.done(), Instant::now());
        while frames.is_none_or(|frames| seen < frames) && since.elapsed() < QUIET {
            sleep(Duration::from_millis(20)).await;
            if self.control.done() != seen {
                (seen, since) = (self.control.done(), Instant::now());
            }
        }
        self.control.stop();
        self.dashboards.await.context("the dashboards panicked")?
    }
}

/// Kills one process at random at each tick within the duration, and starts it again at once.
async fn kill_at_random(size: &Size, processes: &mut [Process]) -> Vec<String> {
    let mut choices = StdRng::seed_from_u64(size.seed);
    let start = Instant::now();
    let mut ticks = interval_at(start + size.kill_every, size.kill_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut killed = Vec::new();
    loop {
        ticks.tick().await;
        if start.elapsed() >= size.duration {
            return killed;
        }
        let victim = choices.random_range(0..processes.len());
        let Some(process) = processes.get_mut(victim) else { continue };
        process.kill().await;
        let second = start.elapsed().as_secs_f64();
        killed.push(format!("{}-{victim} at {second:.1} s", process.role()));
        process.restart().await;
    }
}

/// Looks into the log and the store from outside.
struct Reader {
    log: Arc<dyn EventLog>,
    store: Arc<dyn TestedStore>,
}

impl Reader {
    async fn open(home: &Home) -> Result<Self> {
        let config = home.config();
        let log: Arc<dyn EventLog> = match home.engines {
            Engines::Embedded => Arc::new(EmbeddedLog::attach(&config.embedded.data_dir).await?),
            Engines::Servers => {
                let registry = Registry::new();
                let readiness = Readiness::new(&registry, &[]);
                Engine::open(&config, &readiness, &registry).await?.log
            }
        };
        let store: Arc<dyn TestedStore> = match &home.database {
            Some(database) => {
                let config = PostgresConfig::new(database.url.clone());
                Arc::new(PostgresStore::open(config).await?)
            }
            None => {
                let path = config.embedded.data_dir.join("store.db");
                Arc::new(SqliteStore::open(SqliteConfig::new(path)).await?)
            }
        };
        Ok(Self { log, store })
    }

    /// Waits until the store's place in every partition is the log's end.
    async fn caught_up(&self) -> Result<()> {
        let mut behind = Vec::new();
        let wait = async {
            loop {
                behind = self.behind().await?;
                if behind.is_empty() {
                    return Ok(());
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = timeout(CATCH_UP, wait).await;
        waited.with_context(|| format!("the consumer does not catch up: {behind:?}"))?
    }

    /// Partitions the store is not level with: number, the log's end, the store's place.
    async fn behind(&self) -> Result<Vec<(usize, i64, i64)>> {
        let bounds = self.log.bounds(Topic::Raw).await?;
        let progress = self.store.progress(STORE_GROUP).await?;
        let stored: BTreeMap<_, _> =
            progress.iter().map(|place| (place.partition, place.next)).collect();
        let places = bounds.iter().enumerate().map(|(partition, bounds)| {
            let stored = i32::try_from(partition).ok().and_then(|p| stored.get(&p).copied());
            (partition, bounds.next, stored.unwrap_or(bounds.first))
        });
        Ok(places.filter(|(_, end, stored)| end != stored).collect())
    }

    async fn compare(&self, expect: Expect, folder: &Path) -> Result<Verdict> {
        let ledger = ledger::read_all(&folder.join("ledger.jsonl"))?;
        let seen = tokio::fs::read_to_string(folder.join("seen.jsonl")).await?;
        let seen: Vec<Received> =
            seen.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let stored = self.store.stored_events().await?;
        let stored: Vec<_> = stored
            .into_iter()
            .map(|event| Stored {
                id: event.id.0,
                device: event.device.0,
                seq: event.value as i64,
                pos: event.pos,
            })
            .collect();
        let buried = self.store.buried_records().await?;
        let buried: Vec<_> = buried.iter().map(|letter| format!("{letter:?}")).collect();
        let logged = self.logged().await?;
        Ok(verify(expect, &ledger, &stored, &logged, &buried, &seen))
    }

    /// Every record of every partition, in offset order within it.
    async fn logged(&self) -> Result<Vec<Logged>> {
        const LIMIT: ReadLimit = ReadLimit { records: 5_000, bytes: 4 << 20 };
        let mut all = Vec::new();
        for (partition, bounds) in (0..).zip(self.log.bounds(Topic::Raw).await?) {
            let mut next = bounds.first;
            while next < bounds.next {
                let records = self.log.read(Topic::Raw, partition, next, LIMIT).await?;
                let last = records.last().context("the log ends before its bounds")?.offset;
                ensure!(last >= next, "the log goes back");
                next = last + 1;
                for record in &records {
                    let accepted = codec::decode(record)
                        .map_err(|malformed| anyhow::anyhow!("{malformed:?}"))?;
                    let event = accepted.event;
                    all.push(Logged {
                        id: event.id.0,
                        device: event.device_id.0,
                        seq: event.value as i64,
                        partition,
                        logged_at_ms: record.logged_at_ms,
                        unsure: accepted.unsure.is_some(),
                    });
                }
            }
        }
        Ok(all)
    }
}

/// Counts the topic's records with a reader that is not ours.
async fn count_with_kcat(home: &Home) -> Result<Option<u64>> {
    let config = home.config();
    if home.engines == Engines::Embedded {
        return Ok(None);
    }
    let topic = format!("{}{}", config.log.namespace, Topic::Raw);
    let kcat = Command::new("kcat")
        .args(["-b", &config.log.kafka_brokers, "-C", "-t", &topic, "-e", "-q", "-f", "%o\n"])
        .output()
        .await;
    match kcat {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        output => {
            let output = output?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Ok(Some(output.stdout.iter().filter(|byte| **byte == b'\n').count() as u64))
        }
    }
}
