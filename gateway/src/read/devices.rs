//! `GET /v1/devices`, `GET /v1/devices/{id}`: which devices there are, and what each told last.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use pulsestream_shared::clock;
use pulsestream_shared::event::{DeviceId, Number};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::query::DeviceState;
use serde::Serialize;

use super::cursor::Binding;
use super::params::{self, Params};
use super::{Data, List, Read, ok};

/// Devices in one page, and unless fewer are asked for. Each is looked through for its types, which
/// costs up to `DEVICE_EVENTS` rows.
const MOST: i64 = 100;

pub(super) async fn list(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.client(&headers).await?;
    let binding = Binding::new(client, "devices", &());
    let mut params = Params::parse(query.as_deref(), &["cursor", "limit"]);
    let after = params.optional("cursor", |text| binding.open(text));
    let limit = params.optional("limit", params::limit(MOST)).unwrap_or(100);
    params.check()?;
    let since_ms = read.bounds.oldest_ms(clock::unix_ms());
    let page = read.ask(client, read.query.devices(client, since_ms, after, limit)).await?;
    ok(&List {
        data: page.rows.into_iter().map(DeviceBody::from).collect(),
        next_cursor: page.next.map(|device| binding.seal(&device)),
    })
}

pub(super) async fn one(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.client(&headers).await?;
    let mut params = Params::parse(query.as_deref(), &[]);
    let device = path.ok().and_then(|Path(text)| DeviceId::parse(&text));
    if device.is_none() {
        params.refuse("id", "must be a UUID in hyphenated form");
    }
    params.check()?;
    let device = device.ok_or(Code::BadRequest)?;
    let since_ms = read.bounds.oldest_ms(clock::unix_ms());
    let state = read.ask(client, read.query.device(client, device, since_ms)).await?;
    let missing = || Problem::from(Code::NotFound).detail("no event of this device is stored");
    ok(&Data { data: DeviceBody::from(state.ok_or_else(missing)?) })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceBody {
    device_id: DeviceId,
    /// Timestamp of its newest event.
    last_seen: i64,
    latest: BTreeMap<String, LatestBody>,
}

#[derive(Serialize)]
struct LatestBody {
    value: Number,
    timestamp: i64,
}

impl From<DeviceState> for DeviceBody {
    fn from(state: DeviceState) -> Self {
        Self {
            device_id: state.device,
            last_seen: state.latest.first().map_or(0, |newest| newest.timestamp_ms),
            latest: state
                .latest
                .into_iter()
                .map(|latest| {
                    let body =
                        LatestBody { value: Number(latest.value), timestamp: latest.timestamp_ms };
                    (latest.event_type, body)
                })
                .collect(),
        }
    }
}
