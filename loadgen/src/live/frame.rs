//! What a text frame of the plain contract holds.

use serde::Deserialize;
use uuid::Uuid;

/// The fields of an event that are checked; the others are not looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Event {
    pub(super) id: Uuid,
    pub(super) device_id: Uuid,
    value: f64,
    /// Unix ms.
    pub(super) timestamp: u64,
}

impl Event {
    pub(super) fn parse(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text)
    }

    /// The sequence number of a device of this program, which it sends as the value.
    pub(super) fn seq(&self) -> i64 {
        self.value as i64
    }
}
