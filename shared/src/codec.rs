//! What an event looks like as a record of the log.
//!
//! | part | content |
//! |---|---|
//! | key | deviceId as hyphenated text |
//! | value | [`Event::to_json`], readable by any Kafka tool |
//! | header `client` | the client's number, decimal text |
//! | header `received-at` | when a gateway accepted it, unix microseconds, decimal text |
//! | header `unsure` | `1` when its lock may not have been the only one of its key ([`Unsure`]); else absent |
//! | header `forgotten-at` | beside `unsure`, when the reason is [`Unsure::Forgotten`]: its time, unix milliseconds |
//! | header `replay` | `1` on a replayed dead letter: stored, not shown live; else absent |
//! | header `traceparent` | W3C trace context, when the request was sampled |
//!
//! Unknown headers and unknown fields are ignored, so that a newer writer can precede an older reader.
//! Everything a record may hold comes from outside; decoding never panics and names what is wrong.

use std::borrow::Cow;

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::{ClientId, DEVICE_ID_RANGE, DeviceId, EVENT_TYPE_CHARS, Event, EventId};
use crate::log::{Headers, HeadersBuilder, NewRecord, Record, partition_of};
use crate::metadata::{Metadata, has_nul};
use crate::traces::TraceParent;

/// What a value takes that has no metadata.
const USUAL_BYTES: usize = 192;

const TRACEPARENT: &str = "traceparent";

/// The header of a replayed dead letter.
pub(crate) const REPLAY: &str = "replay";

/// An event the pipeline took responsibility for.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted {
    /// The event.
    pub event: Event,
    /// Whose it is.
    pub client: ClientId,
    /// When a gateway accepted it, unix microseconds.
    pub received_at_us: i64,
    /// Set when another event may have been accepted under the same id.
    pub unsure: Option<Unsure>,
    /// A replayed dead letter.
    pub replay: bool,
}

/// Why the lock an event was accepted under may not have been the only one of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unsure {
    /// One gateway locked the key by itself: others may have accepted, or may yet accept, another event.
    Local,
    /// The cache that locked the key had lost what it knew: an event accepted before may have the id.
    Forgotten {
        /// When it lost it, unix milliseconds.
        at_ms: i64,
    },
}

/// Why a record is not an event, and what could still be read of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// A sentence without values of the record.
    pub detail: String,
    /// From the header, when readable.
    pub client: Option<ClientId>,
    /// From the value, when readable.
    pub id: Option<EventId>,
}

/// Builds the record of an event, for a topic of `partitions` partitions.
pub fn encode(accepted: &Accepted, partitions: u32) -> NewRecord {
    Encoder::new(partitions, 1).encode(accepted, None)
}

/// Builds the records of events that are appended together. Their keys and values lie in one piece of memory,
/// which lives as long as any of them: two allocations a record were a tenth of what a batch costs.
pub struct Encoder {
    partitions: u32,
    json: String,
    room: BytesMut,
}

impl Encoder {
    /// For a topic of `partitions` partitions and about so many records.
    pub fn new(partitions: u32, records: usize) -> Self {
        Self {
            partitions,
            json: String::new(),
            room: BytesMut::with_capacity(records * USUAL_BYTES),
        }
    }

    /// The record of an event of a request that may be traced.
    pub fn encode(&mut self, accepted: &Accepted, trace: Option<TraceParent>) -> NewRecord {
        let Accepted { event, client, received_at_us, unsure, replay } = accepted;
        let mut headers = headers(*client, *received_at_us, *unsure, trace);
        if *replay {
            headers = headers.with(REPLAY, b"1");
        }
        self.record(event, headers.build())
    }

    /// The record of an event under headers it shares with others.
    pub fn record(&mut self, event: &Event, headers: Headers) -> NewRecord {
        self.json.clear();
        event.push_json(&mut self.json);
        self.room.extend_from_slice(self.json.as_bytes());
        let value = self.room.split().freeze();
        let key = value.slice(DEVICE_ID_RANGE);
        let partition = partition_of(&key, self.partitions);
        NewRecord { partition, key: Some(key), value, headers, outcomes: Vec::new() }
    }
}

