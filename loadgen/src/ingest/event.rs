//! A device, its events, and the bytes they are sent as.

use std::fmt::Write as _;
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::unix_ms;
use crate::http::Origin;
use crate::ledger::{Entry, Kind};

/// A device keeps to one type, so that a dashboard filtered by type still sees every event of a device.
const EVENT_TYPES: [&str; 4] = ["temperature", "humidity", "cpu_usage", "battery_level"];
const HOUR_MS: u64 = 3_600_000;

/// One device: who it is and how far it has counted.
#[derive(Debug, Clone)]
pub(super) struct Device {
    /// Place among all devices of the run; decides its slots in the open-loop schedule.
    pub(super) index: usize,
    pub(super) id: Uuid,
    /// How many events it has begun, good and bad: its next slot.
    pub(super) slot: u64,
    good: i64,
    bad: i64,
}

impl Device {
    pub(super) fn new(index: usize, id: Uuid) -> Self {
        Self { index, id, slot: 0, good: 0, bad: 0 }
    }

    /// Makes its next event.
    pub(super) fn next_event(&mut self, place: usize, id: Uuid, kind: Kind, due: Instant) -> Event {
        self.slot += 1;
        let seq = if kind == Kind::Good {
            self.good += 1;
            self.good
        } else {
            self.bad -= 1;
            self.bad
        };
        let behind = Instant::now().saturating_duration_since(due);
        let behind_ms = u64::try_from(behind.as_millis()).unwrap_or(u64::MAX);
        let now_ms = unix_ms();
        Event {
            place,
            due,
            first_write: None,
            tries: 0,
            repeat: None,
            body: self.body(seq, kind, now_ms),
            entry: Entry {
                id,
                device: self.id,
                seq,
                sent_at: now_ms.saturating_sub(behind_ms),
                answered_at: None,
                status: 0,
                attempts: 0,
                kind,
                repeat_status: None,
                replayed: None,
                repeat_replayed: None,
            },
        }
    }

    fn body(&self, seq: i64, kind: Kind, now_ms: u64) -> String {
        let mut body = String::with_capacity(192);
        body.push('{');
        if kind != Kind::MissingDevice {
            put(&mut body, format_args!("\"deviceId\":\"{}\",", self.id));
        }
        let typical = EVENT_TYPES[self.index % EVENT_TYPES.len()];
        let event_type = if kind == Kind::ShortType { "t" } else { typical };
        let quote = if kind == Kind::ValueText { "\"" } else { "" };
        let age_ms = if kind == Kind::TooOld { HOUR_MS } else { 0 };
        let timestamp = now_ms.saturating_sub(age_ms);
        put(
            &mut body,
            format_args!("\"eventType\":\"{event_type}\",\"value\":{quote}{seq}{quote},"),
        );
        put(&mut body, format_args!("\"timestamp\":{timestamp}"));
        // Every second event: stores must keep metadata and its absence apart.
        if seq % 2 == 0 {
            body.push_str(",\"metadata\":{\"unit\":\"si\",\"firmware\":\"1.4.2\"}");
        }
        if kind != Kind::CutBody {
            body.push('}');
        }
        body
    }
}

/// One event from its first attempt to its ledger line. The body never changes: a retry and a repeat
/// are the same bytes.
#[derive(Debug)]
pub(super) struct Event {
    /// Which of the worker's devices it belongs to.
    pub(super) place: usize,
    /// When the schedule wants it sent; in a closed loop, when it was made.
    pub(super) due: Instant,
    /// When its first byte went out.
    pub(super) first_write: Option<Instant>,
    /// Attempts since the last success, refused connections included: drives the backoff.
    pub(super) tries: u32,
    /// Set once it was accepted and waits to be sent again: how often that was written.
    pub(super) repeat: Option<u32>,
    pub(super) entry: Entry,
    body: String,
}

impl Event {
    /// Replaces `out` by the whole request, for the gateway whose constant part is `head`.
    pub(super) fn write_request(&self, head: &str, out: &mut String) {
        out.clear();
        out.push_str(head);
        if self.entry.kind != Kind::MissingKey {
            put(out, format_args!("idempotency-key: {}\r\n", self.entry.id));
        }
        put(out, format_args!("content-length: {}\r\n\r\n{}", self.body.len(), self.body));
    }

    /// Counts an attempt that reached a connection. True when the same bytes went out before it.
    pub(super) fn count_write(&mut self, now: Instant) -> bool {
        match &mut self.repeat {
            Some(writes) => {
                *writes += 1;
                *writes > 1
            }
            None => {
                self.first_write.get_or_insert(now);
                self.entry.attempts += 1;
                self.entry.attempts > 1
            }
        }
    }

    /// Notes the answer in the ledger entry, as the event's own or as its repeat's.
    pub(super) fn note_answer(&mut self, status: u16, replayed: bool) {
        if self.repeat.is_some() {
            self.entry.repeat_status = Some(status);
            self.entry.repeat_replayed = Some(replayed);
        } else {
            self.entry.status = status;
            self.entry.replayed = Some(replayed);
            self.entry.answered_at = Some(unix_ms());
        }
    }

    /// The ledger entry, once nothing more can happen.
    pub(super) fn into_entry(mut self) -> Entry {
        if self.repeat.is_some_and(|writes| writes > 0) {
            self.entry.repeat_status.get_or_insert(0);
        }
        self.entry
    }
}

/// The part of a request that is the same for every event sent to this gateway.
pub(super) fn request_head(origin: &Origin, key: &str) -> String {
    format!(
        "POST {}/v1/events HTTP/1.1\r\nhost: {}\r\nx-api-key: {key}\r\n\
         content-type: application/json\r\n",
        origin.path, origin.authority
    )
}

/// A device's pause before it tries again: what the server asked for, else 20 ms doubled per try up to
/// 2 s, half of it random so that devices cut off together do not come back together.
pub(super) fn backoff(asked: Option<Duration>, tries: u32, rng: &mut impl rand::Rng) -> Duration {
    const FIRST_MS: u64 = 20;
    const MAX_MS: u64 = 2_000;
    asked.unwrap_or_else(|| {
        let full_ms = (FIRST_MS << tries.min(10)).min(MAX_MS);
        Duration::from_millis(full_ms / 2 + rng.random_range(0..=full_ms / 2))
    })
}

/// A random UUID of version 4 from this generator.
pub(super) fn uuid_v4(rng: &mut impl rand::Rng) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}
