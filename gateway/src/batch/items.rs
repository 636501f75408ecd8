//! The events of a batch, each judged by itself, with its place in the request.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use pulsestream_shared::config;
use pulsestream_shared::event::{DeviceId, EventId};
use pulsestream_shared::problem::{Code, Problem};
use serde::Deserialize;
use sha1::{Digest as _, Sha1};
use uuid::Builder;

use super::split::{Format, split};
use crate::body;
use crate::commit::BatchEvent;
use crate::idempotency::fingerprint;

/// A batch as it was sent.
pub(crate) struct Items {
    /// The valid events, no id twice.
    pub(crate) events: Arc<[BatchEvent]>,
    /// What stands at each index of the request.
    pub(crate) places: Vec<Place>,
}

/// What stands at one index.
pub(crate) enum Place {
    /// This one of the valid events.
    Event(usize),
    /// An event that stands earlier in the batch already.
    Repeat(EventId),
    /// No valid event.
    Invalid(Option<EventId>, Problem),
}

impl Items {
    /// Reads a decompressed body. `key` is the request's, from which ids are derived.
    ///
    /// # Errors
    /// 400 for what is no batch, 413 for too many events, 422 for none.
    pub(crate) fn read(
        body: &[u8],
        format: Format,
        key: Option<EventId>,
        now_ms: i64,
        config: &config::Ingest,
    ) -> Result<Self, Problem> {
        let texts = split(body, format)?;
        if texts.len() > config.max_batch_events {
            let most = config.max_batch_events;
            return Err(Problem::from(Code::PayloadTooLarge)
                .detail(format!("a batch holds at most {most} events, this one {}", texts.len())));
        }
        if texts.is_empty() {
            return Err(Problem::from(Code::BatchInvalid).detail("the batch holds no event"));
        }
        let events = Vec::with_capacity(texts.len());
        let mut judge = Judge { config, now_ms, events, first: None };
        let mut places = Vec::with_capacity(texts.len());
        for (index, text) in texts.into_iter().enumerate() {
            let derived = key.map(|key| derived_id(key, index));
            places.push(judge.place(text, derived));
        }
        Ok(Self { events: judge.events.into(), places })
    }

    /// How many of the events each device sent.
    pub(crate) fn per_device(&self) -> Vec<(DeviceId, u32)> {
        let mut devices: Vec<_> = self.events.iter().map(|event| event.event.device_id).collect();
        devices.sort_unstable();
        let runs = devices.chunk_by(|left, right| left == right);
        let count = |run: &[DeviceId]| {
            run.first().map(|device| (*device, u32::try_from(run.len()).unwrap_or(u32::MAX)))
        };
        runs.filter_map(count).collect()
    }
}

/// Judges the events of a batch, one after the other.
struct Judge<'a> {
    config: &'a config::Ingest,
    now_ms: i64,
    events: Vec<BatchEvent>,
    /// Which of them has each id, once one has brought its own. Derived ids too: a client can send one of its
    /// batch's as an event's own; but among themselves they never are the same.
    first: Option<HashMap<EventId, usize>>,
}

impl Judge<'_> {
    fn place(&mut self, text: &[u8], derived: Option<EventId>) -> Place {
        let config = self.config;
        if text.len() > config.max_body_bytes {
            let detail = format!("an event is at most {} bytes", config.max_body_bytes);
            return Place::Invalid(derived, Problem::from(Code::PayloadTooLarge).detail(detail));
        }
        let draft = match body::read(text, body::Id::Field(derived), self.now_ms, config) {
            Ok(draft) => draft,
            Err(problem) => return Place::Invalid(id_in(text).or(derived), problem),
        };
        let id = draft.event.id;
        let own_id = derived != Some(id);
        if let Some(first) = self.first_of(id, own_id) {
            if fingerprint(&first.event) == fingerprint(&draft.event) {
                return Place::Repeat(id);
            }
            return Place::Invalid(Some(id), Code::IdempotencyMismatch.into());
        }
        self.events.push(BatchEvent { event: draft.event, own_id, too_old: draft.too_old });
        Place::Event(self.events.len() - 1)
    }

    /// The event that has the id; when none has, the next one will.
    fn first_of(&mut self, id: EventId, own_id: bool) -> Option<&BatchEvent> {
        if self.first.is_none() && own_id {
            let ids = self.events.iter().enumerate().map(|(at, event)| (event.event.id, at));
            self.first = Some(ids.collect());
        }
        match self.first.as_mut()?.entry(id) {
            Entry::Vacant(place) => {
                place.insert(self.events.len());
                None
            }
            Entry::Occupied(at) => self.events.get(*at.get()),
        }
    }
}

/// The id of the event at an index, for events that bring none: UUIDv5 with the request's key as its
/// namespace and the index in decimal as its name.
fn derived_id(key: EventId, index: usize) -> EventId {
    let digest = Sha1::new_with_prefix(key.0.as_bytes())
        .chain_update(itoa::Buffer::new().format(index))
        .finalize();
    let [id @ .., _, _, _, _] = digest.0;
    EventId(Builder::from_sha1_bytes(id).into_uuid())
}