/// The headers of events that were accepted together; cheap to clone.
pub fn shared_headers(
    client: ClientId,
    received_at_us: i64,
    unsure: Option<Unsure>,
    trace: Option<TraceParent>,
) -> Headers {
    headers(client, received_at_us, unsure, trace).build()
}

/// The span that sent the record, when its request was traced.
pub fn trace_of(record: &Record) -> Option<TraceParent> {
    TraceParent::parse(record.headers.get(TRACEPARENT)?)
}

fn headers(
    client: ClientId,
    received_at_us: i64,
    unsure: Option<Unsure>,
    trace: Option<TraceParent>,
) -> HeadersBuilder {
    let mut number = itoa::Buffer::new();
    let mut headers = Headers::builder()
        .with("client", number.format(client.0).as_bytes())
        .with("received-at", number.format(received_at_us).as_bytes());
    if let Some(trace) = trace {
        headers = headers.with(TRACEPARENT, trace.to_text().as_bytes());
    }
    match unsure {
        None => headers,
        Some(Unsure::Local) => headers.with("unsure", b"1"),
        Some(Unsure::Forgotten { at_ms }) => {
            headers.with("unsure", b"1").with("forgotten-at", number.format(at_ms).as_bytes())
        }
    }
}

/// Reads an event back from its record.
///
/// # Errors
/// [`Malformed`] when any part is not what [`encode`] writes.
pub fn decode(record: &Record) -> Result<Accepted, Malformed> {
    let client =
        number(&record.headers, "client").and_then(|n| i32::try_from(n).ok()).map(ClientId);
    let malformed = |detail: String, id| Malformed { detail, client, id };
    let own = std::str::from_utf8(&record.value).ok().and_then(Event::from_own_json);
    let event = own.map_or_else(|| parse(&record.value), Ok);
    let event = event.map_err(|(detail, id)| malformed(detail, id))?;
    let id = Some(event.id);
    let mut device = Uuid::encode_buffer();
    let device = event.device_id.0.as_hyphenated().encode_lower(&mut device);
    if record.key.as_deref() != Some(device.as_bytes()) {
        return Err(malformed("key: not the deviceId of the value".to_owned(), id));
    }
    let client =
        client.ok_or_else(|| malformed("header client: not a client number".to_owned(), id))?;
    let received_at_us = number(&record.headers, "received-at")
        .filter(|us| *us > 0)
        .ok_or_else(|| malformed("header received-at: not unix microseconds".to_owned(), id))?;
    Ok(Accepted {
        event,
        client,
        received_at_us,
        unsure: flag(&record.headers, "unsure").then(|| why_unsure(&record.headers)),
        replay: flag(&record.headers, REPLAY),
    })
}

/// Reads a value of any writer; else tells what is wrong, and the id if it can be read.
fn parse(value: &[u8]) -> Result<Event, (String, Option<EventId>)> {
    let wire: Wire<'_> = serde_json::from_slice(value)
        .map_err(|error| (format!("value: {}", kind_of(&error)), None))?;
    let id = wire.id();
    wire.into_event().map_err(|detail| (detail.to_owned(), id))
}

/// The value as it is read: everything optional, so that the fault can be named field by field.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    #[serde(borrow, default)]
    id: Option<Text<'a>>,
    #[serde(borrow, default)]
    device_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    event_type: Option<Text<'a>>,
    value: Option<f64>,
    timestamp: Option<i64>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
}

/// Text that is borrowed where it has no escapes. An optional `Cow` itself would always be a copy.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Wire<'_> {
    fn id(&self) -> Option<EventId> {
        self.id.as_ref().and_then(|text| EventId::parse(&text.0))
    }

    fn into_event(self) -> Result<Event, &'static str> {
        let id = self.id().ok_or("id: not a UUID")?;
        let device_id = self.device_id.and_then(|text| DeviceId::parse(&text.0));
        let device_id = device_id.ok_or("deviceId: not a UUID")?;
        let event_type = self
            .event_type
            .map(|text| text.0)
            .filter(|text| EVENT_TYPE_CHARS.contains(&text.chars().count()) && !has_nul(text))
            .ok_or("eventType: not 2 to 50 characters without U+0000")?;
        let value =
            self.value.filter(|value| value.is_finite()).ok_or("value: not a finite number")?;
        let timestamp_ms =
            self.timestamp.filter(|ms| *ms > 0).ok_or("timestamp: not a positive integer")?;
        let metadata = self
            .metadata
            .map(Metadata::from_json)
            .transpose()
            .map_err(|_| "metadata: not a map of at most 64 scalars")?;
        Ok(Event {
            id,
            device_id,
            event_type: event_type.into_owned(),
            value,
            timestamp_ms,
            metadata,
        })
    }
}

