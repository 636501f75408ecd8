//! What a run shows while it runs, and how it is told to stop: for progress bars and for tests that act
//! in the middle of a run ("after 1,000 accepted events kill the gateway").

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Live counters of one run and its stop switch. Counters may lag the report by what is in flight.
#[derive(Debug)]
pub struct Control {
    done: AtomicU64,
    open: AtomicU64,
    problems: AtomicU64,
    stop: watch::Sender<bool>,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            done: AtomicU64::new(0),
            open: AtomicU64::new(0),
            problems: AtomicU64::new(0),
            stop: watch::Sender::new(false),
        }
    }
}

impl Control {
    /// Events accepted so far (ingest), frames received so far (live).
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Connection faults and answers nobody expected, so far.
    pub fn problems(&self) -> u64 {
        self.problems.load(Ordering::Relaxed)
    }

    /// Ends the run as if its duration were over: nothing new is started, what is outstanding still gets
    /// the grace period. Calling it again changes nothing.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Completes once [`stop`](Self::stop) was called. Cancel safe.
    pub async fn stopped(&self) {
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _closed = self.stop.subscribe().wait_for(|stop| *stop).await.is_err();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    pub(crate) fn add_done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_problem(&self) {
        self.problems.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}
