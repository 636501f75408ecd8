//! What the sender of a batch is told: how many events were taken, and what became of every other one.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pulsestream_shared::event::EventId;
use pulsestream_shared::problem::{Code, FieldError, Problem, spread};
use schemars::JsonSchema;
use serde::Serialize;

use super::items::{Items, Place};
use crate::commit::Answer;
use crate::headers::{LOCAL, REPLAYED, STATUS, TRUE};
use crate::limits::Quota;

/// What became of a batch. Every event of the request is counted once.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "BatchSummary")]
pub(crate) struct Summary {
    /// In the log now.
    pub(crate) accepted: usize,
    /// There already, or twice in the batch.
    pub(crate) duplicates: usize,
    /// Everything else.
    pub(crate) rejected: usize,
    /// A row for each event that was not accepted, by index.
    pub(crate) results: Vec<Row>,
    /// Why the first of those that may be sent again was not accepted, and seconds until they may.
    #[serde(skip)]
    retry: Option<Code>,
    #[serde(skip)]
    retry_after: Option<u32>,
    #[serde(skip)]
    local: bool,
    #[serde(skip)]
    replayed: bool,
    #[serde(skip)]
    quota: Option<Quota>,
}

/// One event that was not accepted.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "BatchRow")]
pub(crate) struct Row {
    /// Its place in the batch, from 0.
    index: usize,
    /// As it came, or as it follows from the key; absent when there is neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<EventId>,
    /// `duplicate`: nothing to do. `rejected`: correct it and send it under another id. `retry`: send the
    /// same batch again, after `Retry-After` seconds.
    #[schemars(extend("enum" = ["duplicate", "rejected", "retry"]))]
    status: &'static str,
    /// `duplicate`, or the code of a problem.
    code: &'static str,
    detail: String,
    /// Every faulty field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

impl Summary {
    /// Of a batch whose events got these answers, in the order of the valid ones.
    pub(crate) fn of(items: &Items, answers: &[Answer], too_old: &Problem) -> Self {
        let mut summary = Self::default();
        for (index, place) in items.places.iter().enumerate() {
            match place {
                Place::Repeat(id) => summary.duplicate(index, *id),
                Place::Invalid(id, problem) => summary.reject(index, *id, problem),
                Place::Event(at) => {
                    let Some(event) = items.events.get(*at) else { continue };
                    let answer = answers.get(*at).unwrap_or(&Answer::Failed(Code::OutcomeUnknown));
                    summary.count(index, event.event.id, *answer, too_old);
                }
            }
        }
        summary
    }

    /// Of a batch that was accepted before: `old` tells which of its events were too old even then.
    pub(crate) fn replayed(items: &Items, old: impl Fn(usize) -> bool, too_old: &Problem) -> Self {
        let answer = |(at, _)| match old(at) {
            true => Answer::TooOld,
            false => Answer::Accepted { local: false },
        };
        let answers: Vec<_> = items.events.iter().enumerate().map(answer).collect();
        Self { replayed: true, ..Self::of(items, &answers, too_old) }
    }

    /// With what its key has left.
    pub(crate) fn with_quota(self, quota: Option<Quota>) -> Self {
        Self { quota, ..self }
    }

    fn count(&mut self, index: usize, id: EventId, answer: Answer, too_old: &Problem) {
        match answer {
            Answer::Accepted { local } => {
                self.accepted += 1;
                self.local |= local;
            }
            Answer::Replayed { .. } => self.duplicate(index, id),
            Answer::TooOld => self.reject(index, Some(id), too_old),
            Answer::Failed(code) => self.reject(index, Some(id), &code.into()),
        }
    }

    fn duplicate(&mut self, index: usize, id: EventId) {
        self.duplicates += 1;
        self.results.push(Row {
            index,
            id: Some(id),
            status: "duplicate",
            code: "duplicate",
            detail: "The event was accepted before".to_owned(),
            errors: Vec::new(),
        });
    }

    fn reject(&mut self, index: usize, id: Option<EventId>, problem: &Problem) {
        self.rejected += 1;
        let retry = problem.wait_seconds();
        self.retry = self.retry.or(retry.map(|_| problem.code()));
        self.retry_after = self.retry_after.max(retry);
        self.results.push(Row {
            index,
            id,
            status: if retry.is_some() { "retry" } else { "rejected" },
            code: problem.code().as_str(),
            detail: problem.text().to_owned(),
            errors: problem.fields().to_vec(),
        });
    }

    /// The same rows, in the answer to a batch of which nothing was accepted.
    pub(super) fn into_problem(self, code: Code) -> Problem {
        let rows = match serde_json::to_value(&self) {
            Ok(serde_json::Value::Object(rows)) => rows,
            _ => serde_json::Map::new(),
        };
        let problem = Problem::from(code).extend(rows);
        self.retry_after.into_iter().fold(problem, Problem::retry_after)
    }

    /// 202, 207, or why nothing was accepted.
    fn status(&self) -> Result<StatusCode, Code> {
        match (self.accepted + self.duplicates, self.rejected) {
            (_, 0) => Ok(StatusCode::ACCEPTED),
            (0, _) => Err(self.retry.unwrap_or(Code::BatchInvalid)),
            _ => Ok(StatusCode::MULTI_STATUS),
        }
    }
}

impl IntoResponse for Summary {
    fn into_response(self) -> Response {
        let status = match self.status() {
            Ok(status) => status,
            Err(code) => return self.into_problem(code).into_response(),
        };
        let json = serde_json::to_string(&self).unwrap_or_default();
        let mut response = (status, json).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(spread(seconds)));
        }
        if self.replayed {
            headers.insert(REPLAYED, TRUE);
        }
        if let Some(quota) = self.quota {
            quota.put(headers);
        }
        if self.local {
            headers.insert(STATUS, LOCAL);
        }
        response
    }
}
