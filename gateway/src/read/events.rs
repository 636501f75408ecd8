//! `GET /v1/events`: a client's events by time, in pages.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use pulsestream_shared::clock;
use pulsestream_shared::event::{DeviceId, EventId, Number};
use pulsestream_shared::problem::Problem;
use pulsestream_shared::store::StoredEvent;
use pulsestream_shared::store::query::{EventsQuery, Order};
use serde::Serialize;
use serde_json::value::RawValue;

use super::cursor::Binding;
use super::params::{self, Params};
use super::{List, Read, ok};

const KNOWN: [&str; 7] = ["deviceId", "eventType", "from", "to", "order", "cursor", "limit"];
const DEFAULT_LIMIT: usize = 100;
const MOST: i64 = 1_000;

pub(super) async fn list(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.client(&headers).await?;
    let now_ms = clock::unix_ms();
    let mut params = Params::parse(query.as_deref(), &KNOWN);
    let device = params.optional("deviceId", params::device_id);
    let event_type = params.optional("eventType", params::event_type);
    let from_ms = params.optional("from", params::time_ms);
    let to_ms = params.optional("to", params::time_ms);
    let order = params.optional("order", params::order).unwrap_or(Order::Descending);
    let limit = params.optional("limit", params::limit(MOST)).unwrap_or(DEFAULT_LIMIT);
    let span = read.bounds.span(&mut params, (from_ms, to_ms), now_ms);
    // Only a cursor of this very list can be read, so the rest must be right first.
    params.check()?;
    let ascending = order == Order::Ascending;
    let binding = Binding::new(client, "events", &(device, &event_type, from_ms, to_ms, ascending));
    let after = params.optional("cursor", |text| binding.open(text));
    params.check()?;

    let query = EventsQuery { client, device, event_type, span, order, after, limit, now_ms };
    let page = read.ask(client, read.query.events(&query)).await?;
    ok(&List {
        data: page.rows.into_iter().map(EventBody::from).collect(),
        next_cursor: page.next.map(|key| binding.seal(&key)),
    })
}

/// An event as the read API shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EventBody {
    id: EventId,
    device_id: DeviceId,
    event_type: String,
    value: Number,
    timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
    received_at: i64,
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
