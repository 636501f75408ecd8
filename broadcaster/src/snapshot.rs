//! What a subscription to newest values begins with: those the store has, as one answer with the places
//! up to which it has them. From there the log is read on, so nothing lies between the two.
//!
//! A stream does not depend on it. Without a snapshot its client is told so, with the reason, and shown
//! what is new.
//!
//! Values are in memory from the question until the client has taken them, so both are bounded together:
//! so many at once, half of them of one client, each of so many values and bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use pulsestream_shared::clock;
use pulsestream_shared::config::Config;
use pulsestream_shared::event::{ClientId, Event};
use pulsestream_shared::log::STORE_GROUP;
use pulsestream_shared::metadata::Metadata;
use pulsestream_shared::store::query::{QueryError, Snapshot, SnapshotQuery};
use pulsestream_shared::store::{EventQuery, Progress, StoredEvent};
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::cursor::Cursor;
use crate::filter::{Audience, Filter};

const DAY_MS: i64 = 86_400_000;
/// Bytes of one snapshot's events, about.
const MOST_BYTES: usize = 4 << 20;

/// Why a stream begins without the newest values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Without {
    /// The database does not answer.
    Unavailable,
    /// It would need longer than is waited for.
    TooSlow,
    /// There are more devices, values or bytes than one snapshot may have.
    TooLarge,
    /// Too many others are being read.
    Busy,
    /// What is stored lies too far behind the log, or is of another one.
    Behind,
    /// Nobody said whose values.
    Anonymous,
}

impl Without {
    /// Every one.
    pub(crate) const ALL: [Self; 6] = [
        Self::Unavailable,
        Self::TooSlow,
        Self::TooLarge,
        Self::Busy,
        Self::Behind,
        Self::Anonymous,
    ];

    /// The word a client is told.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::TooSlow => "too_slow",
            Self::TooLarge => "too_large",
            Self::Busy => "busy",
            Self::Behind => "behind",
            Self::Anonymous => "anonymous",
        }
    }
}

/// What a stream begins with, before its first event.
pub(crate) enum Opening {
    /// Nothing, and nothing else was asked for.
    Place,
    /// The newest values.
    Values(Values),
    /// Nothing, though the newest values were asked for.
    Without(Without),
}

/// Newest values on their way to a client, as the JSON of their events.
pub(crate) struct Values {
    left: VecDeque<Bytes>,
    #[expect(dead_code, reason = "given back when dropped")]
    turn: Turn,
}

impl Values {
    /// The next of them, so many bytes.
    pub(crate) fn next(&mut self, most_bytes: usize) -> Vec<Bytes> {
        let mut bytes = 0;
        let mut next = Vec::new();
        while bytes < most_bytes
            && let Some(value) = self.left.pop_front()
        {
            bytes += value.len();
            next.push(value);
        }
        next
    }

    /// All that are left.
    pub(crate) fn rest(self) -> impl Iterator<Item = Bytes> {
        self.left.into_iter()
    }

    /// True when the client has all of them.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
}

/// Reads snapshots.
pub(crate) struct Snapshots {
    query: Arc<dyn EventQuery>,
    turns: Turns,
    most_values: usize,
    patience: Duration,
    look_back_ms: i64,
}

impl Snapshots {
    pub(crate) fn new(query: Arc<dyn EventQuery>, config: &Config) -> Self {
        Self {
            query,
            turns: Turns::new(config.live.snapshots),
            most_values: config.live.snapshot_values,
            patience: config.live.snapshot_timeout,
            // A day beyond the retention, because whole days are dropped.
            look_back_ms: (i64::from(config.store.retention_days) + 1) * DAY_MS,
        }
    }

    /// The newest values of what is asked for, and the place in the log of `head` from which everything
    /// that is not among them follows.
    ///
    /// # Errors
    /// Why there are none; after `live.snapshot_timeout` at the latest.
    pub(crate) async fn read(
        &self,
        filter: &Filter,
        head: &Cursor,
    ) -> Result<(Values, Cursor), Without> {
        let Audience::Client(client) = filter.audience else { return Err(Without::Anonymous) };
        let end = Instant::now() + self.patience;
        let turn = timeout_at(end, self.turns.take(client)).await;
        let turn = turn.ok().flatten().ok_or(Without::Busy)?;
        let question = self.question(client, filter);
        let answer = timeout_at(end, self.query.snapshot(&question)).await;
        let snapshot = answer.map_err(|_| Without::TooSlow)?.map_err(without)?;
        if !snapshot.complete {
            return Err(Without::TooLarge);
        }
        let Snapshot { places, events, .. } = snapshot;
        let place = place_of(&places, head).ok_or(Without::Behind)?;
        Ok((Values { left: events.into_iter().map(json_of).collect(), turn }, place))
    }

    fn question(&self, client: ClientId, filter: &Filter) -> SnapshotQuery {
        let since_ms = clock::unix_ms() - self.look_back_ms;
        SnapshotQuery {
            client,
            group: STORE_GROUP.to_owned(),
            devices: filter.devices().to_vec(),
            event_types: filter.event_types().to_vec(),
            // A whole day is read or is not: no index entry in it has to be judged by its time.
            since_ms: since_ms.div_euclid(DAY_MS) * DAY_MS,
            limit: self.most_values,
            most_bytes: MOST_BYTES,
        }
    }
}

