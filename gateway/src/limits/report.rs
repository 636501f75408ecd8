//! Tells the cache what was let through under each key's limit, and learns what all gateways owe.
//!
//! Not leases taken ahead: those would have to be asked for before the first event of a key can pass,
//! and lie unused in gateways a key does not talk to. Here every gateway begins with what it knows, and
//! overshoots by what all of them let through in one interval; the debt then is higher than the burst
//! and all of them refuse until it has drained. Over any longer time the sum is the rate.
//!
//! While the cache does not answer, what could not be told is forgotten and counted, and each gateway
//! keeps the limit by itself: n gateways then let n times the rate through.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use pulsestream_shared::cache::{Cache, Charge};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::table::Table;
use super::{REPORT_QUEUE, since};

/// Keys told in one call, of which several may make a report.
const MOST_IN_CALL: usize = 1_024;

/// The task that tells.
pub(crate) struct Reports {
    pub(super) cache: Arc<dyn Cache>,
    pub(super) keys: Arc<Table<String>>,
    pub(super) origin: Instant,
    pub(super) interval: Duration,
    /// Keys of which something is untold.
    pub(super) queue: mpsc::Receiver<String>,
    pub(super) unreported: IntCounter,
}

impl Reports {
    /// Runs until `stop`. What is untold then concerns nobody: this gateway lets nothing more through.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        // Cancel safe in what matters: a report that is cut off is a lost report.
        stop.run_until_cancelled(async {
            let mut names = Vec::new();
            while self.queue.recv_many(&mut names, REPORT_QUEUE).await > 0 {
                for names in names.chunks(MOST_IN_CALL) {
                    self.report(names).await;
                }
                names.clear();
                tokio::time::sleep(self.interval).await;
            }
        })
        .await;
    }

    async fn report(&self, names: &[String]) {
        let charges: Vec<_> = names.iter().filter_map(|name| self.charge(name)).collect();
        match self.cache.charge(&charges).await {
            Ok(debts) => {
                let now_ns = since(self.origin, Instant::now());
                for (charge, debt) in charges.iter().zip(debts) {
                    self.keys.with_known(&*charge.limit, |limit| limit.learn(debt, now_ns));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "limits not shared");
                let lost = charges.iter().map(|charge| u64::from(charge.events)).sum();
                self.unreported.inc_by(lost);
            }
        }
    }

    fn charge(&self, name: &str) -> Option<Charge> {
        self.keys.with_known(name, |limit| {
            let events = std::mem::take(&mut limit.untold);
            Charge { limit: name.into(), rate: limit.rate, events }
        })
    }
}
