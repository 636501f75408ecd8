//! How many events a key and a device may send: decided in process, before the lock, without I/O.
//!
//! The cost is the number of events, so a batch asks for all of its own at once; all pass or none does.
//! Asked after the body was read and before the key is locked: a bad body costs nothing, and a retry
//! costs again, because only the lock knows that it is one.
//!
//! A key's limit is one for all gateways (`report`): each decides by what it was last told that all
//! together owe plus what it let through since, and tells the cache every `limits.report_interval`.
//! Nobody waits for that, and what went over the limit meanwhile is owed and waited off, so that the sum
//! keeps the rate. A device's limit is each gateway's own: a device talks to one at a time.
//!
//! Not here: requests and bytes in flight, which protect this process and not the tenants from each
//! other (`router`, `budget`).

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use pulsestream_shared::bucket::Rate;
use pulsestream_shared::cache::Cache;
use pulsestream_shared::config;
use pulsestream_shared::event::{ClientId, DeviceId};
use pulsestream_shared::metrics::Metrics;
use pulsestream_shared::store::KeyRecord;
use tokio::sync::mpsc;
use tokio::time::Instant;

mod answer;
mod report;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use answer::TOLD;
pub(crate) use report::Reports;
use table::Table;

/// Keys that may wait to be told to the cache; what a further one let through stays untold.
const REPORT_QUEUE: usize = 16_384;

/// Whose limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Key,
    Device,
}

/// What a limited key has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quota {
    rate: Rate,
    left: u32,
}

/// Why events do not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    whose: Whose,
    rate: Rate,
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// They would pass after this time.
    TooSoon(Duration),
    /// So many never pass at once.
    TooMany,
}

/// The limits of one gateway.
pub(crate) struct Limits {
    origin: Instant,
    /// Of a key that has none of its own; `None` is unlimited.
    key_rate: Option<Rate>,
    device_rate: Option<Rate>,
    keys: Arc<Table<String>>,
    devices: Table<(ClientId, DeviceId)>,
    reports: mpsc::Sender<String>,
    key_counts: Counts,
    device_counts: Counts,
    unreported: IntCounter,
}

/// Decisions about one kind of limit.
struct Counts {
    allowed: IntCounter,
    refused: IntCounter,
    untracked: IntCounter,
}

impl Limits {
    /// Limits, and what tells the cache of them: to be run beside.
    pub(crate) fn new(
        config: &config::Limits,
        cache: Arc<dyn Cache>,
        metrics: &Metrics<'_>,
    ) -> (Self, Reports) {
        let decisions = metrics.counters(
            "limit_decisions_total",
            "Requests a limit let through, refused, or had no room to remember.",
            &["scope", "result"],
        );
        let counts = |scope| Counts {
            allowed: decisions.with_label_values(&[scope, "allowed"]),
            refused: decisions.with_label_values(&[scope, "refused"]),
            untracked: decisions.with_label_values(&[scope, "untracked"]),
        };
        let unreported = metrics.counter(
            "limit_events_unreported_total",
            "Events of limited keys that other gateways were not told of: each went by its own count.",
        );
        let (reports, queue) = mpsc::channel(REPORT_QUEUE);
        let limits = Self {
            origin: Instant::now(),
            key_rate: Rate::new(config.key_rate, Some(config.key_burst)),
            device_rate: Rate::new(config.device_rate, Some(config.device_burst)),
            keys: Arc::new(Table::new()),
            devices: Table::new(),
            reports,
            key_counts: counts("key"),
            device_counts: counts("device"),
            unreported: unreported.clone(),
        };
        let reports = Reports {
            cache,
            keys: limits.keys.clone(),
            origin: limits.origin,
            interval: config.report_interval,
            queue,
            unreported,
        };
        (limits, reports)
    }

    /// Lets the events of a request through, so many of each device, all or none. Tells what is left to
    /// a key that has a limit.
    ///
    /// # Errors
    /// [`Refusal`]: nothing was counted.
    pub(crate) fn admit(
        &self,
        key: &KeyRecord,
        events: &[(DeviceId, u32)],
        now: Instant,
    ) -> Result<Option<Quota>, Refusal> {
        let now_ns = since(self.origin, now);
        let sum = events.iter().fold(0, |sum: u32, (_, events)| sum.saturating_add(*events));
        let quota = match self.key_rate(key) {
            Some(rate) => self.key_counts.note(self.take_key(&key.prefix, rate, sum, now_ns))?,
            None => None,
        };
        let devices = self.take_devices(key.client, events, now_ns);
        if devices.is_err() {
            self.keys.with_known(key.prefix.as_str(), |limit| limit.give_back(sum));
        }
        self.device_counts.note(devices)?;
        Ok(quota)
    }

    fn key_rate(&self, key: &KeyRecord) -> Option<Rate> {
        key.rate.map_or(self.key_rate, |rate| Rate::new(rate, key.burst))
    }

    /// `None` when there is no room to remember it.
    fn take_key(
        &self,
        name: &str,
        rate: Rate,
        events: u32,
        now_ns: u64,
    ) -> Result<Option<Quota>, Refusal> {
        let whose = Whose::Key;
        if events > rate.burst() {
            return Err(Refusal { whose, rate, why: Why::TooMany });
        }
        let taken = self.keys.with(name, rate, now_ns, |limit| {
            limit.take(events, now_ns)?;
            // The first since the last report puts the key on the list.
            if limit.untold == 0 && self.reports.try_send(name.to_owned()).is_err() {
                self.unreported.inc_by(events.into());
            } else {
                limit.untold = limit.untold.saturating_add(events);
            }
            Ok(Quota { rate, left: limit.bucket.left(rate, now_ns) })
        });
        if taken.is_none() {
            self.key_counts.untracked.inc();
        }
        taken.transpose().map_err(|wait_ns| Refusal { whose, rate, why: too_soon(wait_ns) })
    }

    fn take_devices(
        &self,
        client: ClientId,
        events: &[(DeviceId, u32)],
        now_ns: u64,
    ) -> Result<Option<()>, Refusal> {
        let Some(rate) = self.device_rate else { return Ok(None) };
        let whose = Whose::Device;
        if events.iter().any(|(_, events)| *events > rate.burst()) {
            return Err(Refusal { whose, rate, why: Why::TooMany });
        }
        for (place, (device, count)) in events.iter().enumerate() {
            let take = |limit: &mut table::Limit| limit.take(*count, now_ns);
            match self.devices.with(&(client, *device), rate, now_ns, take) {
                Some(Ok(())) => {}
                None => self.device_counts.untracked.inc(),
                Some(Err(wait_ns)) => {
                    for (device, count) in events.iter().take(place) {
                        self.devices
                            .with_known(&(client, *device), |limit| limit.give_back(*count));
                    }
                    return Err(Refusal { whose, rate, why: too_soon(wait_ns) });
                }
            }
        }
        Ok(Some(()))
    }
}

impl Counts {
    /// Counts a decision; where no limit applied there was none.
    fn note<T>(&self, decision: Result<Option<T>, Refusal>) -> Result<Option<T>, Refusal> {
        match &decision {
            Ok(Some(_)) => self.allowed.inc(),
            Ok(None) => {}
            Err(_) => self.refused.inc(),
        }
        decision
    }
}

fn too_soon(wait_ns: u64) -> Why {
    Why::TooSoon(Duration::from_nanos(wait_ns))
}

fn since(origin: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(origin).as_nanos()).unwrap_or(u64::MAX)
}
