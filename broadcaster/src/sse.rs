//! `GET /v1/stream/sse`: server-sent events.
//!
//! First `event: hello`; then each event is one unnamed message whose `id` is the cursor after it, so that
//! a break anywhere repeats nothing. Of newest values sent together the last one has the `id`. The body
//! pulls: what the client does not take is not made.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use rand::RngExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::access::Admitted;
use crate::close::Close;
use crate::cursor::Cursor;
use crate::delivery::{Delivery, Outgoing};
use crate::frames::{Kind, hello_members};
use crate::group::{Bell, wait_until};
use crate::metrics::Open;
use crate::parcel::{Form, Parcel};
use crate::resume::Start;
use crate::stream::Stream;
use crate::subscription::Gap;
use crate::wish::Wish;

/// What became of the cursor, for clients that look at headers.
const RECOVERED: HeaderName = HeaderName::from_static("stream-recovered");
/// Tells nginx not to gather the body.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// After what pause a client comes back when the connection broke: `retry`, milliseconds.
const RETRY_MS: std::ops::Range<u64> = 1_000..3_000;

struct Sse {
    stream: Arc<Stream>,
    admitted: Admitted,
    bell: Bell,
    delivery: Delivery,
    /// Sent first.
    hello: Option<String>,
    beat_at: Instant,
    end_at: Instant,
    over: bool,
    _open: Open,
}

/// The answer.
pub(crate) fn answer(
    stream: Arc<Stream>,
    admitted: Admitted,
    wish: Wish,
    start: Start,
) -> Response {
    let recovered =
        start.verdict.recovered().map_or("null", |yes| if yes { "true" } else { "false" });
    let retry_ms = rand::rng().random_range(RETRY_MS);
    let hello = format!("retry: {retry_ms}\n{}", hello_message(&start, stream.heartbeat_ms()));
    let bell = Bell::default();
    let delivery = stream.subscribe(wish, start, &bell);
    let open = stream.metrics.open("sse");
    let now = Instant::now();
    let first_beat = stream.config.ping_interval.mul_f64(rand::rng().random_range(0.1..1.0));
    let (beat_at, end_at) = (now + first_beat, now + stream.lifetime());
    let hello = Some(hello);
    let sse =
        Sse { stream, admitted, bell, delivery, hello, beat_at, end_at, over: false, _open: open };
    let body = Body::from_stream(stream::unfold(sse, async |mut sse| {
        let chunk = sse.next().await?;
        Some((Ok::<_, Infallible>(chunk), sse))
    }));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (BUFFERING, HeaderValue::from_static("no")),
        (RECOVERED, HeaderValue::from_static(recovered)),
    ];
    (headers, body).into_response()
}

impl Sse {
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        if let Some(hello) = self.hello.take() {
            return Some(hello.into());
        }
        let ended = self.admitted.grant.ended();
        loop {
            if ended.is_cancelled() {
                return Some(self.go_away(Close::Revoked));
            }
            if self.admitted.grant.is_over(Instant::now()) {
                return Some(self.go_away(Close::Expired));
            }
            if let Some(outgoing) = self.delivery.pull(Instant::now()) {
                return Some(self.encode(outgoing));
            }
            let due = self.delivery.due();
            let until = self.admitted.grant.until(self.end_at);
            // Cancel safe: nothing is taken before the next pull.
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                () = wait_until(due, &self.bell) => {}
                () = self.stream.drain.cancelled() => return Some(self.go_away(Close::Restart)),
                () = sleep_until(until) => {
                    if !self.admitted.grant.is_over(Instant::now()) {
                        return Some(self.go_away(Close::Lifetime));
                    }
                }
                () = sleep_until(self.beat_at) => return Some(self.beat()),
            }
        }
    }

    fn encode(&self, outgoing: Outgoing) -> Bytes {
        self.stream.metrics.sent.count(&outgoing, 1);
        match outgoing {
            Outgoing::Events(parcels) => Parcel::in_a_row(&parcels, messages),
            Outgoing::Values(values, place) => value_messages(&values, place.as_deref()).into(),
            Outgoing::Gap(Gap { reason, missed }) => {
                let cursor = self.cursor();
                let data = json!({"reason": reason.word(), "cursor": cursor, "missed": missed});
                named(Kind::Gap, &data, cursor.as_deref()).into()
            }
        }
    }

    /// A line without data keeps proxies from closing; `id` is told when it moved.
    fn beat(&mut self) -> Bytes {
        self.beat_at = Instant::now() + self.stream.config.ping_interval;
        match self.delivery.moved() {
            Some(place) => format!("id: {}\n\n", place.seal()).into(),
            None => Bytes::from_static(b":\n\n"),
        }
    }

    fn go_away(&mut self, close: Close) -> Bytes {
        self.over = true;
        let (code, reason) = close.frame();
        self.stream.metrics.closes.with_label_values(&[&code.to_string()]).inc();
        if close == Close::Revoked {
            let data = json!({"code": code, "reason": reason});
            return named(Kind::Goaway, &data, None).into();
        }
        drop(self.delivery.moved());
        let cursor = self.cursor();
        let after_ms = self.stream.reconnect_after_ms(close);
        let data = json!({
            "code": code, "reason": reason, "reconnectAfterMs": after_ms, "cursor": cursor,
        });
        format!("retry: {after_ms}\n{}", named(Kind::Goaway, &data, cursor.as_deref())).into()
    }

    fn cursor(&self) -> Option<String> {
        self.delivery.place().map(|place| place.seal())
    }
}

