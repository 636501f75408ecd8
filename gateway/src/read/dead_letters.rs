//! `GET /v1/dead-letters`, `GET /v1/dead-letters/{letter}`: records of a client that could not be stored, why,
//! and what bytes they have. For admins: a payload may be whatever a device sent, before anything judged it.
//!
//! Letters without a client are nobody's and not told here, and nothing is replayed or purged here: both is the
//! operator's, who has `pulsestream dlq`. It reads the same rows and the same copies.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use pulsestream_shared::dead_letter::Copies;
use pulsestream_shared::event::{ClientId, DeviceId, EventId};
use pulsestream_shared::log::Record;
use pulsestream_shared::openapi::{Answer, Operation, Parameter, example};
use pulsestream_shared::problem::{Code, Problem};
use pulsestream_shared::request_id;
use pulsestream_shared::store::query::{LettersQuery, QueryError};
use pulsestream_shared::store::{
    DeadReason, Letter, LetterFilter, LetterPlace, LetterState, Scope,
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::cursor::{self, Binding};
use super::params::{self, Kind, Param, Params};
use super::payload::Payload;
use super::{Data, List, Read, described_for, ok};

const MOST: i64 = 1_000;
const DEFAULT_LIMIT: usize = 100;
const KNOWN: [Param; 6] = [
    Param::new("reason", Kind::Reason, "Of this reason alone."),
    Param::new("deviceId", Kind::Device, "Of this device alone."),
    Param::new("from", params::FROM, "Died last at or after, unix ms. Without it, all there are."),
    Param::new("to", params::TO, "Died last before (exclusive). Without it, up to now."),
    Param::new("cursor", Kind::Cursor, "`nextCursor` of the page before."),
    Param::new("limit", Kind::Limit(MOST), "Dead letters in the page; without it 100."),
];

/// Both routes.
pub(super) fn operations() -> [Operation; 2] {
    let page = |next_cursor| List { data: vec![LetterBody::example()], next_cursor };
    let answer = Answer::new(StatusCode::OK, "A page. Go on until `nextCursor` is `null`.")
        .json::<List<LetterBody>>()
        .example("last_page", "There is no more", &page(None))
        .example("page", "Go on with the cursor", &page(Some(cursor::EXAMPLE.to_owned())));
    let list = Operation::get("/v1/dead-letters", "listDeadLetters", "Dead letters, newest first")
        .about(
            "Records of your client that could not be stored. One that dies again while you walk through the \
             pages moves to the first one. Records of which no client could be read are nobody's: an operator \
             finds them with `pulsestream dlq list`.",
        );
    let whole = Whole {
        letter: LetterBody::example(),
        payload: Some(Payload::of(&example::event().to_json())),
        missing: None,
    };
    let found = Answer::new(StatusCode::OK, "What is known of it.").json::<Data<Whole>>().example(
        "dead",
        "An event that was too old",
        &Data { data: whole },
    );
    let one = Operation::get("/v1/dead-letters/{letter}", "readDeadLetter", "One dead letter")
        .about("With its payload. `pulsestream dlq replay LETTER` sends it to the store once more.")
        .parameter(letter_parameter());
    let admin = |operation, known| described_for(Scope::Admin, operation, known);
    [admin(list, &KNOWN).answer(answer), admin(one, &[]).problem(no_such_letter()).answer(found)]
}

fn letter_parameter() -> Parameter {
    Parameter {
        place: "path",
        name: "letter",
        required: true,
        about: "The dead letter, as the list and `pulsestream dlq` name it.".to_owned(),
        schema: json!({"type": "string", "pattern": "^[0-9]+-[0-9]+@[0-9a-f]{32}$"}),
        example: Some(json!(LetterBody::example().letter)),
    }
}

fn no_such_letter() -> Problem {
    Problem::from(Code::NotFound).detail("there is no such dead letter")
}

pub(super) async fn list(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.admin(&headers).await?;
    let mut params = Params::parse(query.as_deref(), &KNOWN);
    let reason = params.read("reason", params::reason);
    let device = params.read("deviceId", params::device_id);
    let from_ms = params.read("from", params::time_ms);
    let to_ms = params.read("to", params::time_ms);
    let limit = params.read("limit", params::limit(MOST)).unwrap_or(DEFAULT_LIMIT);
    if let (Some(from_ms), Some(to_ms)) = (from_ms, to_ms)
        && from_ms >= to_ms
    {
        params.refuse("to", "must be greater than from");
    }
    // Only a cursor of this very list can be read, so the rest must be right first.
    params.check()?;
    let filters = (reason.map(DeadReason::as_str), device, from_ms, to_ms);
    let binding = Binding::new(client, "dead-letters", &filters);
    let after = params.read("cursor", |text| binding.open(text));
    params.check()?;

    let filter = LetterFilter {
        reason,
        device,
        since_us: from_ms.map(|ms| ms * 1_000),
        until_us: to_ms.map(|ms| ms * 1_000 - 1),
        ..LetterFilter::default()
    };
    let query = LettersQuery { client, filter, after, limit };
    let page = read.ask(client, read.query.letters(&query)).await?;
    ok(&List {
        data: page.rows.into_iter().map(LetterBody::from).collect(),
        next_cursor: page.next.map(|key| binding.seal(&key)),
    })
}

pub(super) async fn one(
    State(read): State<Arc<Read>>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let client = read.admin(&headers).await?;
    let mut params = Params::parse(query.as_deref(), &[]);
    let place = path.ok().and_then(|Path(text)| text.parse::<LetterPlace>().ok());
    if place.is_none() {
        params.refuse("letter", "must be PARTITION-OFFSET@EPOCH, as the list names it");
    }
    params.check()?;
    let place = place.ok_or(Code::BadRequest)?;
    let whole = read.ask(client, read.whole(client, place)).await?;
    ok(&Data { data: whole.ok_or_else(no_such_letter)? })
}

impl Read {
    async fn whole(
        &self,
        client: ClientId,
        place: LetterPlace,
    ) -> Result<Option<Whole>, QueryError> {
        let filter = LetterFilter {
            partition: Some(place.partition),
            offset: Some(place.offset),
            epoch: Some(place.epoch),
            ..LetterFilter::default()
        };
        let query = LettersQuery { client, filter, after: None, limit: 1 };
        let Some(found) = self.query.letters(&query).await?.rows.pop() else { return Ok(None) };
        let copy = self.copy_of(found.0.clone()).await;
        let payload = copy.as_ref().ok().map(|copy| Payload::of(&copy.value));
        let missing = copy.err().map(str::to_owned);
        Ok(Some(Whole { letter: found.into(), payload, missing }))
    }

    /// Its record, or why there is none to be had. A log that is away takes nothing from what the store knows.
    async fn copy_of(&self, letter: Letter) -> Result<Record, &'static str> {
        let away = "the log does not answer now";
        let mut copies = Copies::of(vec![letter]);
        let found = copies.next(self.log.as_ref());
        let Ok(found) = tokio::time::timeout(self.log_timeout, found).await else {
            return Err(away);
        };
        match found {
            Ok(mut found) => found.pop().map_or(Err(away), |(_, copy)| copy),
            Err(error) => {
                let request_id = request_id::to_log();
                tracing::warn!(%error, request_id, "the copy of a dead letter could not be read");
                Err(away)
            }
        }
    }
}

