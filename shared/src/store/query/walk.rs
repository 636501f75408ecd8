//! How a page of events is searched for: slice of time by slice of time, until it is full.
//!
//! No index leads from a client to its newest events whatever their device, nor to those of one type.
//! Time does: rows lie nearly in its order. So the search reads a short slice first and makes each next
//! one [`GROWTH`] times as long: where events are dense it reads little more than a page, where they are
//! rare a dozen statements cover a month. A search that has used up its time ends where it is and hands
//! out that place. A device without a type needs none of this, its index ends by itself: one slice.
//!
//! A state machine: no clock, no I/O.

use std::time::Duration;

use super::{EventsQuery, Order, Page, SortKey, Span, StoredEvent};

/// Length of the first slice. At 10,000 events a second over all clients it holds 100,000 rows.
const FIRST_MS: i64 = 10_000;

const GROWTH: i64 = 4;

/// The next part to read: the events of the query within `span`, in its order, at most `limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Slice {
    pub(in crate::store) span: Span,
    pub(in crate::store) limit: usize,
}

/// A search under way.
pub(in crate::store) struct Walk<'q> {
    query: &'q EventsQuery,
    /// What was not read yet.
    left: Span,
    length_ms: i64,
    /// What is left of the time for reading; a slice that begins may outlast it.
    time_left: Duration,
    read_any: bool,
    rows: Vec<StoredEvent>,
}

impl<'q> Walk<'q> {
    /// Begins a search that starts no slice after `time` was spent reading.
    pub(in crate::store) fn new(query: &'q EventsQuery, time: Duration) -> Self {
        let mut left = query.span;
        match (query.after, query.order) {
            (Some(after), Order::Ascending) => left.from_ms = left.from_ms.max(after.timestamp_ms),
            (Some(after), Order::Descending) => {
                left.to_ms = left.to_ms.min(after.timestamp_ms.saturating_add(1));
            }
            (None, _) => {}
        }
        let indexed = query.device.is_some() && query.event_type.is_none();
        let length_ms = if indexed { i64::MAX } else { FIRST_MS };
        Self { query, left, length_ms, time_left: time, read_any: false, rows: Vec::new() }
    }

    /// What to read next; `None` when the page is ready.
    pub(in crate::store) fn next_slice(&self) -> Option<Slice> {
        if self.is_exhausted() || self.time_left.is_zero() || self.rows.len() >= self.query.limit {
            return None;
        }
        let Span { from_ms, to_ms } = self.left;
        let span = match self.query.order {
            Order::Ascending => {
                Span { from_ms, to_ms: to_ms.min(from_ms.saturating_add(self.length_ms)) }
            }
            Order::Descending => {
                // Hardly anything lies ahead of the clock, so that part comes with the first slice.
                let edge_ms = to_ms.min(self.query.now_ms);
                let from_ms = from_ms.max(edge_ms.saturating_sub(self.length_ms)).min(to_ms - 1);
                Span { from_ms, to_ms }
            }
        };
        Some(Slice { span, limit: self.query.limit - self.rows.len() + 1 })
    }

    /// Takes what a slice held, and how long reading it took.
    pub(in crate::store) fn read(&mut self, slice: Slice, rows: Vec<StoredEvent>, took: Duration) {
        self.rows.extend(rows);
        self.read_any = true;
        self.time_left = self.time_left.saturating_sub(took);
        self.length_ms = self.length_ms.saturating_mul(GROWTH);
        if self.rows.len() <= self.query.limit {
            match self.query.order {
                Order::Ascending => self.left.from_ms = slice.span.to_ms,
                Order::Descending => self.left.to_ms = slice.span.from_ms,
            }
        }
    }

    /// True when there is something to hand out although the last slice could not be read: at least a
    /// place further on than the one the search began at.
    pub(in crate::store) fn has_come_forward(&self) -> bool {
        self.read_any
    }

    /// The page as far as it was read.
    pub(in crate::store) fn into_page(mut self) -> Page<StoredEvent, SortKey> {
        let exhausted = self.is_exhausted();
        let full = self.rows.len() >= self.query.limit;
        self.rows.truncate(self.query.limit);
        let next = match self.rows.last() {
            _ if exhausted => None,
            Some(last) if full => Some(last.sort_key()),
            // Everything before it in the order was read, nothing behind it was.
            _ => Some(match self.query.order {
                Order::Ascending => SortKey::start_of(self.left.from_ms),
                Order::Descending => SortKey::start_of(self.left.to_ms),
            }),
        };
        Page { rows: self.rows, next }
    }