fn hello_message(start: &Start, heartbeat_ms: u64) -> String {
    named(Kind::Hello, &hello_members(start, heartbeat_ms), start.cursor().as_deref())
}

fn named(kind: Kind, data: &Value, id: Option<&str>) -> String {
    let name = kind.word();
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("event: {name}\n{id}data: {data}\n\n")
}

/// The parcel's events as messages, encoded once for all who are shown it.
fn messages(parcel: &Parcel) -> Bytes {
    parcel.encoded(&Form::Sse, || {
        let mut text = String::with_capacity(parcel.bytes() + parcel.events.len() * 160);
        for (index, event) in parcel.events.iter().enumerate() {
            // An event is JSON on one line, as the log has it.
            let Ok(json) = std::str::from_utf8(&event.json) else { continue };
            push_message(&mut text, json, parcel.place_after(index).as_ref());
        }
        text.into()
    })
}

/// Newest values the store has; the place comes with the last of them, or alone when there are none.
fn value_messages(values: &[Bytes], place: Option<&Cursor>) -> String {
    let mut text =
        String::with_capacity(values.iter().map(|value| value.len() + 8).sum::<usize>() + 160);
    for (index, json) in values.iter().enumerate() {
        let Ok(json) = std::str::from_utf8(json) else { continue };
        push_message(&mut text, json, place.filter(|_| index + 1 == values.len()));
    }
    match place {
        Some(place) if values.is_empty() => format!("id: {}\n\n", place.seal()),
        _ => text,
    }
}

/// A message without an id leaves a client at the place of the one before.
fn push_message(text: &mut String, json: &str, place: Option<&Cursor>) {
    if let Some(place) = place {
        text.push_str("id: ");
        text.push_str(&place.seal());
        text.push('\n');
    }
    text.push_str("data: ");
    text.push_str(json);
    text.push_str("\n\n");
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::range::tests::event;

    #[test]
    fn every_message_carries_the_cursor_after_it() {
        let place = Arc::new(Cursor { epoch: Uuid::from_u128(1), next: [4, 9].into() });
        let events = vec![event(5, 1), event(7, 2)];
        let parcel = Parcel::new((1, Instant::now()), 1, events, place.clone());
        let text = String::from_utf8(messages(&parcel).into()).unwrap();
        let ids: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
        let after = |next| place.with(1, next).seal();
        assert_eq!(ids, [after(6), after(9)]);
        assert_eq!(text.matches("data: {\"value\":1}\n\n").count(), 2);
    }

    #[test]
    fn of_newest_values_the_last_message_carries_the_cursor() {
        let place = Arc::new(Cursor { epoch: Uuid::from_u128(1), next: [4, 9].into() });
        let parcel = Parcel::new((1, Instant::now()), 1, vec![event(5, 1)], place.clone());
        let newest = parcel.newest(vec![event(3, 1), event(5, 1)], 7);
        let ids =
            |text: &str| text.lines().map(|line| line.starts_with("id: ")).collect::<Vec<_>>();
        assert_eq!(
            ids(std::str::from_utf8(&messages(&newest)).unwrap()),
            [false, false, true, false, false]
        );
        let values = [Bytes::from_static(b"{}"), Bytes::from_static(b"{}")];
        assert_eq!(ids(&value_messages(&values, Some(&place))), [false, false, true, false, false]);
        assert_eq!(ids(&value_messages(&values, None)), [false; 4]);
        assert_eq!(ids(&value_messages(&[], Some(&place))), [true, false]);
    }
}
