//! Whose turn it is to ask the store.
//!
//! Few queries run and few wait, so that readers can neither take the gateway's places nor load the
//! database beyond `read.concurrent`. No client has the last turn, nor more than half of the waiting room:
//! one that asks for everything at once waits for itself and leaves the others theirs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pulsestream_shared::config::Config;
use pulsestream_shared::event::ClientId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Queries that may wait for each one that may run; more are turned away at once.
const WAITING_PER_RUNNING: usize = 8;

/// The turns of one gateway.
pub(crate) struct Turns {
    running: Semaphore,
    waiting: Semaphore,
    /// With the number of queries they are held for: never more than there are places.
    shares: Mutex<HashMap<ClientId, (Arc<Share>, usize)>>,
    running_of_one: usize,
    waiting_of_one: usize,
    max_wait: Duration,
}

/// What one client may have of both.
struct Share {
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

/// A query runs while this lives.
pub(super) struct Turn<'a> {
    _of_all: SemaphorePermit<'a>,
    _of_client: OwnedSemaphorePermit,
    _present: Present<'a>,
}

impl Turns {
    pub(crate) fn new(config: &Config) -> Self {
        let concurrent = usize::try_from(config.read.concurrent).unwrap_or(1);
        Self::with(concurrent, concurrent * WAITING_PER_RUNNING, config.read.max_wait)
    }

    fn with(running: usize, waiting: usize, max_wait: Duration) -> Self {
        Self {
            running: Semaphore::new(running),
            waiting: Semaphore::new(waiting),
            shares: Mutex::default(),
            running_of_one: running.saturating_sub(1).max(1),
            waiting_of_one: waiting.div_ceil(2),
            max_wait,
        }
    }

    /// `None` when too many wait, or this one has waited too long.
    pub(super) async fn wait(&self, client: ClientId) -> Option<Turn<'_>> {
        let present = self.present(client);
        let turn = {
            let _place_of_client = present.share.waiting.try_acquire().ok()?;
            let _place = self.waiting.try_acquire().ok()?;
            // The client's own first: who waits for itself stands in nobody's way.
            let turn = async {
                let of_client = present.share.running.clone().acquire_owned().await.ok()?;
                Some((self.running.acquire().await.ok()?, of_client))
            };
            tokio::time::timeout(self.max_wait, turn).await.ok()??
        };
        Some(Turn { _of_all: turn.0, _of_client: turn.1, _present: present })
    }

    fn present(&self, client: ClientId) -> Present<'_> {
        let new = || {
            let running = Arc::new(Semaphore::new(self.running_of_one));
            (Arc::new(Share { running, waiting: Semaphore::new(self.waiting_of_one) }), 0)
        };
        let mut shares = self.shares();
        let (share, queries) = shares.entry(client).or_insert_with(new);
        *queries += 1;
        Present { turns: self, client, share: share.clone() }
    }

    fn shares(&self) -> MutexGuard<'_, HashMap<ClientId, (Arc<Share>, usize)>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a client's share as long as it has a query here.
struct Present<'a> {
    turns: &'a Turns,
    client: ClientId,
    share: Arc<Share>,
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut share) = self.turns.shares().entry(self.client) {
            share.get_mut().1 -= 1;
            if share.get().1 == 0 {
                share.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const WAIT: Duration = Duration::from_millis(50);
    const ONE: ClientId = ClientId(1);
    const OTHER: ClientId = ClientId(2);

    fn one_at_a_time() -> Turns {
        Turns::with(1, 1, WAIT)
    }

    #[tokio::test]
    async fn a_query_waits_for_its_turn_a_while_and_no_longer() {
        let turns = one_at_a_time();
        let first = turns.wait(ONE).await.expect("the first runs");
        let started = Instant::now();
        assert!(turns.wait(ONE).await.is_none());
        assert!(started.elapsed() >= WAIT);
        let (second, ()) = tokio::join!(turns.wait(OTHER), async { drop(first) });
        assert!(second.is_some());
    }

    #[tokio::test]
    async fn beyond_the_waiting_room_queries_are_turned_away_at_once() {
        let turns = one_at_a_time();
        let first = turns.wait(ONE).await.expect("the first runs");
        let late = async {
            assert!(turns.wait(OTHER).await.is_none(), "one waits already");
            drop(first);
        };
        let (second, ()) = tokio::join!(turns.wait(ONE), late);
        assert!(second.is_some(), "the one that waited runs");
    }

    #[tokio::test]
    async fn the_last_turn_is_no_clients_that_has_all_others() {
        let turns = Turns::with(3, 8, WAIT);
        let mine = (turns.wait(ONE).await, turns.wait(ONE).await);
        assert!(mine.0.is_some() && mine.1.is_some());
        assert!(turns.wait(ONE).await.is_none());
        let theirs = turns.wait(OTHER).await;
        assert!(theirs.is_some());
        drop(mine);
        assert!(turns.wait(ONE).await.is_some(), "its turns come back");
    }

    #[tokio::test]
    async fn who_waits_for_itself_leaves_the_waiting_room_to_others() {
        let turns = Turns::with(2, 4, WAIT);
        let _running = turns.wait(ONE).await.expect("the first runs");
        let late = async {
            let asked = Instant::now();
            assert!(turns.wait(ONE).await.is_none());
            assert!(asked.elapsed() < WAIT, "turned away at once");
            assert!(turns.wait(OTHER).await.is_some());
        };
        let (second, third, ()) = tokio::join!(turns.wait(ONE), turns.wait(ONE), late);
        assert!(second.is_none() && third.is_none());
    }

    #[tokio::test]
    async fn a_client_that_has_gone_leaves_nothing_behind() {
        let turns = Turns::with(2, 4, WAIT);
        let (one, other) = (turns.wait(ONE).await, turns.wait(OTHER).await);
        assert!(turns.wait(ONE).await.is_none());
        assert_eq!(turns.shares().len(), 2);
        drop(one);
        assert_eq!(turns.shares().len(), 1);
        drop(other);
        assert!(turns.shares().is_empty());
    }
}
