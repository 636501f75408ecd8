//! `GET /v1/events`: a client's events by time, in pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use pulsestream_shared::clock;
use pulsestream_shared::event::{DeviceId, EventId, Number};
use pulsestream_shared::openapi::{Answer, Operation, example};
use pulsestream_shared::problem::Problem;
use pulsestream_shared::store::StoredEvent;
use pulsestream_shared::store::query::{EventsQuery, Order};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::cursor::{self, Binding};
use super::params::{self, Kind, Param, Params};
use super::{List, Read, described, ok};

const MOST: i64 = 1_000;
const DEFAULT_LIMIT: usize = 100;
pub(super) const KNOWN: [Param; 7] = [
    Param::new("deviceId", Kind::Device, "Of this device alone."),
    Param::new("eventType", Kind::EventType, "Of this type alone."),
    Param::new(
        "from",
        params::FROM,
        "Timestamp at or after, unix ms. Without it, as far back as events are kept, at most the longest \
         span before `to`.",
    ),
    Param::new("to", params::TO, "Timestamp before (exclusive). Without it, a day ahead of now."),
    Param::new("order", Kind::Order, "By timestamp; without it `desc`, newest first."),
    Param::new("cursor", Kind::Cursor, "`nextCursor` of the page before."),
    Param::new("limit", Kind::Limit(MOST), "Events in the page; without it 100."),
];

pub(super) fn operation() -> Operation {
    let page = List { data: vec![EventBody::example()], next_cursor: None };
    let more =
        List { data: vec![EventBody::example()], next_cursor: Some(cursor::EXAMPLE.to_owned()) };
    let answer = Answer::new(StatusCode::OK, "A page. Go on until `nextCursor` is `null`.")
        .json::<List<EventBody>>()
        .example("last_page", "There is no more", &page)
        .example("page", "Go on with the cursor", &more);
    let operation = Operation::get("/v1/events", "listEvents", "Events by time").about(
        "A page may hold fewer events than `limit`, even none, and not be the last: a search that has taken \
         its time tells where it got to. Of the events stored when you begin, each comes exactly once.",
    );
    described(operation, &KNOWN).answer(answer)
}

pub(super) async fn list(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.client(&headers).await?;
    let now_ms = clock::unix_ms();
    let mut params = Params::parse(query.as_deref(), &KNOWN);
    let device = params.read("deviceId", params::device_id);
    let event_type = params.read("eventType", params::event_type);
    let from_ms = params.read("from", params::time_ms);
    let to_ms = params.read("to", params::time_ms);
    let order = params.read("order", params::order).unwrap_or(Order::Descending);
    let limit = params.read("limit", params::limit(MOST)).unwrap_or(DEFAULT_LIMIT);
    let span = read.bounds.span(&mut params, (from_ms, to_ms), now_ms);
    // Only a cursor of this very list can be read, so the rest must be right first.
    params.check()?;
    let ascending = order == Order::Ascending;
    let binding = Binding::new(client, "events", &(device, &event_type, from_ms, to_ms, ascending));
    let after = params.read("cursor", |text| binding.open(text));
    params.check()?;

    let query = EventsQuery { client, device, event_type, span, order, after, limit, now_ms };
    let page = read.ask(client, read.query.events(&query)).await?;
    ok(&List {
        data: page.rows.into_iter().map(EventBody::from).collect(),
        next_cursor: page.next.map(|key| binding.seal(&key)),
    })
}

/// An event as the read API shows it.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "StoredEvent")]
pub(super) struct EventBody {
    /// The `Idempotency-Key` it was sent with.
    id: EventId,
    device_id: DeviceId,
    event_type: String,
    value: Number,
    /// The device's time, unix ms.
    timestamp: i64,
    /// As the device sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "BTreeMap<String, Value>")]
    metadata: Option<Box<RawValue>>,
    /// When it was accepted, unix ms.
    received_at: i64,
}

impl EventBody {
    pub(super) fn example() -> Self {
        Self {
            id: example::EVENT_ID,
            device_id: example::DEVICE_ID,
            event_type: example::EVENT_TYPE.to_owned(),
            value: Number(example::VALUE),
            timestamp: example::TIMESTAMP_MS,
            metadata: None,
            received_at: example::TIMESTAMP_MS + 12,
        }
    }
}

impl From<StoredEvent> for EventBody {
    fn from(event: StoredEvent) -> Self {
        Self {
            id: event.id,
            device_id: event.device,
            event_type: event.event_type,
            value: Number(event.value),
            timestamp: event.timestamp_ms,
            // The store holds JSON; should it ever not, the answer must still be JSON.
            metadata: event.metadata.and_then(|json| RawValue::from_string(json).ok()),
            received_at: event.received_at_us.div_euclid(1_000),
        }
    }
}
