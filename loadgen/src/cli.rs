//! The command line and how it becomes options.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use pulsestream_loadgen::{bench, ingest, live, sends, strangers};
use uuid::Uuid;

/// Devices and dashboards as load for PulseStream.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version)]
pub(crate) struct Cli {
    /// Print the result as exactly one JSON object on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Threads; one leaves the most of a small machine to the system under test
    #[arg(long, global = true, default_value_t = 1, value_parser = count)]
    pub(crate) threads: usize,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Devices that POST events and write down what they were told
    #[command(after_help = INGEST_EXAMPLES)]
    Ingest(IngestArgs),
    /// Dashboards that hold WebSockets and check what arrives
    #[command(after_help = LIVE_EXAMPLES)]
    Live(LiveArgs),
    /// Capacity in interleaved rounds against a baseline
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(BenchArgs),
    /// What a flood of unknown keys does to the latency of good events
    #[command(after_help = STRANGERS_EXAMPLES)]
    Strangers(StrangersArgs),
    /// A bare handler that answers 202, as the baseline of `bench`
    #[command(after_help = "Example:\n  loadgen baseline --port 3999 --threads 2")]
    Baseline(BaselineArgs),
    /// One bare send() a connection and frame, as the baseline of live delivery
    #[command(
        after_help = "Example:\n  loadgen sends --port 3998 --connections 1000 --bytes 300 --rate 40 --json"
    )]
    Sends(SendsArgs),
}

const INGEST_EXAMPLES: &str = "Examples:
  loadgen ingest --url http://localhost:3000 --key-file key.txt --devices 1000 --rate 2000 --duration 60
  loadgen ingest --url http://localhost:3000 --url http://localhost:3010 --key KEY \\
      --devices 200 --connections 64 --repeats 5% --bad 2% --ledger run.jsonl --json

Without --rate each device sends as soon as it was answered. Latency is reported from the scheduled
start (a stall is charged to every event due meanwhile) and from the actual send.";

const LIVE_EXAMPLES: &str = "Examples:
  loadgen live --url http://localhost:3003 --key-file key.txt --sockets 1000 --duration 60
  loadgen live --url http://localhost:3003 --event-type temperature --record seen.jsonl \\
      --ready-file /tmp/ready --until-file /tmp/done --duration 600 --json

Latency is this machine's clock minus the event's timestamp: sender and receiver need one clock.";

const BENCH_EXAMPLES: &str = "Examples:
  loadgen bench --url http://localhost:3000 --key-file key.txt --connections 256 --pid 4711 \\
      --url-baseline http://localhost:3999 --pid-baseline 4712 --rounds 7 --duration 5 --json";

const STRANGERS_EXAMPLES: &str = "Examples:
  loadgen strangers --url http://localhost:3000 --key-file key.txt --rate 2000 --strangers 10000 \\
      --rounds 7 --duration 5 --json";

/// Where the API key comes from. Never the environment: it would show in every child process.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct KeyArgs {
    /// File with the API key; white space around it is ignored
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// API key; visible in the process list, prefer --key-file
    #[arg(long)]
    key: Option<String>,
}

impl KeyArgs {
    fn read(self) -> Result<Option<String>> {
        self.key_file.as_deref().map(read_key).transpose().map(|read| read.or(self.key))
    }

    fn read_required(self) -> Result<String> {
        self.read()?.context("give --key-file or --key")
    }
}

