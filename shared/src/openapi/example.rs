//! What examples are about, so that those of different routes tell of the same event.

use uuid::Uuid;

use crate::event::{DeviceId, Event, EventId};

/// When it happened, unix milliseconds.
pub const TIMESTAMP_MS: i64 = 1_795_194_569_018;

/// The id of the event, and so its `Idempotency-Key`.
pub const EVENT_ID: EventId = EventId(Uuid::from_u128(0x4eefc5b4_9740_46f7_b3af_c36b218d0247));

/// The device.
pub const DEVICE_ID: DeviceId = DeviceId(Uuid::from_u128(0x73d7049a_9f6b_4a36_8d6c_0d6a8a4a4a4a));

/// What was measured.
pub const EVENT_TYPE: &str = "temperature";

/// The value.
pub const VALUE: f64 = 21.5;

/// The event, without metadata.
pub fn event() -> Event {
    Event {
        id: EVENT_ID,
        device_id: DEVICE_ID,
        event_type: EVENT_TYPE.to_owned(),
        value: VALUE,
        timestamp_ms: TIMESTAMP_MS,
        metadata: None,
    }
}
