//! The read API: what was stored, over HTTP, and what could not be. One file a resource: [`events`],
//! [`event`], [`devices`], [`series`], [`dead_letters`]; [`params`] reads query strings, [`span`] times,
//! [`cursor`] is the place in a list, [`payload`] the bytes of a record.
//!
//! Every route asks in the same order: the key (scope `events:read`, for dead letters `admin`), every
//! parameter, then the store through [`Read::ask`]. The client is always the key's and never comes from the
//! request, so nothing a request holds can lead to another tenant's data.
//!
//! Reading is bounded apart from writing, and each client within it: [`turns`].

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::cache::Cache;
use pulsestream_shared::event::ClientId;
use pulsestream_shared::log::EventLog;
use pulsestream_shared::openapi::{Operation, Parameter, uuid};
use pulsestream_shared::problem::{Code, Problem, not_allowed};
use pulsestream_shared::request_id;
use pulsestream_shared::store::query::QueryError;
use pulsestream_shared::store::{EventQuery, Scope, StoreError};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::commit::Committer;
use crate::metrics::GatewayMetrics;

mod cursor;
mod dead_letters;
mod devices;
mod event;
mod events;
#[cfg(test)]
mod fuzz;
mod params;
mod payload;
mod series;
mod span;
mod turns;

use self::params::{Param, Params};
pub(crate) use self::span::Bounds;
pub(crate) use self::turns::Turns;

/// What the routes need.
pub(crate) struct Read {
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) query: Arc<dyn EventQuery>,
    /// For the bytes of dead letters alone.
    pub(crate) log: Arc<dyn EventLog>,
    /// How long those may take.
    pub(crate) log_timeout: Duration,
    pub(crate) cache: Arc<dyn Cache>,
    pub(crate) committer: Committer,
    pub(crate) metrics: Arc<GatewayMetrics>,
    pub(crate) bounds: Bounds,
    pub(crate) turns: Turns,
}

/// `GET /v1/events`, for the router to join with the `POST` of the same path.
pub(crate) fn get_events(read: Arc<Read>) -> MethodRouter {
    get(events::list).with_state(read)
}

/// Every other route.
pub(crate) fn routes(read: Arc<Read>) -> Router {
    let get_alone =
        |route: MethodRouter<Arc<Read>>| route.fallback_service(not_allowed("GET, HEAD"));
    Router::new()
        .route("/v1/events/{id}", get_alone(get(event::one)))
        .route("/v1/devices", get_alone(get(devices::list)))
        .route("/v1/devices/{id}", get_alone(get(devices::one)))
        .route("/v1/series", get_alone(get(series::list)))
        .route("/v1/dead-letters", get_alone(get(dead_letters::list)))
        .route("/v1/dead-letters/{letter}", get_alone(get(dead_letters::one)))
        .with_state(read)
}

/// Every route, for the API's description.
pub(crate) fn operations() -> Vec<Operation> {
    [events::operation(), event::operation(), series::operation()]
        .into_iter()
        .chain(devices::operations())
        .chain(dead_letters::operations())
        .collect()
}

/// What every route takes and answers, beside what it says of itself.
fn described(operation: Operation, known: &[Param]) -> Operation {
    described_for(Scope::EventsRead, operation, known)
}

fn described_for(scope: Scope, operation: Operation, known: &[Param]) -> Operation {
    let mut wrong = Params::parse(Some("colour=red"), known);
    let wrong = wrong.check().err().unwrap_or_else(|| Code::BadRequest.into());
    known
        .iter()
        .map(Param::described)
        .fold(operation, Operation::parameter)
        .tag("read")
        .needs(scope)
        .problem(wrong)
        .problem(Code::Overloaded)
        .problem(Code::QueryTimeout)
        .problem(Code::Starting)
}

/// The `{id}` of a path.
fn id_parameter(about: &str, example: &impl Serialize) -> Parameter {
    Parameter {
        place: "path",
        name: "id",
        required: true,
        about: about.to_owned(),
        schema: uuid().into(),
        example: Some(json!(example)),
    }
}

impl Read {
    /// Whose data is read.
    async fn client(&self, headers: &HeaderMap) -> Result<ClientId, Problem> {
        Ok(self.keyring.authorize(headers, Scope::EventsRead).await?.client)
    }

    /// The same, asked by one who may see more than what was stored.
    async fn admin(&self, headers: &HeaderMap) -> Result<ClientId, Problem> {
        Ok(self.keyring.authorize(headers, Scope::Admin).await?.client)
    }

    /// Asks the store, when it is this client's turn.
    async fn ask<T>(
        &self,
        client: ClientId,
        question: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, Problem> {
        let (result, answer) = match self.turns.wait(client).await {
            None => ("shed", Err(Code::Overloaded.into())),
            Some(_turn) => match question.await {
                Ok(answer) => ("answered", Ok(answer)),
                Err(QueryError::TooSlow) => ("too_slow", Err(Code::QueryTimeout.into())),
                Err(QueryError::Store(error)) => {
                    tell(&error);
                    ("unavailable", Err(Code::Unavailable.into()))
                }
            },
        };
        self.metrics.read_queries.with_label_values(&[result]).inc();
        answer
    }
}

fn tell(error: &StoreError) {
    let request_id = request_id::to_log();
    if error.is_retryable() {
        tracing::warn!(%error, request_id, "a query was not answered");
    } else {
        tracing::error!(%error, request_id, "queries cannot be answered");
    }
}

/// A `200` with JSON, which no cache on the way may keep: it is one tenant's.
fn ok(body: &impl Serialize) -> Result<Response, Problem> {
    let json = serde_json::to_vec(body).map_err(|error| {
        let request_id = request_id::to_log();
        tracing::error!(%error, request_id, "an answer cannot be written");
        Code::Unavailable
    })?;
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, json).into_response())
}

/// `{"data":…}`
#[derive(Serialize, JsonSchema)]
#[schemars(inline)]
struct Data<T> {
    data: T,
}

/// `{"data":[…],"nextCursor":…}`
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
struct List<T> {
    data: Vec<T>,
    /// Where the next page begins; `null`: there is none.
    next_cursor: Option<String>,
}
