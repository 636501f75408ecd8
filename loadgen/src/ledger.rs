//! The ledger: what the devices of one run were told, one JSON line per event.
//!
//! What each field proves, for whoever compares it with the log, the store or a dashboard:
//!
//! | field | proves |
//! |---|---|
//! | `id` | The event's id, sent as `Idempotency-Key`. Fresh per event, so it names this event alone. For `bad:missing-key` it was never sent and must be found nowhere. |
//! | `device`, `seq` | The `seq`-th good event of this device, also its `value`. A device sends `seq + 1` only after `seq` was answered or given up: among good events with status 202, ascending `seq` is the order of acceptance. Bad events count down from -1, so they leave no holes. |
//! | `sentAt` | When the schedule wanted it sent (unix ms). Not the event's `timestamp`, which is when its bytes were made, and not earlier than that in a closed loop. |
//! | `answeredAt` | When its last answer was read (unix ms): a 202 means the event was durable before this instant. Absent: no answer ever came. |
//! | `status` | The last HTTP status for it. 202: accepted, must be stored exactly once (or dead-lettered with a reason). 400 and other final refusals: must be found nowhere. 0 (never answered) and 503, 409, 429 (given up when the grace period ended) prove nothing: it may be stored once or not at all, never twice. |
//! | `attempts` | How often bytes of its request were written to a connection, first and repeats of the outcome excluded. 0: no server can have seen it. Above 1: a retry with the same key and bytes. |
//! | `kind` | `good`, or in what way it was made bad on purpose. |
//! | `repeatStatus` | It was accepted and later sent once more with the same key and bytes; the last status of that (0: never answered). Absent: no repeat was sent. |
//! | `replayed` | Whether the answer in `status` carried `Idempotency-Replayed: true`: an earlier attempt had already been accepted. |
//! | `repeatReplayed` | The same for the answer in `repeatStatus`. |
//!
//! A line is written when nothing more can happen to its event; the file is complete once the run has
//! returned. A run that is killed leaves out what was outstanding.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One event and what became of it. The module's table says what each field proves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Event id and idempotency key.
    pub id: Uuid,
    /// Device id.
    pub device: Uuid,
    /// Position among the good events of the device from 1; bad events count down from -1.
    pub seq: i64,
    /// Intended start, unix ms.
    pub sent_at: u64,
    /// When the last answer was read, unix ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<u64>,
    /// Last HTTP status, 0 = never answered.
    pub status: u16,
    /// How often it was written to a connection.
    pub attempts: u32,
    /// Good, or bad in which way.
    pub kind: Kind,
    /// Last status of the repeat, when one was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_status: Option<u16>,
    /// Whether the answer said it was a replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replayed: Option<bool>,
    /// Whether the repeat's answer said it was a replay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_replayed: Option<bool>,
}

impl Entry {
    /// A good event that was answered 202.
    pub fn accepted(&self) -> bool {
        self.kind == Kind::Good && self.status == 202
    }
}

/// What was sent: a good event, or one that must be answered 400 and for which reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Valid.
    #[serde(rename = "good")]
    Good,
    /// `value` is a text.
    #[serde(rename = "bad:value-text")]
    ValueText,
    /// No `deviceId`.
    #[serde(rename = "bad:missing-device")]
    MissingDevice,
    /// `eventType` of one character.
    #[serde(rename = "bad:short-type")]
    ShortType,
    /// `timestamp` an hour ago.
    #[serde(rename = "bad:too-old")]
    TooOld,
    /// JSON cut before its end.
    #[serde(rename = "bad:cut-body")]
    CutBody,
    /// No `Idempotency-Key` header.
    #[serde(rename = "bad:missing-key")]
    MissingKey,
}

impl Kind {
    /// Every way to be bad, in the order in which a run rotates over them.
    pub const BAD: [Self; 6] = [
        Self::ValueText,
        Self::MissingDevice,
        Self::ShortType,
        Self::TooOld,
        Self::CutBody,
        Self::MissingKey,
    ];
}

/// Reads a whole ledger, in file order.
///
/// # Errors
/// The file cannot be read, or a line is not an entry (the error names the line).
pub fn read_all(path: &Path) -> Result<Vec<Entry>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut entries = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("{} line {}", path.display(), index + 1);
        let line = line.with_context(place)?;
        entries.push(serde_json::from_str(&line).with_context(place)?);
    }
    Ok(entries)
}
