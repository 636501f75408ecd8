//! `GET /v1/stream/poll`: what follows a cursor, waited for if nothing does yet.
//!
//! Without a cursor it answers at once with the present one and no events: the place to begin at. With
//! `mode=latest` it then answers the newest values, and later of what followed the newest.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use pulsestream_shared::problem::{Code, Problem};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep_until};

use crate::access::Admitted;
use crate::cursor::Cursor;
use crate::delivery::{Delivery, Outgoing};
use crate::filter::faults;
use crate::frames::opening_members;
use crate::group::{Bell, wait_until};
use crate::parcel::Parcel;
use crate::resume::{Start, Verdict};
use crate::snapshot::Opening;
use crate::stream::Stream;
use crate::wish::{Mode, Wish};

const DEFAULT_LIMIT: usize = 100;
const MOST: usize = 1_000;
const MOST_WAIT: u64 = 30;
/// Bytes of events after which an answer takes no more.
const MOST_BYTES: usize = 4 << 20;

/// How long an answer waits for a read of the log, whatever `wait` says.
const LOG_PATIENCE: Duration = Duration::from_secs(5);

/// How much, and how long to wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    limit: usize,
    wait: Duration,
}

impl Terms {
    /// Reads `limit` and `wait` (seconds) from a query string.
    ///
    /// # Errors
    /// 400 with every fault.
    pub(crate) fn parse(query: &str) -> Result<Self, Problem> {
        let mut terms = Self { limit: DEFAULT_LIMIT, wait: Duration::ZERO };
        let errors = faults(query, |name, value| {
            match name {
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MOST).contains(limit));
                    terms.limit = limit.ok_or("expected a whole number, 1 to 1000")?;
                }
                "wait" => {
                    let wait = value.parse().ok().filter(|wait| *wait <= MOST_WAIT);
                    let wait = wait.ok_or("expected a whole number of seconds, 0 to 30")?;
                    terms.wait = Duration::from_secs(wait);
                }
                _ => {}
            }
            Ok(())
        });
        if errors.is_empty() {
            Ok(terms)
        } else {
            Err(Problem::from(Code::BadRequest).errors(errors))
        }
    }
}

/// The answer.
pub(crate) async fn answer(
    stream: Arc<Stream>,
    admitted: Admitted,
    wish: Wish,
    start: Start,
    terms: Terms,
) -> Response {
    if start.verdict != Verdict::Recovered {
        return begin(start);
    }
    let _open = stream.metrics.open("poll");
    let bell = Bell::default();
    let mode = match wish.mode {
        Mode::Latest(_) => Mode::Latest(Duration::ZERO),
        Mode::Live | Mode::Window(_) => Mode::Live,
    };
    let delivery = stream.subscribe(Wish { mode, ..wish }, start, &bell);
    let begun_at = Instant::now();
    let mut page = Page { delivery, terms, begun_at, json: String::new(), count: 0, end: None };
    let ended = admitted.grant.ended();
    let until = admitted.grant.until(begun_at + terms.wait);
    tokio::select! {
        biased;
        () = ended.cancelled() => return Problem::from(Code::InvalidApiKey).into_response(),
        () = page.fill(&bell, until) => {}
        () = stream.drain.cancelled() => page.take(),
    }
    page.render(&stream)
}

