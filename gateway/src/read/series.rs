//! `GET /v1/series`: values of one type, summed up in steps of time.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use pulsestream_shared::clock;
use pulsestream_shared::event::Number;
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::store::query::{Bucket, SeriesQuery};
use serde::Serialize;

use super::params::{self, Params};
use super::{Read, ok};

/// Steps in one answer.
const MOST_STEPS: i64 = 1_000;

pub(super) async fn list(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.client(&headers).await?;
    let known = ["deviceId", "eventType", "from", "to", "step"];
    let mut params = Params::parse(query.as_deref(), &known);
    let device = params.optional("deviceId", params::device_id);
    let event_type = params.required("eventType", params::event_type);
    let from_ms = params.required("from", params::time_ms);
    let to_ms = params.required("to", params::time_ms);
    let step_ms = params.required("step", params::step_ms);
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

#[derive(Serialize)]
struct Series {
    data: Vec<BucketBody>,
    step: i64,
}

#[derive(Serialize)]
struct BucketBody {
    start: i64,
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