fn read_key(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path);
    Ok(text.with_context(|| format!("read {}", path.display()))?.trim().to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    /// Gateway; give several and devices are spread over them and move on when one refuses or cuts
    #[arg(long = "url", value_name = "URL", required = true)]
    urls: Vec<String>,
    #[command(flatten)]
    key: KeyArgs,
    /// How many devices; each has one event outstanding at a time
    #[arg(long, default_value_t = 10, value_parser = count)]
    devices: usize,
    /// Events per second on a schedule fixed in advance; absent: closed loop
    #[arg(long, value_name = "EVENTS/S")]
    rate: Option<f64>,
    /// Connections, one request in flight on each [default: 64, or fewer with fewer devices]
    #[arg(long, default_value_t = 64, value_parser = count, hide_default_value = true)]
    connections: usize,
    /// Seconds during which new events are begun
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    duration: Duration,
    /// Share of accepted events sent once more later, same key, same bytes (5% or 0.05)
    #[arg(long, value_name = "P", default_value = "0", value_parser = share)]
    repeats: f64,
    /// Share of events that are bad on purpose and must be answered 400
    #[arg(long, value_name = "P", default_value = "0", value_parser = share)]
    bad: f64,
    /// Decides device ids and what is bad or repeated [default: random, named in the report]
    #[arg(long)]
    seed: Option<u64>,
    /// Write one JSON line per event: what was sent, what was answered
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Retry what failed or was answered "later", same key, same bytes
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    retry: bool,
    /// Seconds after the duration in which outstanding events are still retried
    #[arg(long, value_name = "S", default_value = "20", value_parser = seconds)]
    grace: Duration,
    /// Seconds one attempt may take
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

impl IngestArgs {
    pub(crate) fn options(self) -> Result<ingest::Options> {
        let defaults = ingest::Options::new("", self.key.read_required()?);
        Ok(ingest::Options {
            urls: self.urls,
            devices: self.devices,
            rate: self.rate,
            connections: self.connections,
            duration: self.duration,
            repeats: self.repeats,
            bad: self.bad,
            seed: self.seed.unwrap_or(defaults.seed),
            ledger: self.ledger,
            retry: self.retry,
            grace: self.grace,
            timeout: self.timeout,
            ..defaults
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct LiveArgs {
    /// Broadcaster (http://...); give several and sockets are spread over them
    #[arg(long = "url", value_name = "URL", required = true)]
    urls: Vec<String>,
    #[command(flatten)]
    key: KeyArgs,
    /// How many sockets are held
    #[arg(long, default_value_t = 1, value_parser = count)]
    sockets: usize,
    /// Seconds
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    duration: Duration,
    /// Only this device; repeatable
    #[arg(long = "device", value_name = "UUID")]
    devices: Vec<Uuid>,
    /// Only this event type; repeatable
    #[arg(long = "event-type", value_name = "TYPE")]
    event_types: Vec<String>,
    /// Connect again when closed, cut or refused
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    reconnect: bool,
    /// Write one JSON line per received event and socket
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Create this file once every socket has been open
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Stop as soon as this file exists
    #[arg(long, value_name = "FILE")]
    until_file: Option<PathBuf>,
}

impl LiveArgs {
    pub(crate) fn options(self) -> Result<live::Options> {
        Ok(live::Options {
            key: self.key.read()?,
            urls: self.urls,
            sockets: self.sockets,
            duration: self.duration,
            devices: self.devices,
            event_types: self.event_types,
            reconnect: self.reconnect,
            record: self.record,
            ready_file: self.ready_file,
            until_file: self.until_file,
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The system under test
    #[arg(long)]
    url: String,
    /// What it is compared with, loaded in turns with it
    #[arg(long)]
    url_baseline: Option<String>,
    #[command(flatten)]
    key: KeyArgs,
    /// Process whose CPU time counts for the system under test; repeatable
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// Process whose CPU time counts for the baseline; repeatable
    #[arg(long = "pid-baseline", value_name = "PID", requires = "url_baseline")]
    pids_baseline: Vec<u32>,
    /// Connections, one request in flight on each
    #[arg(long, default_value_t = 64, value_parser = count)]
    connections: usize,
    /// Seconds of each side's turn
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    duration: Duration,
    /// Rounds; odd, so that the median is one of them
    #[arg(long, default_value_t = 7, value_parser = count)]
    rounds: usize,
    /// How many devices the events are from
    #[arg(long, default_value_t = 1_000, value_parser = count)]
    devices: usize,
    /// Events of one request; more than 1 go to /v1/events/batch
    #[arg(long, default_value_t = 1, value_parser = count)]
    batch: usize,
}

impl BenchArgs {
    pub(crate) fn options(self) -> Result<bench::Options> {
        let pids_baseline = self.pids_baseline;
        Ok(bench::Options {
            key: self.key.read_required()?,
            subject: bench::Side { url: self.url, pids: self.pids },
            baseline: self.url_baseline.map(|url| bench::Side { url, pids: pids_baseline }),
            connections: self.connections,
            duration: self.duration,
            rounds: self.rounds,
            devices: self.devices,
            batch: self.batch,
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct StrangersArgs {
    /// Gateway
    #[arg(long)]
    url: String,
    #[command(flatten)]
    key: KeyArgs,
    /// Good events per second; half of what the gateway can do shows the most
    #[arg(long, value_name = "EVENTS/S", default_value_t = 1_000.0)]
    rate: f64,
    /// Connections and devices of the good events
    #[arg(long, default_value_t = 64, value_parser = count)]
    connections: usize,
    /// Requests with unknown keys per second
    #[arg(long, value_name = "REQUESTS/S", default_value_t = 10_000.0)]
    strangers: f64,
    /// A bare handler (`loadgen baseline`) that the same strangers ask in turns of its own
    #[arg(long, value_name = "URL")]
    url_baseline: Option<String>,
    /// Seconds of each turn; a round has two, or three with a baseline
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    duration: Duration,
    /// Rounds; odd, so that the median is one of them
    #[arg(long, default_value_t = 7, value_parser = count)]
    rounds: usize,
}

impl StrangersArgs {
    pub(crate) fn options(self) -> Result<strangers::Options> {
        Ok(strangers::Options {
            key: self.key.read_required()?,
            url: self.url,
            rate: self.rate,
            connections: self.connections,
            strangers_per_s: self.strangers,
            url_baseline: self.url_baseline,
            duration: self.duration,
            rounds: self.rounds,
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct BaselineArgs {
    /// Port to listen on
    #[arg(long)]
    pub(crate) port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
}

/// It listens, waits for that many connections, sends, and tells what it took.
#[derive(Debug, Args)]
pub(crate) struct SendsArgs {
    /// Port to listen on, of loopback
    #[arg(long)]
    pub(crate) port: u16,
    /// Connections waited for
    #[arg(long, default_value_t = 1_000, value_parser = count)]
    connections: usize,
    /// Payload bytes of a frame
    #[arg(long, default_value_t = 300)]
    bytes: u16,
    /// Frames a second to each connection
    #[arg(long, value_name = "FRAMES/S", default_value_t = 40.0)]
    rate: f64,
    /// Seconds
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    duration: Duration,
}

impl SendsArgs {
    pub(crate) fn options(&self) -> sends::Options {
        let Self { connections, bytes, rate, duration, .. } = *self;
        sends::Options { connections, bytes, rate, duration }
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number above 0".to_owned()),
        Ok(count) => Ok(count),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn share(text: &str) -> Result<f64, String> {
    let (number, divisor) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let share = number.parse::<f64>().map_err(|_| "a share like 5% or 0.05".to_owned())? / divisor;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err("between 0 and 1, or 0% and 100%".to_owned())
    }
}