/// What serde found, without the text it found it in.
fn kind_of(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "JSON that ends too early",
        serde_json::error::Category::Data => "a field of the wrong type",
        _ => "not JSON",
    }
}

fn number(headers: &Headers, name: &str) -> Option<i64> {
    std::str::from_utf8(headers.get(name)?).ok()?.parse().ok()
}

fn why_unsure(headers: &Headers) -> Unsure {
    number(headers, "forgotten-at").map_or(Unsure::Local, |at_ms| Unsure::Forgotten { at_ms })
}

fn flag(headers: &Headers, name: &str) -> bool {
    headers.get(name) == Some(b"1")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn logged(new: NewRecord) -> Record {
        Record {
            partition: new.partition,
            offset: 0,
            logged_at_ms: 0,
            key: new.key,
            value: new.value,
            headers: new.headers,
        }
    }

    fn accepted() -> impl Strategy<Value = Accepted> {
        let event_type = "[^\\x00]{2,50}";
        let ids = (any::<u128>(), any::<u128>());
        let numbers = (any::<f64>().prop_filter("finite", |v| v.is_finite()), 1..i64::MAX);
        let forgotten = any::<i64>().prop_map(|at_ms| Unsure::Forgotten { at_ms });
        let unsure = proptest::option::of(prop_oneof![Just(Unsure::Local), forgotten]);
        let flags = (unsure, any::<bool>());
        (ids, event_type, numbers, any::<i32>(), 1..i64::MAX, flags).prop_map(
            |((id, device), event_type, (value, timestamp_ms), client, received_at_us, flags)| {
                let event = Event {
                    id: EventId(Uuid::from_u128(id)),
                    device_id: DeviceId(Uuid::from_u128(device)),
                    event_type,
                    // -0 is written as 0: JSON readers print it so as well.
                    value: if value == 0.0 { 0.0 } else { value },
                    timestamp_ms,
                    metadata: None,
                };
                let (unsure, replay) = flags;
                Accepted { event, client: ClientId(client), received_at_us, unsure, replay }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(accepted in accepted()) {
            prop_assert_eq!(decode(&logged(encode(&accepted, 12))), Ok(accepted));
        }

        #[test]
        fn what_is_encoded_together_is_what_is_encoded_alone(
            many in proptest::collection::vec(accepted(), 0..9),
            room in 0..9_usize,
        ) {
            let mut encoder = Encoder::new(12, room);
            let together: Vec<_> = many.iter().map(|it| encoder.encode(it, None)).collect();
            for (one, accepted) in together.into_iter().zip(many) {
                prop_assert_eq!(decode(&logged(one)), Ok(accepted));
            }
        }

        #[test]
        fn what_is_read_without_the_parser_is_what_the_parser_reads(json in nearly_own_json()) {
            if let Some(event) = Event::from_own_json(&json) {
                prop_assert_eq!(parse(json.as_bytes()), Ok(event));
            }
        }

        #[test]
        fn no_bytes_make_decoding_panic(value in any::<Vec<u8>>(), header in any::<Vec<u8>>()) {
            let headers = Headers::builder().with("client", &header).build();
            let key = Some(Bytes::from_static(b"key"));
            let record =
                Record { partition: 0, offset: 0, logged_at_ms: 0, key, value: value.into(), headers };
            prop_assert!(decode(&record).is_err());
        }
    }

    /// JSON like ours, of which a part or two often is not.
    fn nearly_own_json() -> impl Strategy<Value = String> {
        let mostly = |usual: &'static str, odd: &'static str| prop_oneof![7 => usual, 1 => odd];
        let id = || mostly("\"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9aF]{12}\"", "\"[0-9a-f]{32}\"|null");
        let event_type = mostly("\"[a-cé]{2,50}\"", "\"(a|a{51}|a\"b|a\\\\nb|a\u{1}b)\"");
        let value = mostly("-?(0|[1-9][0-9]{0,2})(\\.[0-9]{1,17})?", "[.0-9-]{1,3}(e[0-9])?|null");
        let timestamp = mostly("[1-9][0-9]{0,17}", "-1|0|01|1\\.0|9{19,20}");
        let metadata = mostly(
            "(,\"metadata\":\\{(\"a\":1,\"b\":\"x\")?\\})?",
            ",\"metadata\":(null|\\[\\]|\\{(\"a\":(1|01|tru|\"\\\\n\"),?){0,2}\\})",
        );
        let end = mostly("\\}", "| \\}|\\}x|,\"a\":1\\}");
        let parts = (id(), id(), event_type, value, timestamp, metadata, end);
        parts.prop_map(|(id, device, event_type, value, timestamp, metadata, end)| {
            format!(
                "{{\"id\":{id},\"deviceId\":{device},\"eventType\":{event_type},\
                 \"value\":{value},\"timestamp\":{timestamp}{metadata}{end}"
            )
        })
    }

    fn sample() -> Accepted {
        let event = Event {
            id: EventId(Uuid::from_u128(1)),
            device_id: DeviceId(Uuid::from_u128(2)),
            event_type: "cpu".into(),
            value: 0.5,
            timestamp_ms: 1_795_194_569_018,
            metadata: None,
        };
        Accepted { event, client: ClientId(7), received_at_us: 5, unsure: None, replay: false }
    }

    #[test]
    fn what_was_written_is_read_without_the_parser_unless_it_has_to_be_escaped() {
        let metadata: &RawValue = serde_json::from_str("{\"unit\":\"°C\",\"n\":1.5}").unwrap();
        let mut event = sample().event;
        event.metadata = Some(Metadata::from_json(metadata).unwrap());
        let read =
            |event: &Event| Event::from_own_json(std::str::from_utf8(&event.to_json()).unwrap());
        assert_eq!(read(&event), Some(event.clone()));
        event.event_type = "a\nb".into();
        assert_eq!(read(&event), None);
    }

    #[test]
    fn each_kind_of_poison_is_named() {
        let good = logged(encode(&sample(), 12));
        let value = |text: &str| Record { value: Bytes::from(text.to_owned()), ..good.clone() };
        let text = String::from_utf8(good.value.to_vec()).unwrap();
        let nested = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        let deep = format!("{},\"metadata\":{nested}}}", text.trim_end_matches('}'));
        let cases = [
            (value(""), "value: JSON that ends too early"),
            (value("x"), "value: not JSON"),
            (value(&deep), "metadata: not a map"),
            (value("{}"), "id: not a UUID"),
            (value(&text.replace("0.5", "\"0.5\"")), "value: a field of the wrong type"),
            (value(&text.replace("cpu", "c\\u0000u")), "eventType: not 2 to 50"),
            (Record { key: None, ..good.clone() }, "key: not the deviceId"),
            (Record { headers: Headers::default(), ..good.clone() }, "header client"),
            (
                Record { value: Bytes::from_static(b"{\"id\":\"\xff\"}"), ..good.clone() },
                "value: not JSON",
            ),
        ];
        for (record, detail) in cases {
            let fault = decode(&record).unwrap_err();
            assert!(fault.detail.starts_with(detail), "{} / {detail}", fault.detail);
        }
    }

    #[test]
    fn the_client_and_the_id_of_poison_are_told_when_they_can_be_read() {
        let mut poison = logged(encode(&sample(), 12));
        poison.key = None;
        let fault = decode(&poison).unwrap_err();
        assert_eq!(
            (fault.client, fault.id),
            (Some(ClientId(7)), Some(EventId(Uuid::from_u128(1))))
        );
    }
}