    fn is_exhausted(&self) -> bool {
        self.left.from_ms >= self.left.to_ms
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::ClientId;
    use crate::testing::store::{NOW_MS, row};

    const TIME: Duration = Duration::from_secs(5);

    fn query(order: Order, limit: usize) -> EventsQuery {
        let span = Span { from_ms: NOW_MS - 100_000_000, to_ms: NOW_MS + 86_400_000 };
        EventsQuery {
            client: ClientId(1),
            device: None,
            event_type: None,
            span,
            order,
            after: None,
            limit,
            now_ms: NOW_MS,
        }
    }

    fn event(id: u128, timestamp_ms: i64, pos: i64) -> StoredEvent {
        let row = row(0, pos, id);
        StoredEvent {
            client: row.client,
            id: row.event.id,
            device: row.event.device_id,
            event_type: row.event.event_type,
            value: row.event.value,
            timestamp_ms,
            metadata: None,
            received_at_us: 0,
            pos,
        }
    }

    /// What an engine answers for a slice.
    fn select(table: &[StoredEvent], query: &EventsQuery, slice: Slice) -> Vec<StoredEvent> {
        let mut rows: Vec<_> = table
            .iter()
            .filter(|event| (slice.span.from_ms..slice.span.to_ms).contains(&event.timestamp_ms))
            .filter(|event| match (query.after, query.order) {
                (None, _) => true,
                (Some(after), Order::Ascending) => event.sort_key() > after,
                (Some(after), Order::Descending) => event.sort_key() < after,
            })
            .cloned()
            .collect();
        rows.sort_by_key(StoredEvent::sort_key);
        if query.order == Order::Descending {
            rows.reverse();
        }
        rows.truncate(slice.limit);
        rows
    }

    fn page(
        table: &[StoredEvent],
        query: &EventsQuery,
        cost: Duration,
    ) -> Page<StoredEvent, SortKey> {
        let mut walk = Walk::new(query, TIME);
        while let Some(slice) = walk.next_slice() {
            walk.read(slice, select(table, query, slice), cost);
        }
        walk.into_page()
    }

    /// Close together, at the edges of slices, and far apart; few, so that many events meet.
    const AGO_S: [i64; 12] = [-3, 0, 1, 2, 9, 10, 11, 50, 51, 700, 9_000, 90_000];

    proptest! {
        #[test]
        fn pages_give_every_event_once_and_in_order_however_slow_the_reading(
            times in prop::collection::vec((prop::sample::select(&AGO_S[..]), 0..3_i64), 0..60),
            limit in 1..9_usize,
            descending: bool,
            cost_ms in 0..3_000_u64,
        ) {
            let table: Vec<_> = (1..)
                .zip(times)
                .map(|(id, (ago_s, pos))| event(id, NOW_MS - ago_s * 1_000, pos))
                .collect();
            let order = if descending { Order::Descending } else { Order::Ascending };
            let mut query = query(order, limit);
            let mut seen = Vec::new();
            loop {
                let page = page(&table, &query, Duration::from_millis(cost_ms));
                prop_assert!(page.rows.len() <= limit);
                seen.extend(page.rows.iter().map(StoredEvent::sort_key));
                match page.next {
                    Some(next) => query.after = Some(next),
                    None => break,
                }
            }
            let mut all: Vec<_> = table.iter().map(StoredEvent::sort_key).collect();
            all.sort_unstable();
            if descending {
                all.reverse();
            }
            prop_assert_eq!(seen, all);
        }
    }

    #[test]
    fn a_month_without_events_takes_few_slices_and_a_dense_minute_one() {
        let slices = |table: &[StoredEvent]| {
            let mut query = query(Order::Descending, 50);
            query.span.from_ms = NOW_MS - 31 * 86_400_000;
            let mut walk = Walk::new(&query, TIME);
            let mut count = 0;
            while let Some(slice) = walk.next_slice() {
                count += 1;
                walk.read(slice, select(table, &query, slice), Duration::ZERO);
            }
            count
        };
        assert_eq!(slices(&[]), 10);
        let dense: Vec<_> =
            (1..500_u32).map(|i| event(i.into(), NOW_MS - i64::from(i), 1)).collect();
        assert_eq!(slices(&dense), 1);
    }

    #[test]
    fn a_search_that_took_its_time_hands_out_where_it_is() {
        let query = query(Order::Descending, 5);
        let mut walk = Walk::new(&query, TIME);
        assert!(!walk.has_come_forward());
        let slice = walk.next_slice().unwrap();
        assert_eq!(slice.span.to_ms, query.span.to_ms, "what lies ahead of the clock comes along");
        walk.read(slice, vec![event(1, NOW_MS - 5_000, 1)], TIME);
        assert!(walk.has_come_forward());
        assert_eq!(walk.next_slice(), None);
        let page = walk.into_page();
        assert_eq!(page.rows.len(), 1);
        assert_eq!(page.next, Some(SortKey::start_of(NOW_MS - 10_000)));
    }
}