/// How an answer ended before there was nothing more.
enum End {
    /// The limit was reached in the middle of a parcel, behind this place.
    Full(Cursor),
    /// Events are missing, and nothing came before them.
    Gap(&'static str),
}

struct Page {
    delivery: Delivery,
    terms: Terms,
    begun_at: Instant,
    json: String,
    count: usize,
    end: Option<End>,
}

impl Page {
    /// Takes what is there; waits for the first of it until that moment, and a little longer for what
    /// must be read from the log.
    async fn fill(&mut self, bell: &Bell, until: Instant) {
        loop {
            self.take();
            let caught_up = self.delivery.subscription.is_live();
            let until = if caught_up { until } else { until.max(self.begun_at + LOG_PATIENCE) };
            let enough = self.end.is_some() || (self.count > 0 && caught_up);
            if enough || Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = wait_until(self.delivery.due(), bell) => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Takes what is there, up to the limit.
    fn take(&mut self) {
        while self.end.is_none() {
            let place = self.delivery.place().cloned();
            match self.delivery.pull(Instant::now()) {
                None => return,
                Some(Outgoing::Events(parcels)) => {
                    parcels.iter().for_each(|parcel| self.add(parcel));
                }
                // What came before it is answered first; the next answer begins with the gap.
                Some(Outgoing::Gap(_)) if self.count > 0 => {
                    self.end = place.map(|place| End::Full(Cursor::clone(&place)));
                }
                // Values come at the beginning, and that is answered otherwise.
                Some(Outgoing::Values(..)) => {}
                Some(Outgoing::Gap(gap)) => self.end = Some(End::Gap(gap.reason.word())),
            }
        }
    }

    fn add(&mut self, parcel: &Parcel) {
        for (index, event) in parcel.events.iter().enumerate() {
            // An event is JSON on one line, as the log has it.
            let Ok(json) = std::str::from_utf8(&event.json) else { continue };
            if self.count > 0 {
                self.json.push(',');
            }
            self.json.push_str(json);
            self.count += 1;
            let full = self.count >= self.terms.limit || self.json.len() > MOST_BYTES;
            // Newest values have a place together, so all of them are answered.
            if full && let Some(place) = parcel.place_after(index) {
                self.end = Some(End::Full(place));
                return;
            }
        }
    }

    fn render(mut self, stream: &Stream) -> Response {
        let (mut told, mut place) = (Told { recovered: Some(true), ..Told::default() }, None);
        match self.end.take() {
            Some(End::Gap(reason)) => {
                stream.metrics.sent.gaps.with_label_values(&[reason]).inc();
                told = Told { recovered: Some(false), reason: Some(reason), ..told };
            }
            Some(End::Full(full)) => place = Some(full),
            None => drop(self.delivery.moved()),
        }
        stream.metrics.sent.deliveries.inc_by(self.count as u64);
        render(place.as_ref().or(self.delivery.place().map(Arc::as_ref)), told, &self.json)
    }
}

/// The answer to who has no place to go on from.
fn begin(start: Start) -> Response {
    let (recovered, reason) = (start.verdict.recovered(), start.verdict.reason());
    let told = Told { recovered, reason, more: opening_members(&start.opening) };
    let mut json = String::new();
    if let Opening::Values(values) = start.opening {
        let values: Vec<_> = values.rest().collect();
        let texts = values.iter().filter_map(|json| std::str::from_utf8(json).ok());
        texts.for_each(|text| {
            json.push_str(if json.is_empty() { "" } else { "," });
            json.push_str(text);
        });
    }
    render(Some(&start.place), told, &json)
}

/// What an answer says beside its cursor and its events.
#[derive(Default)]
struct Told {
    recovered: Option<bool>,
    reason: Option<&'static str>,
    more: Map<String, Value>,
}

fn render(place: Option<&Cursor>, told: Told, events: &str) -> Response {
    let cursor = json!(place.map(Cursor::seal));
    let recovered = json!(told.recovered);
    let mut json = format!("{{\"cursor\":{cursor},\"recovered\":{recovered}");
    let reason = told.reason.map(|reason| ("reason".to_owned(), json!(reason)));
    for (name, value) in reason.into_iter().chain(told.more) {
        json.push_str(&format!(",\"{name}\":{value}"));
    }
    json.push_str(&format!(",\"events\":[{events}]}}"));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, json).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_and_wait_are_bounded() {
        let terms = Terms::parse("limit=7&wait=30&x=1").unwrap();
        assert_eq!(terms, Terms { limit: 7, wait: Duration::from_secs(30) });
        for query in ["limit=0", "limit=1001", "wait=31", "wait=-1", "limit=x"] {
            assert!(Terms::parse(query).is_err(), "{query}");
        }
    }
}