/// A dead letter, by the words of `pulsestream dlq`.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "DeadLetter")]
struct LetterBody {
    /// Its name, `PARTITION-OFFSET@EPOCH` of where it died first: what `pulsestream dlq` calls it too.
    letter: String,
    state: StateBody,
    /// `malformed`, `unknown_client`, `out_of_range`, `id_conflict` or `rejected`.
    reason: String,
    /// A sentence without values of the event.
    error: String,
    /// The database's own code, when it was the judge.
    sqlstate: Option<String>,
    /// How often it died.
    deaths: u32,
    /// When it died last, unix ms.
    died_at: i64,
    /// The event's id, when it could be read.
    id: Option<EventId>,
    /// The record's key, when that is a device.
    device_id: Option<DeviceId>,
}

/// `dead`: it waits for a person. `replayed`: it is on its way to the store once more.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum StateBody {
    Dead,
    Replayed,
}

/// A dead letter and its record.
#[derive(Serialize, JsonSchema)]
#[schemars(inline)]
struct Whole {
    #[serde(flatten)]
    letter: LetterBody,
    /// `null`: there is none to be had, and `missing` says why.
    payload: Option<Payload>,
    missing: Option<String>,
}

impl LetterBody {
    fn example() -> Self {
        let epoch = Uuid::from_u128(0xcd2bb4a8_ed01_4ba2_90e0_f1c401c1eca4);
        Self {
            letter: LetterPlace { partition: 2, epoch, offset: 41 }.to_string(),
            state: StateBody::Dead,
            reason: DeadReason::OutOfRange.as_str().to_owned(),
            error: "timestamp: out of range".to_owned(),
            sqlstate: None,
            deaths: 1,
            died_at: example::TIMESTAMP_MS + 40,
            id: Some(example::EVENT_ID),
            device_id: Some(example::DEVICE_ID),
        }
    }
}

impl From<(Letter, LetterState)> for LetterBody {
    fn from((letter, state): (Letter, LetterState)) -> Self {
        Self {
            letter: letter.place.to_string(),
            state: match state {
                LetterState::Dead => StateBody::Dead,
                LetterState::Replayed => StateBody::Replayed,
            },
            reason: letter.reason,
            error: letter.detail,
            sqlstate: letter.sqlstate,
            deaths: letter.attempt,
            died_at: letter.died_at_us.div_euclid(1_000),
            id: letter.id,
            device_id: letter.device,
        }
    }
}
