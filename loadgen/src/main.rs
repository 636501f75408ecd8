//! The `loadgen` command: parses, runs, prints.

mod cli;

use std::future::Future;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use pulsestream_loadgen::control::Control;
use pulsestream_loadgen::{baseline, bench, ingest, live, sends, strangers};
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpListener;

use cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As clap's own usage errors.
const USAGE: u8 = 2;
/// Nothing could be sent, or nobody could be connected to.
const NOTHING_DONE: u8 = 1;

fn main() -> ExitCode {
    match start(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Nowhere is left to report that standard error is closed.
            let _lost = writeln!(io::stderr(), "error: {error:#}").is_err();
            ExitCode::from(USAGE)
        }
    }
}

fn start(cli: Cli) -> Result<ExitCode> {
    // One thread by default: the machine is shared with the system under test.
    let runtime = match cli.threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => {
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
        }
    };
    runtime.context("start the runtime")?.block_on(run(cli))
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let control = Arc::new(Control::default());
    let done = match cli.command {
        Command::Ingest(args) => {
            let run = ingest::run_controlled(args.options()?, Arc::clone(&control));
            let report = watch(&control, "accepted", run).await?;
            print(&report, cli.json)?;
            report.sent > 0
        }
        Command::Live(args) => {
            let run = live::run_controlled(args.options()?, Arc::clone(&control));
            let report = watch(&control, "frames", run).await?;
            print(&report, cli.json)?;
            report.connections > 0
        }
        Command::Bench(args) => {
            print(&bench::run(args.options()?).await?, cli.json)?;
            true
        }
        Command::Strangers(args) => {
            print(&strangers::run(args.options()?).await?, cli.json)?;
            true
        }
        Command::Baseline(args) => {
            let listener = TcpListener::bind((args.host, args.port)).await.context("listen")?;
            tokio::select! {
                served = baseline::serve(listener) => served.context("serve")?,
                signal = tokio::signal::ctrl_c() => signal.context("wait for the signal")?,
            }
            true
        }
        Command::Sends(args) => {
            let address = ("127.0.0.1", args.port);
            let listener = std::net::TcpListener::bind(address).context("listen")?;
            print(&sends::run(&listener, args.options())?, cli.json)?;
            true
        }
    };
    Ok(ExitCode::from(if done { 0 } else { NOTHING_DONE }))
}

/// Shows the run's counters on a terminal and turns the first interrupt into an early end; the report of
/// what was done until then is still printed. A second interrupt ends the process without one.
async fn watch<T>(
    control: &Control,
    counted: &str,
    run: impl Future<Output = Result<T>>,
) -> Result<T> {
    // Hidden by the library when standard error is not a terminal.
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    tokio::pin!(run);
    let mut interrupted = false;
    loop {
        tokio::select! {
            result = &mut run => {
                bar.finish_and_clear();
                return result;
            }
            signal = tokio::signal::ctrl_c() => {
                signal.context("wait for the signal")?;
                anyhow::ensure!(!interrupted, "interrupted twice, no report");
                interrupted = true;
                control.stop();
            }
            _ = tick.tick() => bar.set_message(format!(
                "{} {counted}, {} problems", control.done(), control.problems()
            )),
        }
    }
}

/// One JSON object on one line, or the same content as indented lines for people.
fn print(report: &impl Serialize, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, report)?;
        writeln!(out)?;
    } else {
        let mut text = String::new();
        describe(&serde_json::to_value(report)?, 0, &mut text);
        out.write_all(text.as_bytes())?;
    }
    out.flush().context("write the report")
}

/// Appends `name: value` lines; what is empty is left out.
fn describe(value: &Value, depth: usize, out: &mut String) {
    let named: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, item)| ((index + 1).to_string(), item)).collect()
        }
        _ => return,
    };
    let indent = "  ".repeat(depth);
    for (name, value) in named {
        match value {
            Value::Object(fields) if fields.is_empty() => {}
            Value::Array(items) if items.is_empty() => {}
            Value::Object(_) | Value::Array(_) => {
                out.push_str(&format!("{indent}{name}:\n"));
                describe(value, depth + 1, out);
            }
            Value::Number(number) if number.is_f64() => {
                out.push_str(&format!("{indent}{name}: {:.3}\n", number.as_f64().unwrap_or(0.0)));
            }
            simple => out.push_str(&format!("{indent}{name}: {simple}\n")),
        }
    }
}
