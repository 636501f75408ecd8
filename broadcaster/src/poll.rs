//! `GET /v1/stream/poll`: what follows a cursor, waited for if nothing does yet.
//!
//! Without a cursor it answers at once with the present one and no events: the place to begin at.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use pulsestream_shared::problem::{Code, Problem};
use tokio::time::{Instant, sleep_until};

use crate::access::Admitted;
use crate::cursor::Cursor;
use crate::delivery::{Delivery, Outgoing};
use crate::filter::faults;
use crate::group::{Bell, wait_until};
use crate::parcel::Parcel;
use crate::resume::{Start, Verdict};
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
    let verdict = start.verdict;
    if verdict != Verdict::Recovered {
        return render(&start.place, verdict.recovered(), verdict.reason(), "");
    }
    let _open = stream.metrics.open("poll");
    let bell = Bell::default();
    let delivery = stream.subscribe(Wish { mode: Mode::Live, ..wish }, start, &bell);
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
            let place = self.delivery.place().clone();
            match self.delivery.pull(Instant::now()) {
                None => return,
                Some(Outgoing::Events(parcels)) => {
                    parcels.iter().for_each(|parcel| self.add(parcel));
                }
                // What came before it is answered first; the next answer begins with the gap.
                Some(Outgoing::Gap(_)) if self.count > 0 => {
                    self.end = Some(End::Full(Cursor::clone(&place)));
                }
                Some(Outgoing::Gap(reason)) => self.end = Some(End::Gap(reason.word())),
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
            if self.count >= self.terms.limit || self.json.len() > MOST_BYTES {
                self.end = Some(End::Full(parcel.place_after(index)));
                return;
            }
        }
    }

    fn render(mut self, stream: &Stream) -> Response {
        match self.end.take() {
            Some(End::Gap(reason)) => {
                stream.metrics.gaps.with_label_values(&[reason]).inc();
                render(self.delivery.place(), Some(false), Some(reason), "")
            }
            Some(End::Full(place)) => render(&place, Some(true), None, &self.json),
            None => {
                drop(self.delivery.moved());
                render(self.delivery.place(), Some(true), None, &self.json)
            }
        }
    }
}

fn render(
    place: &Cursor,
    recovered: Option<bool>,
    reason: Option<&'static str>,
    events: &str,
) -> Response {
    let recovered = recovered.map_or("null".to_owned(), |yes| yes.to_string());
    let reason = reason.map(|reason| format!(",\"reason\":\"{reason}\"")).unwrap_or_default();
    let cursor = place.seal();
    let json = format!(
        "{{\"cursor\":\"{cursor}\",\"recovered\":{recovered}{reason},\"events\":[{events}]}}"
    );
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
