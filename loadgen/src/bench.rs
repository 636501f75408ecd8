//! Capacity in a closed loop, as a ratio: `loadgen bench`.
//!
//! One thread, one request in flight per connection, request bytes built once and patched in place. On a
//! small machine absolute numbers drift with whatever else runs, so the system under test and a baseline
//! are loaded in turns within one run, the ratio is taken per round, and the median of the ratios is the
//! result. CPU per request comes from the servers' own `/proc` entries, so what this program burns does
//! not count. Latency here is from the actual send: a closed loop has no schedule to be late against.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use crate::clock::unix_ms;
use crate::http::{Line, Origin};
use crate::latency::{Latency, Percentiles};
use crate::process::cpu_time;

/// How long before the first round each side is loaded without being measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// A request still out this long after its round is dropped with its connection.
const STRAGGLER: Duration = Duration::from_secs(5);

/// One measurement.
#[derive(Debug, Clone)]
pub struct Options {
    /// The system under test.
    pub subject: Side,
    /// What it is compared with.
    pub baseline: Option<Side>,
    /// API key, sent to both.
    pub key: String,
    /// Connections, each with one request in flight.
    pub connections: usize,
    /// Length of each side's turn in a round.
    pub duration: Duration,
    /// How many rounds.
    pub rounds: usize,
    /// How many different devices the events are from.
    pub devices: usize,
    /// Events of one request: 1 goes to `/v1/events`, more to `/v1/events/batch`.
    pub batch: usize,
}

/// One server and the processes that work for it.
#[derive(Debug, Clone)]
pub struct Side {
    /// `http://host:port`; events go to `/v1/events` under it.
    pub url: String,
    /// Processes whose CPU time is divided by the requests answered: gateway, broker, cache.
    pub pids: Vec<u32>,
}

/// The medians and the rounds they are of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Connections used.
    pub connections: usize,
    /// Events of one request.
    pub batch: usize,
    /// Median requests answered per second.
    pub req_per_s: f64,
    /// Median CPU microseconds per request, over all named processes.
    pub cpu_us_per_request: f64,
    /// The same two of the baseline, and the medians of the per-round ratios subject / baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Comparison>,
    /// Every round in order.
    pub rounds: Vec<Round>,
}

/// The baseline's medians and the ratios to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Median requests answered per second.
    pub req_per_s: f64,
    /// Median CPU microseconds per request.
    pub cpu_us_per_request: f64,
    /// Median of the per-round ratios of requests per second.
    pub req_ratio: f64,
    /// Median of the per-round ratios of CPU per request; absent without process ids on both sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<f64>,
}

/// One round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// The system under test.
    pub subject: Turn,
    /// The baseline, right after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Turn>,
}

/// One side's turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Requests answered, whatever the status.
    pub answered: u64,
    /// The same per second.
    pub req_per_s: f64,
    /// Answers by status: a capacity is only worth something if these are what it should answer.
    pub by_status: BTreeMap<u16, u64>,
    /// Requests that ended with a broken or refused connection.
    pub errors: u64,
    /// From the send to the answer.
    pub latency_ms: Percentiles,
    /// CPU microseconds per answered request by process id.
    pub cpu_us_per_request: BTreeMap<u32, f64>,
    /// CPU microseconds per answered request that this program burnt itself: near 1,000,000 / `req_per_s`
    /// its one thread is the limit and the server could do more.
    pub own_cpu_us_per_request: f64,
}

impl Turn {
    fn cpu_us(&self) -> f64 {
        self.cpu_us_per_request.values().sum()
    }
}

/// Runs all rounds: subject, baseline, subject, baseline ...
///
/// # Errors
/// Options that make no sense, a process whose CPU time cannot be read, or a side that answers nothing.
pub async fn run(options: Options) -> Result<Report> {
    ensure!(options.connections > 0 && options.rounds > 0 && options.devices > 0, "nothing to do");
    for side in std::iter::once(&options.subject).chain(&options.baseline) {
        let warm = turn(&options, side, WARM_UP).await?;
        ensure!(warm.answered > 0, "{} answers nothing", side.url);
    }
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        let subject = turn(&options, &options.subject, options.duration).await?;
        let baseline = match &options.baseline {
            Some(side) => Some(turn(&options, side, options.duration).await?),
            None => None,
        };
        rounds.push(Round { subject, baseline });
    }
    Ok(summarise(&options, rounds))
}

