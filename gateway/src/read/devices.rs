//! `GET /v1/devices`, `GET /v1/devices/{id}`: which devices there are, and what each told last.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use pulsestream_shared::clock;
use pulsestream_shared::event::{DeviceId, Number};
use pulsestream_shared::openapi::{Answer, Operation, example};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::query::DeviceState;
use schemars::JsonSchema;
use serde::Serialize;

use super::cursor::Binding;
use super::params::{self, Kind, Param, Params};
use super::{Data, List, Read, described, ok};

/// Devices in one page, and unless fewer are asked for. Each is looked through for its types, which
/// costs up to `DEVICE_EVENTS` rows.
const MOST: i64 = 100;
const KNOWN: [Param; 2] = [
    Param::new("cursor", Kind::Cursor, "`nextCursor` of the page before."),
    Param::new("limit", Kind::Limit(MOST), "Devices in the page; without it 100."),
];

/// Both routes.
pub(super) fn operations() -> [Operation; 2] {
    let answer = Answer::new(StatusCode::OK, "A page. Go on until `nextCursor` is `null`.")
        .json::<List<DeviceBody>>()
        .example(
            "last_page",
            "There is no more",
            &List { data: vec![DeviceBody::example()], next_cursor: None },
        );
    let list = Operation::get("/v1/devices", "listDevices", "Devices by id")
        .about("Devices of which an event is stored, with what each told last.");
    let found = Answer::new(StatusCode::OK, "What the device told last.")
        .json::<Data<DeviceBody>>()
        .example("known", "A device with one type", &Data { data: DeviceBody::example() });
    let one = Operation::get("/v1/devices/{id}", "readDevice", "One device")
        .about(
            "`latest` holds the newest value of each type among the device's newest 1,000 events.",
        )
        .parameter(super::id_parameter("The device.", &example::DEVICE_ID));
    [
        described(list, &KNOWN).answer(answer),
        described(one, &[]).problem(no_such_device()).answer(found),
    ]
}

fn no_such_device() -> Problem {
    Problem::from(Code::NotFound).detail("no event of this device is stored")
}

pub(super) async fn list(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.client(&headers).await?;
    let binding = Binding::new(client, "devices", &());
    let mut params = Params::parse(query.as_deref(), &KNOWN);
    let after = params.read("cursor", |text| binding.open(text));
    let limit = params.read("limit", params::limit(MOST)).unwrap_or(100);
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
    ok(&Data { data: DeviceBody::from(state.ok_or_else(no_such_device)?) })
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Device")]
struct DeviceBody {
    device_id: DeviceId,
    /// Timestamp of its newest event, unix ms.
    last_seen: i64,
    /// By type.
    latest: BTreeMap<String, LatestBody>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "LatestValue")]
struct LatestBody {
    value: Number,
    timestamp: i64,
}

impl DeviceBody {
    fn example() -> Self {
        let latest = LatestBody { value: Number(example::VALUE), timestamp: example::TIMESTAMP_MS };
        Self {
            device_id: example::DEVICE_ID,
            last_seen: example::TIMESTAMP_MS,
            latest: [(example::EVENT_TYPE.to_owned(), latest)].into(),
        }
    }
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
