//! A range of one partition: what the relay publishes, what the hub checks.
//!
//! A range covers the offsets `(prev, last]` and holds the events in it that are shown live; records
//! that are no events, and replayed dead letters, are covered and not held. A range with `prev == last`
//! holds nothing and tells a position.
//!
//! On the bus, little-endian:
//!
//! ```text
//! version u8 (1) | epoch 16 | partition i32 | prev i64 | last i64 | count u32 | events
//! event: offset i64 | client i32 | id 16 | device 16 | received-at i64 (unix µs)
//!        | type length u16 | type | value length u32 | value (the event's JSON)
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pulsestream_shared::codec::decode as decode_record;
use pulsestream_shared::event::{ClientId, DeviceId, EventId};
use pulsestream_shared::log::{Offset, Partition, Record};
use uuid::Uuid;

const VERSION: u8 = 1;
const EVENT_HEAD_BYTES: usize = 8 + 4 + 16 + 16 + 8 + 2;

/// What a subscriber may want to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveEvent {
    pub(crate) offset: Offset,
    pub(crate) client: ClientId,
    pub(crate) id: EventId,
    pub(crate) device: DeviceId,
    pub(crate) event_type: Bytes,
    pub(crate) received_at_us: i64,
    /// The event's JSON as it lies on the log; checked to be UTF-8.
    pub(crate) json: Bytes,
}

/// A part of a partition, `(prev, last]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) epoch: Uuid,
    pub(crate) partition: Partition,
    /// Where the chain was before: nothing lies between it and the first offset covered.
    pub(crate) prev: Offset,
    pub(crate) last: Offset,
    pub(crate) events: Vec<LiveEvent>,
}

impl Range {
    /// The range from after `prev` to the last of `records`, which follow it without a hole.
    pub(crate) fn of(epoch: Uuid, partition: Partition, prev: Offset, records: &[Record]) -> Self {
        let last = records.last().map_or(prev, |record| record.offset);
        let events = records.iter().filter_map(live_event).collect();
        Self { epoch, partition, prev, last, events }
    }

    /// Where the chain is, without events.
    pub(crate) fn position(epoch: Uuid, partition: Partition, last: Offset) -> Self {
        Self { epoch, partition, prev: last, last, events: Vec::new() }
    }

    /// The bus message.
    pub(crate) fn encode(&self) -> Bytes {
        let values: usize = self
            .events
            .iter()
            .map(|e| e.json.len() + e.event_type.len() + EVENT_HEAD_BYTES + 4)
            .sum();
        let mut out = BytesMut::with_capacity(64 + values);
        out.put_u8(VERSION);
        out.put_slice(self.epoch.as_bytes());
        out.put_i32_le(self.partition);
        out.put_i64_le(self.prev);
        out.put_i64_le(self.last);
        out.put_u32_le(length(self.events.len()));
        for event in &self.events {
            out.put_i64_le(event.offset);
            out.put_i32_le(event.client.0);
            out.put_slice(event.id.0.as_bytes());
            out.put_slice(event.device.0.as_bytes());
            out.put_i64_le(event.received_at_us);
            // An event type is at most 50 characters.
            out.put_u16_le(u16::try_from(event.event_type.len()).unwrap_or(0));
            out.put_slice(&event.event_type);
            out.put_u32_le(length(event.json.len()));
            out.put_slice(&event.json);
        }
        out.freeze()
    }

    /// Reads a bus message; `None` when it is not one of this version.
    pub(crate) fn decode(mut message: Bytes) -> Option<Self> {
        if message.try_get_u8().ok()? != VERSION {
            return None;
        }
        let epoch = uuid(&mut message)?;
        let partition = message.try_get_i32_le().ok()?;
        let prev = message.try_get_i64_le().ok()?;
        let last = message.try_get_i64_le().ok()?;
        let count = message.try_get_u32_le().ok()? as usize;
        // What a message claims is not allocated before it is seen.
        let mut events = Vec::with_capacity(count.min(message.len() / EVENT_HEAD_BYTES));
        for _ in 0..count {
            events.push(LiveEvent {
                offset: message.try_get_i64_le().ok()?,
                client: ClientId(message.try_get_i32_le().ok()?),
                id: EventId(uuid(&mut message)?),
                device: DeviceId(uuid(&mut message)?),
                received_at_us: message.try_get_i64_le().ok()?,
                event_type: {
                    let length = usize::from(message.try_get_u16_le().ok()?);
                    take(&mut message, length)?
                },
                json: {
                    let length = message.try_get_u32_le().ok()? as usize;
                    take(&mut message, length).filter(|json| std::str::from_utf8(json).is_ok())?
                },
            });
        }
        message.is_empty().then_some(Self { epoch, partition, prev, last, events })
    }
}

fn live_event(record: &Record) -> Option<LiveEvent> {
    let accepted = decode_record(record).ok().filter(|accepted| !accepted.replay)?;
    Some(LiveEvent {
        offset: record.offset,
        client: accepted.client,
        id: accepted.event.id,
        device: accepted.event.device_id,
        event_type: Bytes::from(accepted.event.event_type),
        received_at_us: accepted.received_at_us,
        json: record.value.clone(),
    })
}

fn length(n: usize) -> u32 {
    u32::try_from(n).expect("the relay cuts its ranges far below 4 GiB")
}

fn uuid(message: &mut Bytes) -> Option<Uuid> {
    Uuid::from_slice(&take(message, 16)?).ok()
}

fn take(message: &mut Bytes, length: usize) -> Option<Bytes> {
    (message.len() >= length).then(|| message.split_to(length))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn event(offset: Offset, id: u128) -> LiveEvent {
        LiveEvent {
            offset,
            client: ClientId(7),
            id: EventId(Uuid::from_u128(id)),
            device: DeviceId(Uuid::from_u128(9)),
            event_type: Bytes::from_static(b"cpu"),
            received_at_us: 5,
            json: Bytes::from_static(b"{\"value\":1}"),
        }
    }

    pub(crate) fn range(prev: Offset, last: Offset, events: Vec<LiveEvent>) -> Range {
        Range { epoch: Uuid::from_u128(1), partition: 3, prev, last, events }
    }

    #[test]
    fn a_range_comes_back_from_the_bus_and_a_damaged_one_does_not() {
        let whole = range(4, 9, vec![event(5, 1), event(9, 2)]);
        let message = whole.encode();
        assert_eq!(Range::decode(message.clone()), Some(whole));
        for cut in 0..message.len() {
            assert_eq!(Range::decode(message.slice(..cut)), None, "{cut}");
        }
        let position = Range::position(Uuid::from_u128(1), 3, 9);
        assert_eq!(Range::decode(position.encode()), Some(position));
    }
}
