//! What a flood of unknown keys costs those who have one: `loadgen strangers`.
//!
//! Good events are sent on a schedule, in turns alone and beside requests whose API keys were never made,
//! each another one; a round's result is the ratio of the two 99th percentiles, and the median of the
//! ratios is the run's. A flood costs something wherever it goes, as it shares the machine: a third turn beside the
//! same flood on a handler that does nothing tells how much of the ratio that is. Latency is from the actual send: one program makes both loads, and what it is late
//! by itself is not the server's. A stranger that is answered late asks later and is counted as late, so
//! that a slow server is not shown a smaller flood unseen.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout_at};
use uuid::Uuid;

use crate::bench::median;
use crate::http::{Line, Origin};
use crate::ingest;
use crate::latency::Percentiles;

/// Connections the strangers share.
const CONNECTIONS: usize = 64;
/// How long good events flow before the first round.
const WARM_UP: Duration = Duration::from_secs(1);
/// A stranger that is not answered this long after its turn is given up.
const STRAGGLER: Duration = Duration::from_secs(5);

/// One measurement.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://host:port` of a gateway.
    pub url: String,
    /// A key that works.
    pub key: String,
    /// Good events per second.
    pub rate: f64,
    /// Connections and devices of the good events.
    pub connections: usize,
    /// Requests with unknown keys per second.
    pub strangers_per_s: f64,
    /// `http://host:port` of a handler that does nothing, to be flooded in turns of its own.
    pub url_baseline: Option<String>,
    /// Length of each turn; a round has two, or three with a baseline.
    pub duration: Duration,
    /// How many rounds.
    pub rounds: usize,
}

/// The medians and the rounds they are of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Median of the 99th percentiles of good events alone, milliseconds.
    pub p99_alone_ms: f64,
    /// The same beside strangers.
    pub p99_beside_ms: f64,
    /// Median of the per-round ratios beside / alone.
    pub p99_ratio: f64,
    /// The same for strangers at the baseline.
    pub p99_ratio_baseline: Option<f64>,
    /// Every round in order.
    pub rounds: Vec<Round>,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Good events with the gateway to themselves.
    pub alone: Turn,
    /// Good events beside the strangers.
    pub beside: Turn,
    /// Good events while the strangers were at the baseline.
    pub beside_baseline: Option<Turn>,
    /// The strangers.
    pub strangers: Strangers,
}

/// Good events of one turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
    /// From the send to the answer.
    pub latency_ms: Percentiles,
}

/// Requests with unknown keys of one turn.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Strangers {
    /// Answers by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Requests that ended with a broken connection, or never.
    pub errors: u64,
    /// Requests that the schedule wanted and that were left out, because the one before was late.
    pub late: u64,
}

/// Runs all rounds.
///
/// # Errors
/// Options that make no sense, or good events that are not accepted.
pub async fn run(options: Options) -> Result<Report> {
    let gateway = Origin::parse(&options.url)?;
    let baseline = options.url_baseline.as_deref().map(Origin::parse).transpose()?;
    ensure!(options.rounds > 0 && options.strangers_per_s > 0.0, "nothing to do");
    let warm = good(&options, WARM_UP).await?;
    ensure!(warm.by_status.contains_key(&202), "good events are answered {:?}", warm.by_status);
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        let alone = good(&options, options.duration).await?;
        let (beside, strangers) = beside_flood(&options, &gateway).await?;
        let beside_baseline = match &baseline {
            Some(baseline) => Some(beside_flood(&options, baseline).await?.0),
            None => None,
        };
        rounds.push(Round { alone, beside, beside_baseline, strangers });
    }
    let of = |value: fn(&Round) -> Option<f64>| median(rounds.iter().filter_map(value));
    Ok(Report {
        p99_alone_ms: of(|round| Some(round.alone.p99())).unwrap_or_default(),
        p99_beside_ms: of(|round| Some(round.beside.p99())).unwrap_or_default(),
        p99_ratio: of(|round| Some(round.beside.p99() / round.alone.p99())).unwrap_or_default(),
        p99_ratio_baseline: of(|round| {
            Some(round.beside_baseline.as_ref()?.p99() / round.alone.p99())
        }),
        rounds,
    })
}

impl Turn {
    fn p99(&self) -> f64 {
        self.latency_ms.p99
    }
}

async fn beside_flood(options: &Options, flooded: &Origin) -> Result<(Turn, Strangers)> {
    let (beside, strangers) =
        tokio::join!(good(options, options.duration), flood(flooded, options));
    Ok((beside?, strangers?))
}

async fn good(options: &Options, duration: Duration) -> Result<Turn> {
    let report = ingest::run(ingest::Options {
        rate: Some(options.rate),
        devices: options.connections,
        connections: options.connections,
        duration,
        ..ingest::Options::new(&options.url, &options.key)
    });
    let report = report.await?;
    let latency_ms = report.latency_ms.actual;
    Ok(Turn { by_status: report.answers_by_status, latency_ms })
}

async fn flood(origin: &Origin, options: &Options) -> Result<Strangers> {
    let period = Duration::try_from_secs_f64(CONNECTIONS as f64 / options.strangers_per_s)?;
    let start = Instant::now();
    let mut asking = JoinSet::new();
    for number in 0..CONNECTIONS {
        let first = start + period.mul_f64(number as f64 / CONNECTIONS as f64);
        let stranger = Stranger { line: Line::to(origin.clone()), request: Request::new(origin) };
        asking.spawn(stranger.run(first, period, start + options.duration));
    }
    let mut all = Strangers::default();
    while let Some(asked) = asking.join_next().await {
        let asked = asked.context("a stranger panicked")?;
        all.errors += asked.errors;
        all.late += asked.late;
        for (status, count) in asked.by_status {
            *all.by_status.entry(status).or_default() += count;
        }
    }
    Ok(all)
}

/// One connection.
struct Stranger {
    line: Line,
    request: Request,
}

impl Stranger {
    async fn run(mut self, first: Instant, period: Duration, end: Instant) -> Strangers {
        let mut asked = Strangers::default();
        let mut ticks = interval_at(first, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut wanted = 0;
        loop {
            let due = ticks.tick().await;
            if due >= end {
                return asked;
            }
            let turn = (due - first).div_duration_f64(period).round() as u64;
            asked.late += turn.saturating_sub(wanted);
            wanted = turn + 1;
            match timeout_at(end + STRAGGLER, self.ask()).await {
                Ok(Ok(status)) => *asked.by_status.entry(status).or_default() += 1,
                Ok(Err(_)) | Err(_) => asked.errors += 1,
            }
        }
    }

    async fn ask(&mut self) -> std::io::Result<u16> {
        self.request.take_another_key();
        Ok(self.line.exchange(&self.request.bytes).await?.status)
    }
}

/// A whole request whose API key is overwritten in place.
struct Request {
    bytes: Vec<u8>,
    key: Range<usize>,
}

impl Request {
    fn new(origin: &Origin) -> Self {
        let head = format!(
            "POST {}/v1/events HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             idempotency-key: {}\r\ncontent-length: 2\r\nx-api-key: ps_live_",
            origin.path,
            origin.authority,
            Uuid::new_v4()
        );
        let key = head.len()..head.len() + uuid::fmt::Simple::LENGTH;
        let digits = "0".repeat(uuid::fmt::Simple::LENGTH);
        Self { bytes: format!("{head}{digits}\r\n\r\n{{}}").into_bytes(), key }
    }

    fn take_another_key(&mut self) {
        let key = Uuid::new_v4();
        key.simple().encode_lower(&mut self.bytes[self.key.clone()]);
    }
}
