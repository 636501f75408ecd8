//! Kills consumers at random points under load, and prints what [`pulsestream_e2e::consumers`] found.

use std::io::{Write as _, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use pulsestream_e2e::consumers::{Act, Size, run};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Consumers under load, killed at random points and started again; then compares what was appended with what is
/// stored. Ends with 1 when anything is wrong.
#[derive(Debug, Parser)]
#[command(after_help = "Needs TEST_KAFKA_BROKERS, TEST_DATABASE_URL and TEST_REDIS_URL:\n  \
    eval \"$(scripts/services up)\"; cargo run --release -p pulsestream-e2e --bin consumer-runs")]
struct Arguments {
    /// Kills
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Seconds between two kills at most; the least is a twentieth of it
    #[arg(long, default_value_t = 6.0)]
    apart: f64,
    /// Records per second
    #[arg(long, default_value_t = 5_000)]
    rate: usize,
    /// Consumers
    #[arg(long, default_value_t = 3)]
    consumers: usize,
    /// Partitions
    #[arg(long, default_value_t = 12)]
    partitions: u32,
    /// Repeats records, times and victims [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the consumers' logs here
    #[arg(long)]
    keep: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    writeln!(stderr(), "seed {seed}")?;
    let size = Size {
        rate: arguments.rate,
        partitions: arguments.partitions,
        devices: 1_000,
        consumers: arguments.consumers,
        repeats: 0.02,
        poison: 0.0005,
        protocol: "eager",
        named: false,
        seed,
    };
    let mut chance = StdRng::seed_from_u64(seed);
    let mut at = 0.0;
    let mut acts = Vec::new();
    for _ in 0..arguments.kills {
        at += chance.random_range(arguments.apart / 20.0..arguments.apart);
        acts.push((Duration::from_secs_f64(at), Act::Restart));
    }
    let scratch = tempfile::tempdir()?;
    let folder = arguments.keep.as_deref().unwrap_or(scratch.path());
    std::fs::create_dir_all(folder)?;
    let outcome = run(&size, Duration::from_secs_f64(at + 5.0), &acts, folder).await?;
    serde_json::to_writer_pretty(stdout().lock(), &outcome)?;
    writeln!(stdout())?;
    for fault in outcome.faults() {
        writeln!(stderr(), "{fault}")?;
    }
    Ok(if outcome.faults().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