fn without(error: QueryError) -> Without {
    match error {
        QueryError::TooSlow => Without::TooSlow,
        QueryError::Store(error) if error.is_retryable() => {
            tracing::debug!(%error, "a stream begins without the newest values");
            Without::Unavailable
        }
        QueryError::Store(error) => {
            tracing::error!(%error, "the newest values cannot be read");
            Without::Unavailable
        }
    }
}

/// Where the log is read on; of a partition without a place nothing was stored. `None` when the places are
/// of another log.
fn place_of(places: &[Progress], head: &Cursor) -> Option<Cursor> {
    let start = Cursor { epoch: head.epoch, next: vec![0; head.next.len()].into() };
    let of_this_log = places.iter().all(|place| place.epoch == head.epoch);
    of_this_log.then(|| {
        places.iter().fold(start, |cursor, place| cursor.with(place.partition, place.next))
    })
}

/// The event as the log has it.
fn json_of(event: StoredEvent) -> Bytes {
    // The store holds checked JSON; should it ever not, what is sent must still be JSON.
    let raw = event.metadata.and_then(|json| RawValue::from_string(json).ok());
    let event = Event {
        id: event.id,
        device_id: event.device,
        event_type: event.event_type,
        value: event.value,
        timestamp_ms: event.timestamp_ms,
        metadata: raw.and_then(|raw| Metadata::from_json(&raw).ok()),
    };
    event.to_json().into()
}

/// Who may read or hold one now: one client never has more than half of what there is, if there are two.
struct Turns {
    all: Arc<Semaphore>,
    of_one: usize,
    of: Mutex<HashMap<ClientId, Weak<Semaphore>>>,
}

/// Given back when dropped, in this order.
#[expect(dead_code, reason = "given back when dropped")]
struct Turn(OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Turns {
    fn new(count: usize) -> Self {
        let all = Arc::new(Semaphore::new(count));
        Self { all, of_one: (count / 2).max(1), of: Mutex::default() }
    }

    async fn take(&self, client: ClientId) -> Option<Turn> {
        let own = self.of(client).acquire_owned().await.ok()?;
        let turn = self.all.clone().acquire_owned().await.ok()?;
        Some(Turn(turn, own))
    }

    fn of(&self, client: ClientId) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = of.get(&client).and_then(Weak::upgrade) {
            return known;
        }
        // Whoever waits or holds keeps its own alive; of the others nothing is to be known.
        of.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.of_one));
        of.insert(client, Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use uuid::Uuid;

    use super::*;

    fn head() -> Cursor {
        Cursor { epoch: Uuid::from_u128(1), next: [8, 8, 8].into() }
    }

    #[test]
    fn the_log_is_read_on_where_it_was_stored_up_to_and_another_log_is_not() {
        let place = |partition, epoch, next| Progress {
            partition,
            epoch: Uuid::from_u128(epoch),
            next,
            last_id: None,
        };
        let next = |places: &[Progress]| place_of(places, &head()).map(|place| place.next.to_vec());
        assert_eq!(next(&[place(2, 1, 5), place(0, 1, 7)]), Some(vec![7, 0, 5]));
        assert_eq!(next(&[]), Some(vec![0, 0, 0]), "nothing is stored yet");
        assert_eq!(next(&[place(0, 1, 7), place(1, 2, 7)]), None);
    }

    #[test]
    fn one_client_leaves_turns_to_the_others() {
        let turns = Turns::new(4);
        let take = |client| turns.take(ClientId(client)).now_or_never().flatten();
        let first = (take(1).unwrap(), take(1).unwrap());
        assert!(take(1).is_none(), "half of them is one client's share");
        let second = take(2).unwrap();
        drop(first);
        assert!(take(1).is_some());
        drop(second);
        assert_eq!(turns.of.lock().unwrap().len(), 2);
        assert!(
            take(3).is_some() && turns.of.lock().unwrap().len() == 1,
            "the others are forgotten"
        );
    }

    #[test]
    fn a_stored_event_is_sent_as_the_log_has_it() {
        let stored = StoredEvent {
            client: ClientId(7),
            id: pulsestream_shared::event::EventId(Uuid::from_u128(1)),
            device: pulsestream_shared::event::DeviceId(Uuid::from_u128(2)),
            event_type: "cpu".to_owned(),
            value: 21.0,
            timestamp_ms: 5,
            metadata: Some("{\"b\": \"x\", \"a\": 1.50}".to_owned()),
            received_at_us: 6,
            pos: 7,
        };
        let json = json_of(stored);
        let text = std::str::from_utf8(&json).unwrap();
        assert!(text.ends_with(
            "\"eventType\":\"cpu\",\"value\":21,\"timestamp\":5,\"metadata\":{\"b\":\"x\",\"a\":1.50}}"
        ));
    }
}
