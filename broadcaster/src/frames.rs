//! The framed WebSocket's frames as text: every frame is one JSON object with `type`.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::cursor::Cursor;
use crate::frame;
use crate::parcel::{Form, Parcel};
use crate::resume::Start;
use crate::snapshot::Opening;
use crate::subscription::Gap;

/// What a frame is: its `type`, and the name of a server-sent event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Where the stream begins.
    Hello,
    /// Events of a subscription, and the place after them.
    Events,
    /// Events are missing.
    Gap,
    /// The connection ends.
    Goaway,
    /// A command was done.
    Ok,
    /// A command was not done.
    Error,
    /// The answer to a ping.
    Pong,
}

impl Kind {
    /// Every one; `docs/asyncapi.json` describes each.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 7] =
        [Self::Hello, Self::Events, Self::Gap, Self::Goaway, Self::Ok, Self::Error, Self::Pong];

    /// The word a client is told.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Events => "events",
            Self::Gap => "gap",
            Self::Goaway => "goaway",
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Pong => "pong",
        }
    }
}

/// Adds what a client is told of the place it came back with, and of the values it begins with.
fn told(mut frame: Value, start: &Start) -> Value {
    if let Value::Object(members) = &mut frame {
        members.insert("cursor".to_owned(), json!(start.cursor()));
        members.insert("recovered".to_owned(), json!(start.verdict.recovered()));
        if let Some(reason) = start.verdict.reason() {
            members.insert("reason".to_owned(), json!(reason));
        }
        members.extend(opening_members(&start.opening));
    }
    frame
}

/// `snapshot`: true when the newest values follow, false when they were asked for in vain.
pub(crate) fn opening_members(opening: &Opening) -> Map<String, Value> {
    let (follows, reason) = match opening {
        Opening::Place => return Map::new(),
        Opening::Values(_) => (true, None),
        Opening::Without(reason) => (false, Some(reason.word())),
    };
    let snapshot = ("snapshot".to_owned(), json!(follows));
    let reason = reason.map(|reason| ("snapshotReason".to_owned(), json!(reason)));
    [snapshot].into_iter().chain(reason).collect()
}

/// The first thing a client is told; without `type`, as server-sent events have it.
pub(crate) fn hello_members(start: &Start, heartbeat_ms: u64) -> Value {
    told(json!({"epoch": start.place.epoch, "heartbeatMs": heartbeat_ms}), start)
}

pub(crate) fn hello(start: &Start, heartbeat_ms: u64) -> String {
    typed(Kind::Hello, hello_members(start, heartbeat_ms))
}

/// One encoded frame of these parcels, the same bytes for all subscriptions of that name that are shown the
/// same.
pub(crate) fn events(sub: &Arc<str>, parcels: &[Arc<Parcel>]) -> Bytes {
    let (Some(first), Some(last)) = (parcels.first(), parcels.last()) else {
        return Bytes::new();
    };
    if parcels.iter().all(|parcel| parcel.shared) {
        let form = Form::Frame { sub: sub.clone(), from: first.seq };
        return last.encoded(&form, || frame::text(&encode_events(sub, parcels, &last.place)));
    }
    frame::text(&encode_events(sub, parcels, &last.place))
}

/// Newest values the store has; the place comes with the last of them.
pub(crate) fn values(sub: &str, values: &[Bytes], place: Option<&Cursor>) -> String {
    encode(sub, values.iter(), place)
}

/// A heartbeat: no events, but a place that moved.
pub(crate) fn moved(sub: &str, place: &Cursor) -> String {
    encode_events(sub, &[], place)
}

fn encode_events(sub: &str, parcels: &[Arc<Parcel>], place: &Cursor) -> String {
    let events = parcels.iter().flat_map(|parcel| &parcel.events);
    encode(sub, events.map(|event| &event.json), Some(place))
}

fn encode<'a>(
    sub: &str,
    events: impl Iterator<Item = &'a Bytes> + Clone,
    place: Option<&Cursor>,
) -> String {
    let bytes: usize = events.clone().map(|json| json.len() + 1).sum();
    let mut frame = String::with_capacity(256 + sub.len() + bytes);
    frame.push_str("{\"type\":\"");
    frame.push_str(Kind::Events.word());
    frame.push_str("\",\"sub\":");
    frame.push_str(&json!(sub).to_string());
    frame.push_str(",\"cursor\":");
    frame.push_str(&json!(place.map(Cursor::seal)).to_string());
    frame.push_str(",\"events\":[");
    // An event is JSON on one line, as the log has it.
    for (index, json) in events.filter_map(|json| std::str::from_utf8(json).ok()).enumerate() {
        if index > 0 {
            frame.push(',');
        }
        frame.push_str(json);
    }
    frame.push_str("]}");
    frame
}

pub(crate) fn gap(sub: &str, gap: Gap, place: Option<&Arc<Cursor>>) -> String {
    let members = json!({
        "sub": sub,
        "reason": gap.reason.word(),
        "cursor": place.map(|place| place.seal()),
        "missed": gap.missed,
    });
    typed(Kind::Gap, members)
}

/// The connection ends; a client goes on elsewhere from these places.
pub(crate) fn goaway<'a>(
    reconnect_after_ms: u64,
    places: impl Iterator<Item = (&'a str, Option<&'a Arc<Cursor>>)>,
) -> String {
    let sealed = |place: Option<&Arc<Cursor>>| json!(place.map(|place| place.seal()));
    let cursors: Map<_, _> = places.map(|(sub, place)| (sub.to_string(), sealed(place))).collect();
    let main = cursors.get("main").cloned().unwrap_or_default();
    let members =
        json!({"reconnectAfterMs": reconnect_after_ms, "cursor": main, "cursors": cursors});
    typed(Kind::Goaway, members)
}