fn summarise(options: &Options, rounds: Vec<Round>) -> Report {
    let of = |value: &dyn Fn(&Round) -> Option<f64>| median(rounds.iter().filter_map(value));
    let baseline = rounds.iter().any(|round| round.baseline.is_some()).then(|| Comparison {
        req_per_s: of(&|round| Some(round.baseline.as_ref()?.req_per_s)).unwrap_or_default(),
        cpu_us_per_request: of(&|round| Some(round.baseline.as_ref()?.cpu_us()))
            .unwrap_or_default(),
        req_ratio: of(&|round| Some(round.subject.req_per_s / round.baseline.as_ref()?.req_per_s))
            .unwrap_or_default(),
        cpu_ratio: of(&|round| {
            let (ours, theirs) = (round.subject.cpu_us(), round.baseline.as_ref()?.cpu_us());
            (ours > 0.0 && theirs > 0.0).then(|| ours / theirs)
        }),
    });
    Report {
        connections: options.connections,
        batch: options.batch,
        req_per_s: of(&|round| Some(round.subject.req_per_s)).unwrap_or_default(),
        cpu_us_per_request: of(&|round| Some(round.subject.cpu_us())).unwrap_or_default(),
        baseline,
        rounds,
    }
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some(f64::midpoint(values[low], values[high]))
}

async fn turn(options: &Options, side: &Side, duration: Duration) -> Result<Turn> {
    let origin = Origin::parse(&side.url)?;
    let devices: Arc<[Uuid]> = crate::ingest::device_ids(0, options.devices).into();
    let template = Template::new(&origin, &options.key, options.batch);
    let count = Arc::new(Mutex::new(Count::default()));
    let before = cpu_times(&side.pids)?;
    let own_before = cpu_time(std::process::id())?;
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..options.connections {
        let worker = Worker {
            line: Line::to(origin.clone()),
            template: template.clone(),
            devices: Arc::clone(&devices),
            count: Arc::clone(&count),
            rng: StdRng::from_rng(&mut rand::rng()),
        };
        workers.spawn(worker.run(start + duration));
    }
    while let Some(ended) = workers.join_next().await {
        ended.context("a worker panicked")?;
    }
    let took = start.elapsed();
    let after = cpu_times(&side.pids)?;
    let own = cpu_time(std::process::id())?.saturating_sub(own_before);
    let count = std::mem::take(&mut *count.lock().unwrap_or_else(PoisonError::into_inner));
    let answered: u64 = count.by_status.values().sum();
    let per_request = |cpu: Duration| cpu.as_secs_f64() * 1e6 / answered.max(1) as f64;
    let spent = before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before));
    let cpu = side.pids.iter().copied().zip(spent.map(per_request));
    Ok(Turn {
        answered,
        req_per_s: answered as f64 / took.as_secs_f64(),
        errors: count.errors,
        latency_ms: count.latency.percentiles(),
        cpu_us_per_request: cpu.collect(),
        own_cpu_us_per_request: per_request(own),
        by_status: count.by_status,
    })
}

fn cpu_times(pids: &[u32]) -> Result<Vec<Duration>> {
    pids.iter().map(|&pid| cpu_time(pid)).collect()
}

#[derive(Debug, Default)]
struct Count {
    by_status: BTreeMap<u16, u64>,
    errors: u64,
    latency: Latency,
}

/// One connection.
struct Worker {
    line: Line,
    template: Template,
    devices: Arc<[Uuid]>,
    count: Arc<Mutex<Count>>,
    rng: StdRng,
}