/// The id of an event that is faulty elsewhere, so that its sender can tell which it was.
fn id_in(text: &[u8]) -> Option<EventId> {
    #[derive(Deserialize)]
    struct OnlyId {
        id: String,
    }
    serde_json::from_slice(text).ok().and_then(|OnlyId { id }| EventId::parse(&id))
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::config::load;
    use uuid::Uuid;

    use super::*;

    const NOW_MS: i64 = 1_795_194_569_018;
    const DEVICE: &str = "73d7049a-9f6b-4a36-8d6c-0d6a8a4a4a4a";

    fn event(id: Option<&str>, value: f64) -> String {
        let id = id.map(|id| format!("\"id\":\"{id}\",")).unwrap_or_default();
        format!(
            r#"{{{id}"deviceId":"{DEVICE}","eventType":"cpu","value":{value},"timestamp":{NOW_MS}}}"#
        )
    }

    fn read(events: &[String], key: Option<u128>) -> Items {
        let config = load(None, std::iter::empty(), &[]).unwrap().config.ingest;
        let body = format!("[{}]", events.join(","));
        let key = key.map(|key| EventId(Uuid::from_u128(key)));
        Items::read(body.as_bytes(), Format::Json, key, NOW_MS, &config).unwrap()
    }

    fn shape(items: &Items) -> String {
        let letter = |place: &Place| match place {
            Place::Event(_) => 'e',
            Place::Repeat(_) => 'r',
            Place::Invalid(..) => 'i',
        };
        items.places.iter().map(letter).collect()
    }

    #[test]
    fn ids_come_from_the_events_or_from_the_key_and_the_index() {
        let own = Uuid::from_u128(9).to_string();
        let all = [event(None, 1.0), event(Some(&own), 1.0), event(None, 1.0)];
        let items = read(&all, Some(5));
        assert_eq!(shape(&items), "eee");
        let ids: Vec<_> = items.events.iter().map(|event| event.event.id).collect();
        assert_eq!(ids[1].to_string(), own);
        assert_eq!(ids[0], derived_id(EventId(Uuid::from_u128(5)), 0));
        assert_eq!(ids[2], derived_id(EventId(Uuid::from_u128(5)), 2));
        assert_ne!(ids[0], ids[2]);
        assert_eq!(items.events.iter().map(|e| e.own_id).collect::<Vec<_>>(), [false, true, false]);
        let again = read(&all, Some(5));
        assert_eq!(again.events[2].event.id, ids[2], "the same every time");
    }

    #[test]
    fn without_a_key_an_event_needs_an_id() {
        let own = Uuid::from_u128(9).to_string();
        assert_eq!(shape(&read(&[event(None, 1.0), event(Some(&own), 1.0)], None)), "ie");
    }

    #[test]
    fn the_first_of_an_id_wins_a_repeat_is_one_and_another_body_is_refused() {
        let own = Uuid::from_u128(9).to_string();
        let all = [event(Some(&own), 1.0), event(Some(&own), 1.0), event(Some(&own), 2.0)];
        let items = read(&all, None);
        assert_eq!(shape(&items), "eri");
        let Place::Invalid(id, problem) = &items.places[2] else { panic!() };
        assert_eq!(id.unwrap().to_string(), own);
        assert_eq!(problem.code(), Code::IdempotencyMismatch);
    }

    #[test]
    fn a_derived_id_sent_as_another_events_own_is_that_id() {
        let derived = derived_id(EventId(Uuid::from_u128(5)), 1).to_string();
        assert_eq!(shape(&read(&[event(Some(&derived), 1.0), event(None, 2.0)], Some(5))), "ei");
        assert_eq!(shape(&read(&[event(Some(&derived), 1.0), event(None, 1.0)], Some(5))), "er");
        let derived = derived_id(EventId(Uuid::from_u128(5)), 0).to_string();
        assert_eq!(shape(&read(&[event(None, 2.0), event(Some(&derived), 1.0)], Some(5))), "ei");
    }

    #[test]
    fn a_faulty_event_takes_no_other_along_and_keeps_its_name() {
        let own = Uuid::from_u128(9).to_string();
        let faulty = event(Some(&own), 1.0).replace("cpu", "c");
        let items = read(&[faulty, "7".to_owned(), event(None, 1.0)], Some(5));
        assert_eq!(shape(&items), "iie");
        let Place::Invalid(id, _) = &items.places[0] else { panic!() };
        assert_eq!(id.unwrap().to_string(), own);
    }

    #[test]
    fn too_many_events_are_refused_as_a_whole() {
        let config = load(None, std::iter::empty(), &[]).unwrap().config.ingest;
        let body = "{}\n".repeat(config.max_batch_events + 1);
        let read = Items::read(body.as_bytes(), Format::Ndjson, None, NOW_MS, &config);
        assert_eq!(read.map(drop).unwrap_err().code(), Code::PayloadTooLarge);
        let empty = Items::read(b"[]", Format::Json, None, NOW_MS, &config);
        assert_eq!(empty.map(drop).unwrap_err().code(), Code::BatchInvalid);
    }
}