/// A command was done.
pub(crate) fn ok(id: &Value) -> String {
    typed(Kind::Ok, json!({"id": id}))
}

/// A token counts from now on, until that time.
pub(crate) fn authorized(id: &Value, expires_at_ms: Option<i64>) -> String {
    typed(Kind::Ok, json!({"id": id, "expiresAt": expires_at_ms}))
}

/// A subscription began.
pub(crate) fn subscribed(id: &Value, sub: &str, start: &Start) -> String {
    typed(Kind::Ok, told(json!({"id": id, "sub": sub}), start))
}

/// A command was not done.
pub(crate) fn error(id: &Value, code: &str, detail: &str) -> String {
    typed(Kind::Error, json!({"id": id, "code": code, "detail": detail}))
}

pub(crate) fn pong(id: &Value) -> String {
    match id {
        Value::Null => typed(Kind::Pong, json!({})),
        id => typed(Kind::Pong, json!({"id": id})),
    }
}

/// The frame with `type` in front, where a person who reads a stream looks first.
fn typed(kind: Kind, members: Value) -> String {
    let name = kind.word();
    let members = members.to_string();
    let rest = members.trim_start_matches('{');
    let comma = if rest == "}" { "" } else { "," };
    format!("{{\"type\":\"{name}\"{comma}{rest}")
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use uuid::Uuid;

    use super::*;
    use crate::frame::tests::texts;
    use crate::range::tests::event;
    use crate::resume::Verdict;
    use crate::snapshot::Without;

    fn place() -> Arc<Cursor> {
        Arc::new(Cursor { epoch: Uuid::from_u128(1), next: [3].into() })
    }

    /// The text of one encoded frame.
    fn only(frame: &[u8]) -> String {
        let [text] = texts(frame).try_into().unwrap();
        text
    }

    fn read(frame: &str) -> Value {
        serde_json::from_str(frame).unwrap()
    }

    #[test]
    fn events_are_one_object_with_what_the_log_has() {
        let parcel = |seq, events| Parcel::new((seq, Instant::now()), 0, events, place());
        let parcels = [parcel(4, vec![event(1, 1)]), parcel(5, vec![event(2, 2), event(3, 3)])];
        let frame = events(&"a \"b\"".into(), &parcels.map(Arc::new));
        let expected = json!({
            "type": "events", "sub": "a \"b\"", "cursor": place().seal(),
            "events": [{"value": 1}, {"value": 1}, {"value": 1}],
        });
        assert_eq!(read(&only(&frame)), expected);
        assert_eq!(read(&moved("main", &place()))["events"], json!([]));
    }

    #[test]
    fn one_frame_is_shared_by_those_who_are_shown_the_same_under_one_name() {
        let parcel = |seq| Parcel::new((seq, Instant::now()), 0, vec![event(1, 1)], place());
        let queue = [Arc::new(parcel(4).shared()), Arc::new(parcel(5).shared())];
        let (main, other) = (Arc::from("main"), Arc::from("other"));
        let pointer = |sub, parcels| events(sub, parcels).as_ptr();
        assert_eq!(pointer(&main, &queue), pointer(&main, &queue));
        assert_ne!(pointer(&main, &queue), pointer(&other, &queue));
        assert_ne!(pointer(&main, &queue), pointer(&main, &queue[1..]));
        // One that was shown less of the first is not sent what others are.
        let cut = [Arc::new(queue[0].cut(Vec::new(), place())), queue[1].clone()];
        assert_eq!(read(&only(&events(&main, &cut)))["events"], json!([{"value": 1}]));
    }

    #[test]
    fn the_other_frames_begin_with_their_type() {
        let start = |verdict| Start::at(Cursor::clone(&place()), verdict);
        let frame = hello(&start(Verdict::FromNow), 25_000);
        assert!(frame.starts_with("{\"type\":\"hello\",") && read(&frame)["recovered"].is_null());
        let lost = Verdict::Lost(crate::resume::Lost::Expired);
        let frame = read(&subscribed(&json!(7), "a", &start(lost)));
        assert_eq!((&frame["recovered"], &frame["reason"]), (&json!(false), &json!("expired")));
        assert_eq!(pong(&Value::Null), "{\"type\":\"pong\"}");
        let place = place();
        let frame = read(&goaway(5, [("main", Some(&place))].into_iter()));
        assert_eq!(
            (&frame["cursor"], &frame["cursors"]["main"]),
            (&json!(place.seal()), &frame["cursor"])
        );
    }

    #[test]
    fn values_name_a_place_only_when_all_of_them_were_sent() {
        let json = [Bytes::from_static(b"{\"value\":1}"), Bytes::from_static(b"{\"value\":2}")];
        let frame = read(&values("main", &json, None));
        assert_eq!((&frame["cursor"], &frame["events"][1]["value"]), (&Value::Null, &json!(2)));
        assert_eq!(read(&values("main", &[], Some(&place())))["cursor"], place().seal());
        let opening = Opening::Without(Without::Busy);
        let start = Start { opening, ..Start::at(Cursor::clone(&place()), Verdict::FromNow) };
        let frame = read(&hello(&start, 25_000));
        assert_eq!((&frame["snapshot"], &frame["cursor"]), (&json!(false), &json!(place().seal())));
        assert_eq!(frame["snapshotReason"], "busy");
    }
}