impl Worker {
    async fn run(mut self, end: Instant) {
        while Instant::now() < end {
            let began = Instant::now();
            let limit = end + STRAGGLER;
            let done = timeout_at(limit, self.once()).await;
            if let Ok(Ok(status)) = done {
                let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
                *count.by_status.entry(status).or_default() += 1;
                count.latency.record(began.elapsed());
            } else {
                self.count.lock().unwrap_or_else(PoisonError::into_inner).errors += 1;
                // A server that is gone is not hammered.
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    async fn once(&mut self) -> std::io::Result<u16> {
        let key = uuid::Builder::from_random_bytes(self.rng.random()).into_uuid();
        let devices = &self.devices;
        let device = || devices[self.rng.random_range(0..devices.len())];
        self.template.patch(key, device, unix_ms());
        Ok(self.line.exchange(&self.template.bytes).await?.status)
    }
}

/// A whole request whose key, devices and timestamps are overwritten in place.
#[derive(Debug, Clone)]
struct Template {
    bytes: Vec<u8>,
    key: Range<usize>,
    events: Vec<EventPlaces>,
}

#[derive(Debug, Clone)]
struct EventPlaces {
    device: Range<usize>,
    timestamp: Range<usize>,
}

impl Template {
    fn new(origin: &Origin, api_key: &str, batch: usize) -> Self {
        const UUID: &str = "00000000-0000-4000-8000-000000000000";
        const MILLIS: &str = "1700000000000";
        const BEFORE_DEVICE: &str = r#"{"deviceId":""#;
        const BEFORE_TIMESTAMP: &str = r#"","eventType":"temperature","value":21.5,"timestamp":"#;
        let event = [BEFORE_DEVICE, UUID, BEFORE_TIMESTAMP, MILLIS, "}"].concat();
        let (path, body) = match batch {
            1 => ("/v1/events", event.clone()),
            _ => ("/v1/events/batch", format!("[{}]", vec![event.as_str(); batch].join(","))),
        };
        let head = format!(
            "POST {}{path} HTTP/1.1\r\nhost: {}\r\nx-api-key: {api_key}\r\n\
             content-type: application/json\r\nidempotency-key: ",
            origin.path, origin.authority
        );
        let length = format!("\r\ncontent-length: {}\r\n\r\n", body.len());
        let body_start = head.len() + UUID.len() + length.len() + usize::from(batch > 1);
        let events = (0..batch).map(|index| {
            let device = body_start + index * (event.len() + 1) + BEFORE_DEVICE.len();
            let timestamp = device + UUID.len() + BEFORE_TIMESTAMP.len();
            EventPlaces {
                device: device..device + UUID.len(),
                timestamp: timestamp..timestamp + MILLIS.len(),
            }
        });
        let key = head.len()..head.len() + UUID.len();
        let events = events.collect();
        Self { bytes: [head.as_str(), UUID, &length, &body].concat().into_bytes(), key, events }
    }

    fn patch(&mut self, key: Uuid, mut device: impl FnMut() -> Uuid, now_ms: u64) {
        key.hyphenated().encode_lower(&mut self.bytes[self.key.clone()]);
        let now = format!("{now_ms:013}");
        for places in &self.events {
            device().hyphenated().encode_lower(&mut self.bytes[places.device.clone()]);
            self.bytes[places.timestamp.clone()].copy_from_slice(now.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patched_request_says_its_true_length_and_carries_what_was_patched_in() {
        let origin = Origin::parse("http://127.0.0.1:3000").unwrap();
        for batch in [1, 2, 10] {
            let mut template = Template::new(&origin, "secret", batch);
            let key = Uuid::from_u128(5);
            let mut next = 5;
            let device = || {
                next += 1;
                Uuid::from_u128(next)
            };
            template.patch(key, device, 1_700_000_000_123);
            let text = String::from_utf8(template.bytes).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("idempotency-key: {key}\r\n")));
            assert!(head.ends_with(&format!("content-length: {}", body.len())));
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            let events = body.as_array().cloned().unwrap_or_else(|| vec![body]);
            assert_eq!(events.len(), batch);
            for (event, device) in events.iter().zip(6..) {
                assert_eq!(event["deviceId"], Uuid::from_u128(device).to_string());
                assert_eq!(event["timestamp"], 1_700_000_000_123_u64);
            }
        }
    }

    #[test]
    fn the_median_of_an_even_number_is_the_middle_of_the_two_in_the_middle() {
        assert_eq!(median([4.0, 1.0, 2.0, 8.0].into_iter()), Some(3.0));
        assert_eq!(median([4.0, 1.0, 8.0].into_iter()), Some(4.0));
        assert_eq!(median(std::iter::empty()), None);
    }
}
