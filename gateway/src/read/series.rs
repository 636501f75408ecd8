//! `GET /v1/series`: values of one type, summed up in steps of time.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use pulsestream_shared::clock;
use pulsestream_shared::event::Number;
use pulsestream_shared::openapi::{Answer, Operation, example};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::query::{Bucket, SeriesQuery};
use schemars::JsonSchema;
use serde::Serialize;

use super::params::{self, Kind, Param, Params};
use super::{Read, described, ok};

/// Steps in one answer.
const MOST_STEPS: i64 = 1_000;
const KNOWN: [Param; 5] = [
    Param::new("deviceId", Kind::Device, "Of this device alone; without it of all."),
    Param::required("eventType", Kind::EventType, "Of this type."),
    Param::required("from", params::FROM, "Timestamp at or after, unix ms."),
    Param::required("to", params::TO, "Timestamp before (exclusive)."),
    Param::required("step", Kind::Step, "Length of a bucket in ms."),
];

pub(super) fn operation() -> Operation {
    let bucket = BucketBody {
        start: example::TIMESTAMP_MS.div_euclid(60_000) * 60_000,
        count: 1,
        min: Number(example::VALUE),
        max: Number(example::VALUE),
        avg: Number(example::VALUE),
    };
    let answer = Answer::new(StatusCode::OK, "The buckets that hold something, oldest first.")
        .json::<Series>()
        .example("summed_up", "One bucket", &Series { data: vec![bucket], step: 60_000 });
    let operation = Operation::get("/v1/series", "readSeries", "Values summed up by time").about(
        format!(
            "At most {MOST_STEPS} steps. Buckets begin at multiples of `step` since 1970 (UTC); the first and \
             the last hold only the part that lies within `from` and `to`. Empty ones are left out."
        ),
    );
    described(operation, &KNOWN).answer(answer)
}

pub(super) async fn list(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.client(&headers).await?;
    let mut params = Params::parse(query.as_deref(), &KNOWN);
    let device = params.read("deviceId", params::device_id);
    let event_type = params.read("eventType", params::event_type);
    let from_ms = params.read("from", params::time_ms);
    let to_ms = params.read("to", params::time_ms);
    let step_ms = params.read("step", params::step_ms);
    let span = read.bounds.span(&mut params, (from_ms, to_ms), clock::unix_ms());
    if from_ms.is_some()
        && to_ms.is_some()
        && let Some(step_ms) = step_ms
        && span.to_ms - span.from_ms > step_ms.saturating_mul(MOST_STEPS)
    {
        let least_ms = (span.to_ms - span.from_ms - 1) / MOST_STEPS + 1;
        let message = format!("must be at least {least_ms} ms: {MOST_STEPS} steps at most");
        params.refuse("step", message);
    }
    params.check()?;
    let (Some(event_type), Some(step_ms)) = (event_type, step_ms) else {
        return Err(Code::BadRequest.into());
    };
    let query = SeriesQuery { client, device, event_type, span, step_ms };
    let buckets = read.ask(client, read.query.series(&query)).await?;
    ok(&Series { data: buckets.into_iter().map(BucketBody::from).collect(), step: step_ms })
}

#[derive(Serialize, JsonSchema)]
struct Series {
    data: Vec<BucketBody>,
    /// As asked for.
    step: i64,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Bucket")]
struct BucketBody {
    /// Begin, unix ms.
    start: i64,
    /// Events in it.
    count: i64,
    min: Number,
    max: Number,
    avg: Number,
}

impl From<Bucket> for BucketBody {
    fn from(bucket: Bucket) -> Self {
        Self {
            start: bucket.start_ms,
            count: bucket.count,
            min: Number(bucket.min),
            max: Number(bucket.max),
            avg: Number(bucket.avg),
        }
    }
}
