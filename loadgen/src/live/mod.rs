//! Dashboards that hold WebSockets: `loadgen live`.
//!
//! Each socket speaks the plain contract of `GET /v1/stream`: every text frame is one event's JSON. What
//! arrives is checked against what [`ingest`](crate::ingest) promises about its events: the id names one
//! event, and `value` is the device's sequence number. Events from other sources spoil the order and hole
//! counters, not the repeat counter.
//!
//! Latency is this machine's clock minus the event's `timestamp`: it means something only when sender
//! and receiver share one clock, and it includes the way to the gateway.
//!
//! Deliberately absent: the framed contract (cursors, gaps). [`frame`] is the one place that knows what a
//! text frame holds.

mod check;
mod frame;
mod report;
mod socket;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use url::Url;
use uuid::Uuid;

use crate::control::Control;
use crate::http::Origin;
use crate::jsonl::JsonLines;

use check::Interner;
use report::Tally;
pub use report::{Repeats, Report};
use socket::Socket;

/// How many handshakes run at once: thousands of sockets must not time each other out while opening.
const HANDSHAKES: usize = 64;

/// One run of dashboards.
#[derive(Debug, Clone)]
pub struct Options {
    /// Broadcasters, `http://host:port`. At least one; sockets are dealt to them.
    pub urls: Vec<String>,
    /// API key, sent as `x-api-key` when given.
    pub key: Option<String>,
    /// How many sockets are held.
    pub sockets: usize,
    /// How long.
    pub duration: Duration,
    /// Only these devices; empty: all.
    pub devices: Vec<Uuid>,
    /// Only these event types; empty: all.
    pub event_types: Vec<String>,
    /// Connect again when closed, cut or refused.
    pub reconnect: bool,
    /// Where to write a [`Received`] line per event and socket.
    pub record: Option<PathBuf>,
    /// Created empty once every socket has been open.
    pub ready_file: Option<PathBuf>,
    /// Stop as soon as this file exists.
    pub until_file: Option<PathBuf>,
}

impl Options {
    /// One socket for ten seconds, everything the key may see, reconnecting.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            key: None,
            sockets: 1,
            duration: Duration::from_secs(10),
            devices: Vec::new(),
            event_types: Vec::new(),
            reconnect: true,
            record: None,
            ready_file: None,
            until_file: None,
        }
    }
}

/// One line of the record: this event came on this connection of this socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Received {
    /// Socket number from 0.
    pub socket: usize,
    /// Which connection of the socket, from 1.
    pub connection: u64,
    /// Event id.
    pub id: Uuid,
    /// Device id.
    pub device: Uuid,
    /// The event's value, the device's sequence number for events of this program.
    pub seq: i64,
    /// When it was read, unix ms.
    pub at: u64,
}

/// What all sockets of a run share.
#[derive(Debug)]
struct Plan {
    options: Options,
    targets: Vec<Target>,
    control: Arc<Control>,
    record: Option<Arc<JsonLines>>,
    tally: Mutex<Tally>,
    interner: Mutex<Interner>,
    handshakes: Semaphore,
    start: Instant,
}

impl Plan {
    /// Held for a few additions, never across an await.
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held for one look-up, never across an await.
    fn interner(&self) -> MutexGuard<'_, Interner> {
        self.interner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One broadcaster: where to connect and which URL to ask for.
#[derive(Debug)]
struct Target {
    origin: Origin,
    url: String,
}

impl Target {
    fn new(text: &str, options: &Options) -> Result<Self> {
        let origin = Origin::parse(text)?;
        let mut url = Url::parse(&format!("ws://{}{}/v1/stream", origin.authority, origin.path))?;
        for device in &options.devices {
            url.query_pairs_mut().append_pair("deviceId", &device.to_string());
        }
        for event_type in &options.event_types {
            url.query_pairs_mut().append_pair("eventType", event_type);
        }
        Ok(Self { origin, url: url.into() })
    }
}

/// Holds the sockets until the duration is over or the file to wait for exists.
///
/// # Errors
/// Options that make no sense, or a file that cannot be written. Whatever the servers do is not an error
/// but part of the report.
pub async fn run(options: Options) -> Result<Report> {
    run_controlled(options, Arc::default()).await
}

/// [`run`] that can be watched and stopped early. Dropping the future cuts every socket.
///
/// # Errors
/// As [`run`].
pub async fn run_controlled(options: Options, control: Arc<Control>) -> Result<Report> {
    ensure!(!options.urls.is_empty() && options.sockets > 0, "no URL or no socket");
    let targets = options.urls.iter().map(|url| Target::new(url, &options));
    let targets = targets.collect::<Result<Vec<_>>>()?;
    let record = options.record.as_deref().map(JsonLines::create).transpose();
    let record = record.context("create the record")?.map(Arc::new);
    let plan = Arc::new(Plan {
        targets,
        record: record.clone(),
        control: Arc::clone(&control),
        tally: Mutex::default(),
        interner: Mutex::default(),
        handshakes: Semaphore::new(HANDSHAKES),
        start: Instant::now(),
        options,
    });
    let mut sockets = JoinSet::new();
    for number in 0..plan.options.sockets {
        sockets.spawn(Socket::new(Arc::clone(&plan), number).run());
    }
    watch_until_end(&plan, &mut sockets).await?;
    let open_at_end = control.open();
    control.stop();
    while let Some(ended) = sockets.join_next().await {
        ended.context("a socket's task panicked")?;
    }
    record.map_or(Ok(()), |record| record.finish()).context("write the record")?;
    Ok(Tally::report(&plan, open_at_end))
}

/// Returns when the run is over: time is up, it was stopped, its file appeared, or no socket is left.
async fn watch_until_end(plan: &Plan, sockets: &mut JoinSet<()>) -> Result<()> {
    let over = sleep(plan.options.duration);
    tokio::pin!(over);
    let mut tick = interval(Duration::from_millis(100));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ready_file = plan.options.ready_file.as_deref();
    loop {
        // No arm loses anything when another one wins.
        tokio::select! {
            () = &mut over => return Ok(()),
            () = plan.control.stopped() => return Ok(()),
            ended = sockets.join_next() => match ended {
                Some(ended) => ended.context("a socket's task panicked")?,
                None => return Ok(()),
            },
            _ = tick.tick() => {
                if let Some(record) = &plan.record {
                    record.flush();
                }
                if plan.tally().ready.is_some() && let Some(path) = ready_file.take() {
                    tokio::fs::write(path, b"").await.context("write the ready file")?;
                }
                if exists(plan.options.until_file.as_deref()).await? {
                    return Ok(());
                }
            }
        }
    }
}

async fn exists(path: Option<&Path>) -> Result<bool> {
    match path {
        Some(path) => tokio::fs::try_exists(path).await.context("look for the file to stop at"),
        None => Ok(false),
    }
}
