//! What stands between a bus and one subscriber: a queue that never grows beyond its bounds and never
//! makes the bus wait.
//!
//! Messages that do not fit are dropped, and the reader hears [`BusEvent::Lagged`] once, at the place
//! where they are missing. `Cut` and `Restored` always fit: a run of them without messages in between
//! is folded into one, so they cannot pile up either.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{BusEvent, Channel};

/// Messages that may wait for one subscriber.
pub(super) const MAX_MESSAGES: usize = 4_096;

/// Bytes that may wait for one subscriber.
pub(super) const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The queue of one subscription.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    events: VecDeque<BusEvent>,
    messages: usize,
    bytes: usize,
    /// Which connection may add messages: those of an earlier one come too late.
    connection: u64,
    closed: bool,
}

impl Queue {
    /// Adds a message of the given connection, or says that it is missing. Never waits.
    pub(super) fn message(&self, connection: u64, channel: Channel, message: Bytes) {
        let mut state = self.state();
        if connection != state.connection {
            return;
        }
        if state.messages < MAX_MESSAGES && state.bytes + message.len() <= MAX_BYTES {
            state.messages += 1;
            state.bytes += message.len();
            state.events.push_back(BusEvent::Message(channel, message));
        } else if state.events.back() != Some(&BusEvent::Lagged) {
            state.events.push_back(BusEvent::Lagged);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Adds `Restored` in the name of the given connection.
    pub(super) fn restored(&self, connection: u64) {
        let mut state = self.state();
        if connection == state.connection {
            state.events.push_back(BusEvent::Restored);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Adds `Cut`; nothing more comes of this or an earlier connection. Returns the number the next
    /// connection has.
    pub(super) fn cut(&self) -> u64 {
        let mut state = self.state();
        state.connection += 1;
        if state.events.back() == Some(&BusEvent::Lagged) {
            state.events.pop_back(); // a cut says as much
        }
        let before_last = state.events.len().checked_sub(2).and_then(|at| state.events.get(at));
        if state.events.back() == Some(&BusEvent::Restored) && before_last == Some(&BusEvent::Cut) {
            state.events.pop_back();
        } else {
            state.events.push_back(BusEvent::Cut);
        }
        let connection = state.connection;
        drop(state);
        self.changed.notify_one();
        connection
    }

    /// Ends the queue once it is read empty.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Waits for the next event; `None` when closed and empty. Cancel safe. One reader at a time.
    pub(super) async fn next(&self) -> Option<BusEvent> {
        loop {
            {
                let mut state = self.state();
                if let Some(event) = state.events.pop_front() {
                    if let BusEvent::Message(_, message) = &event {
                        state.messages -= 1;
                        state.bytes -= message.len();
                    }
                    return Some(event);
                }
                if state.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn drain(queue: &Queue) -> Vec<BusEvent> {
        std::iter::from_fn(|| queue.next().now_or_never().flatten()).collect()
    }

    #[test]
    fn an_overflow_is_told_once_at_the_place_of_the_hole() {
        let queue = Queue::default();
        queue.restored(0);
        for _ in 0..MAX_MESSAGES + 3 {
            queue.message(0, Channel::Keys, Bytes::new());
        }
        let heard = drain(&queue);
        assert_eq!(heard.len(), 1 + MAX_MESSAGES + 1);
        assert_eq!(heard.last(), Some(&BusEvent::Lagged));
        queue.message(0, Channel::Keys, Bytes::from_static(b"on"));
        assert_eq!(drain(&queue), [BusEvent::Message(Channel::Keys, Bytes::from_static(b"on"))]);
    }

    #[test]
    fn bytes_are_bounded_as_messages_are() {
        let queue = Queue::default();
        let half = Bytes::from(vec![0; MAX_BYTES / 2]);
        for _ in 0..3 {
            queue.message(0, Channel::Keys, half.clone());
        }
        let heard = drain(&queue);
        assert_eq!(heard.len(), 3);
        assert_eq!(heard.last(), Some(&BusEvent::Lagged));
    }

    #[test]
    fn a_flapping_server_does_not_fill_the_queue_of_a_reader_that_sleeps() {
        let queue = Queue::default();
        queue.restored(0);
        for _ in 0..100_000 {
            let connection = queue.cut();
            queue.restored(connection);
        }
        assert_eq!(drain(&queue), [BusEvent::Restored, BusEvent::Cut, BusEvent::Restored]);
    }

    #[test]
    fn nothing_of_a_lost_connection_is_heard_after_its_cut() {
        let queue = Queue::default();
        queue.restored(0);
        let next = queue.cut();
        queue.message(0, Channel::Keys, Bytes::from_static(b"late"));
        queue.restored(0);
        queue.restored(next);
        assert_eq!(drain(&queue), [BusEvent::Restored, BusEvent::Cut, BusEvent::Restored]);
    }
}
