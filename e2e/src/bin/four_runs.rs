//! Does the four runs of [`pulsestream_e2e::runs`] and prints a table.

use std::io::{Write as _, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use pulsestream_e2e::runs::{self, Outcome, Run, Size};
use pulsestream_e2e::verify::Rule;
use rand::RngExt as _;

/// Devices and dashboards on the whole product, undisturbed and under kill -9; then compares what was
/// acknowledged with what is stored, logged and seen. Ends with 1 when anything is wrong.
#[derive(Debug, Parser)]
#[command(
    after_help = "Needs TEST_KAFKA_BROKERS, TEST_DATABASE_URL and TEST_REDIS_URL for b and d:\n  \
    eval \"$(scripts/services up)\"; cargo run --release -p pulsestream-e2e --bin four-runs"
)]
struct Arguments {
    /// Seconds during which new events are begun
    #[arg(long, default_value_t = 60)]
    duration: u64,
    /// Events per second over all devices
    #[arg(long, default_value_t = 2_000.0)]
    rate: f64,
    /// Devices
    #[arg(long, default_value_t = 1_000)]
    devices: usize,
    /// WebSockets, each of which gets every event
    #[arg(long, default_value_t = 20)]
    sockets: usize,
    /// Seconds between two kills in runs c and d
    #[arg(long, default_value_t = 5)]
    kill_every: u64,
    /// Which runs
    #[arg(long, value_delimiter = ',', default_value = "a,b,c,d")]
    only: Vec<String>,
    /// Repeats devices, choices and victims [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Keep logs, ledgers and records here
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Print one JSON array instead of the table
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let size = Size {
        duration: Duration::from_secs(arguments.duration),
        rate: arguments.rate,
        devices: arguments.devices,
        sockets: arguments.sockets,
        partitions: 12,
        kill_every: Duration::from_secs(arguments.kill_every),
        seed: arguments.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000)),
        keep: arguments.keep,
    };
    writeln!(stderr(), "seed {}", size.seed)?;
    let mut outcomes = Vec::new();
    if !arguments.json {
        writeln!(stdout(), "{}", row(&COLUMNS.map(|(name, _)| name.to_owned())))?;
        writeln!(stdout(), "|{}", "---|".repeat(COLUMNS.len()))?;
    }
    for run in Run::ALL {
        if !arguments.only.iter().any(|letter| letter == run.letter()) {
            continue;
        }
        let outcome = runs::run(run, &size).await?;
        if !arguments.json {
            writeln!(stdout(), "{}", row(&COLUMNS.map(|(_, cell)| cell(&outcome))))?;
        }
        for fault in outcome.faults() {
            writeln!(stderr(), "{}: {fault}", run.letter())?;
        }
        outcomes.push(outcome);
    }
    if arguments.json {
        serde_json::to_writer(stdout().lock(), &outcomes)?;
        writeln!(stdout())?;
    }
    let well = outcomes.iter().all(|outcome| outcome.faults().is_empty());
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

type Column = (&'static str, fn(&Outcome) -> String);

/// The columns; docs/benchmarks.md says what each means.
const COLUMNS: [Column; 19] = [
    ("run", |o| o.run.letter().to_owned()),
    ("sent", |o| o.ingest.sent.to_string()),
    ("accepted", |o| o.ingest.accepted.to_string()),
    ("replayed", |o| o.ingest.replayed.to_string()),
    ("bad = 400", |o| format!("{} = {}", o.ingest.bad, o.ingest.bad_answered_400)),
    ("503", |o| o.ingest.answers_by_status.get(&503).copied().unwrap_or_default().to_string()),
    ("retries", |o| o.ingest.retries.to_string()),
    ("unsettled", |o| o.verdict.unsettled.to_string()),
    ("stored", |o| o.verdict.stored.to_string()),
    ("log records", |o| o.verdict.logged.to_string()),
    ("missing", |o| o.verdict.count(&MISSING).to_string()),
    ("twice", |o| o.verdict.count(&[Rule::StoredTwice]).to_string()),
    ("order", |o| o.verdict.count(&[Rule::StoreOrder, Rule::LogOrder]).to_string()),
    ("frames", |o| o.live.frames.to_string()),
    ("socket faults", |o| o.verdict.count(&SOCKETS).to_string()),
    ("other faults", |o| {
        let known =
            [&MISSING[..], &SOCKETS, &[Rule::StoredTwice, Rule::StoreOrder, Rule::LogOrder]];
        let all: u64 = o.verdict.faults.values().map(|breaches| breaches.count).sum();
        (all - o.verdict.count(&known.concat())).to_string()
    }),
    ("p50 / p99 ms", |o| {
        let latency = &o.ingest.latency_ms.intended;
        format!("{:.1} / {:.1}", latency.p50, latency.p99)
    }),
    ("kills", |o| o.killed.len().to_string()),
    ("seed", |o| o.seed.to_string()),
];

const MISSING: [Rule; 2] = [Rule::NotStored, Rule::NotLogged];

const SOCKETS: [Rule; 5] = [
    Rule::SocketTwice,
    Rule::SocketOrder,
    Rule::SocketHole,
    Rule::SocketMissing,
    Rule::SocketForeign,
];
