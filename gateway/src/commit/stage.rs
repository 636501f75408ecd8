//! The lock stage: single events on their way from requests to lanes, locked in groups.

use std::sync::Arc;

use pulsestream_shared::problem::Code;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use super::locks::{Age, Claim, Lease, Locks};
use super::settle::Change;
use super::{Answer, Attempt, MAX_GROUP, Owned, Waiting, fill};
use crate::metrics::GatewayMetrics;

pub(super) struct LockStage {
    pub(super) locks: Arc<Locks>,
    pub(super) lanes: Vec<mpsc::Sender<Owned>>,
    pub(super) settle: mpsc::Sender<Change>,
    pub(super) metrics: Arc<GatewayMetrics>,
}

impl LockStage {
    /// Runs until `stop`, then until the queue is empty.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Waiting>, stop: CancellationToken) {
        let mut group = Vec::with_capacity(MAX_GROUP);
        // One for all rounds: begun anew with each group, it would never end under load.
        let probing = self.locks.probe();
        tokio::pin!(probing);
        loop {
            // Cancel safe: a cancelled recv_many has taken nothing.
            let taken = tokio::select! {
                taken = queue.recv_many(&mut group, MAX_GROUP) => taken,
                () = stop.cancelled() => {
                    queue.close();
                    queue.recv_many(&mut group, MAX_GROUP).await
                }
                never = &mut probing => match never {},
            };
            if taken == 0 {
                return;
            }
            // The first of a wave woke this task before the others had their turn to come here.
            yield_now().await;
            fill(&mut group, &mut queue);
            self.lock_group(&mut group).await;
        }
    }

    async fn lock_group(&self, group: &mut Vec<Waiting>) {
        let claims: Vec<_> = group.iter().map(|waiting| claim(&waiting.attempt)).collect();
        let claimed = self.locks.claim(&claims).await;
        for (waiting, claimed) in group.drain(..).zip(claimed) {
            match claimed {
                Ok(lease) => self.send(waiting, lease),
                Err(answer) => waiting.answer(answer),
            }
        }
    }

    fn send(&self, mut waiting: Waiting, lease: Lease) {
        waiting.attempt.accepted.unsure = lease.unsure;
        waiting.step = None;
        let Some(lane) = self.lanes.get(waiting.lane) else { return };
        let Err(refused) = lane.try_send(Owned { waiting, lease }) else { return };
        let Owned { waiting, lease } = refused.into_inner();
        Change::release(&lease).queue(&self.settle, &self.locks.finishing, &self.metrics);
        waiting.answer(Answer::Failed(Code::Overloaded));
    }
}

fn claim(attempt: &Attempt) -> Claim {
    let age = Age::of(&attempt.accepted.event, attempt.too_old);
    Claim { key: attempt.key, fingerprint: attempt.fingerprint, age }
}
