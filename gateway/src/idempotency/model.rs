//! The whole protocol of one key, played in any order: two gateways, a cache that is cut off or loses its
//! keys, attempts that die at any point, a log of two partitions and the consumer that stores them. The rules
//! of the gateway are the real ones; those of the store are the few lines of [`Store::take`], which
//! say what its engines are tested for.

use std::collections::HashSet;

use proptest::prelude::*;
use pulsestream_shared::cache::memory::MemoryLocks;
use pulsestream_shared::cache::{LockChange, LockKey, LockReply, LockRequest};
use pulsestream_shared::codec::Unsure;
use pulsestream_shared::event::{ClientId, EventId};
use uuid::Uuid;

use super::*;

const KEY: LockKey = LockKey { client: ClientId(1), id: EventId(Uuid::nil()) };
const LEASE_MS: i64 = 15_000;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A device sends a body to a gateway; the answer of the cache may get lost.
    Send {
        gateway: usize,
        body: u8,
        answer_lost: bool,
    },
    /// The oldest attempt of a gateway that has its key goes to the log.
    Append {
        gateway: usize,
        fate: Fate,
    },
    /// What the oldest appended attempt came to is written to the cache.
    Settle {
        gateway: usize,
    },
    /// The gateway dies, and with it its attempts and local locks.
    Crash {
        gateway: usize,
    },
    Pass {
        seconds: i64,
    },
    /// The cache loses every key.
    Lose,
    Cut {
        gateway: usize,
    },
    Heal {
        gateway: usize,
    },
    /// The consumer stores the next record of a partition.
    Store {
        partition: usize,
    },
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Confirmed,
    Refused,
    /// In the log, and nobody was told.
    UnknownThere,
    UnknownLost,
}

#[derive(Clone, Copy)]
struct Attempt {
    body: u8,
    record: LockRecord,
    taken_over: bool,
    unsure: Option<Unsure>,
    received_at_ms: i64,
}

#[derive(Clone, Copy)]
struct Logged {
    body: u8,
    unsure: Option<Unsure>,
    received_at_ms: i64,
}

struct Gateway {
    reachable: bool,
    local: MemoryLocks,
    locked: Vec<Attempt>,
    settling: Vec<(LockChange, bool)>,
}

impl Gateway {
    fn new() -> Self {
        let local = MemoryLocks::new(8);
        Self { reachable: true, local, locked: Vec::new(), settling: Vec::new() }
    }
}

/// What the store does with one key. Its rows have different days, so only what is looked up is found.
#[derive(Default)]
struct Store {
    bodies: Vec<u8>,
    dead: Vec<u8>,
    /// `unsure_keys` and `key_losses`.
    taken: bool,
    loss_ms: Option<i64>,
}

impl Store {
    fn take(&mut self, row: Logged) {
        let late = self.loss_ms.is_some_and(|loss_ms| row.received_at_ms <= loss_ms);
        let looked_up = row.unsure.is_some() || self.taken || late;
        match self.bodies.first() {
            _ if self.bodies.contains(&row.body) => {}
            Some(_) if looked_up => self.dead.push(row.body),
            _ => self.bodies.push(row.body),
        }
        match row.unsure {
            Some(Unsure::Local) => self.taken = true,
            Some(Unsure::Forgotten { at_ms }) => self.loss_ms = self.loss_ms.max(Some(at_ms)),
            None => {}
        }
    }
}

struct World {
    now_ms: i64,
    cache: MemoryLocks,
    lost_at_ms: Option<i64>,
    gateways: [Gateway; 2],
    log: [Vec<Logged>; 2],
    next: [usize; 2],
    store: Store,
    /// Bodies that were answered 202.
    accepted: HashSet<u8>,
}

impl World {
    fn new() -> Self {
        Self {
            now_ms: 1_000_000,
            cache: MemoryLocks::new(8),
            lost_at_ms: None,
            gateways: [Gateway::new(), Gateway::new()],
            log: [Vec::new(), Vec::new()],
            next: [0; 2],
            store: Store::default(),
            accepted: HashSet::new(),
        }
    }

    fn step(&mut self, step: Step) {
        // Nothing happens twice in one instant.
        self.now_ms += 1;
        match step {
            Step::Send { gateway, body, answer_lost } => self.send(gateway, body, answer_lost),
            Step::Append { gateway, fate } => self.append(gateway, fate),
            Step::Settle { gateway } => self.settle(gateway),
            Step::Crash { gateway } => {
                let reachable = self.gateways[gateway].reachable;
                self.gateways[gateway] = Gateway { reachable, ..Gateway::new() };
            }
            Step::Pass { seconds } => self.now_ms += seconds * 1_000,
            Step::Lose => {
                self.cache = MemoryLocks::new(8);
                self.lost_at_ms = Some(self.now_ms);
            }
            Step::Cut { gateway } => self.gateways[gateway].reachable = false,
            Step::Heal { gateway } => self.gateways[gateway].reachable = true,
            Step::Store { partition } => self.store_next(partition),
        }
    }

    /// The way of a claim through `commit::locks`.
    fn send(&mut self, gateway: usize, body: u8, answer_lost: bool) {
        let fingerprint = Fingerprint([body; 16]);
        let record = first_attempt(fingerprint, self.now_ms, LEASE_MS);
        let ask = [LockRequest { key: KEY, record: Some(record) }];
        let at = &self.gateways[gateway];
        let forgotten = self.lost_at_ms.map(|at_ms| Unsure::Forgotten { at_ms });
        let look = [LockRequest { key: KEY, record: None }];
        let known = at.local.lock(&look, self.now_ms).remove(0);
        let (reply, locks, unsure) = if matches!(known, LockReply::Held(_)) {
            (known, &at.local, Some(Unsure::Local))
        } else if at.reachable && !answer_lost {
            (self.cache.lock(&ask, self.now_ms).remove(0), &self.cache, forgotten)
        } else {
            if at.reachable {
                self.cache.lock(&ask, self.now_ms);
            }
            (at.local.lock(&ask, self.now_ms).remove(0), &at.local, Some(Unsure::Local))
        };
        let received_at_ms = self.now_ms;
        let mine =
            |record, taken_over| Attempt { body, record, taken_over, unsure, received_at_ms };
        let attempt = match reply {
            LockReply::Held(seen) => match judge(&seen, fingerprint, self.now_ms) {
                Verdict::TakeOver => {
                    let next = next_attempt(&seen, self.now_ms, LEASE_MS);
                    let swap = LockChange::Swap { key: KEY, expected: seen, record: Some(next) };
                    assert_eq!(locks.settle(&[swap], self.now_ms), [true]);
                    mine(next, true)
                }
                Verdict::Replay => {
                    self.accepted.insert(body);
                    return;
                }
                Verdict::Mismatch | Verdict::InProgress => return,
            },
            LockReply::Acquired => mine(record, false),
            LockReply::Free | LockReply::Full => panic!("{reply:?} to one who asks for a key"),
        };
        self.gateways[gateway].locked.push(attempt);
    }

    /// The way of an attempt through its lane.
    fn append(&mut self, gateway: usize, fate: Fate) {
        let at = &mut self.gateways[gateway];
        if at.locked.is_empty() {
            return;
        }
        let Attempt { body, record, taken_over, unsure, received_at_ms } = at.locked.remove(0);
        if record.lease_until_ms <= self.now_ms {
            return;
        }
        let local = unsure == Some(Unsure::Local);
        if matches!(fate, Fate::Confirmed | Fate::UnknownThere) {
            let logged = Logged { body, unsure, received_at_ms };
            self.log[usize::from(body) % 2].push(logged);
        }
        let swap = |next| LockChange::Swap { key: KEY, expected: record, record: next };
        let change = match fate {
            Fate::Confirmed => {
                self.accepted.insert(body);
                LockChange::Finish(KEY, done(&record))
            }
            Fate::Refused => swap(after_refusal(&record, taken_over)),
            Fate::UnknownThere | Fate::UnknownLost => swap(Some(after_doubt(&record))),
        };
        at.settling.push((change, local));
    }

    fn settle(&mut self, gateway: usize) {
        let at = &mut self.gateways[gateway];
        if at.settling.is_empty() {
            return;
        }
        let (change, local) = at.settling.remove(0);
        if local {
            at.local.settle(&[change], self.now_ms);
        } else if at.reachable {
            self.cache.settle(&[change], self.now_ms);
        }
    }

    fn store_next(&mut self, partition: usize) {
        if let Some(row) = self.log[partition].get(self.next[partition]) {
            self.next[partition] += 1;
            self.store.take(*row);
        }
    }

    /// Stores what is left and judges.
    fn end(mut self, undisturbed: bool) {
        for partition in 0..2 {
            while self.next[partition] < self.log[partition].len() {
                self.store_next(partition);
            }
        }
        let logged: HashSet<u8> = self.log.iter().flatten().map(|row| row.body).collect();
        assert!(self.accepted.is_subset(&logged), "a 202 without a record");
        assert!(self.store.bodies.len() <= 1, "two bodies under one key: {:?}", self.store.bodies);
        let settled = self.store.bodies.iter().chain(&self.store.dead).copied();
        assert_eq!(settled.collect::<HashSet<_>>(), logged, "a record that became nothing");
        if undisturbed {
            assert!(self.store.dead.is_empty(), "two bodies accepted: {:?}", self.store.dead);
        }
    }
}

/// `disturbed`: the cache may be cut off or lose its keys.
fn steps(disturbed: bool) -> impl Strategy<Value = Vec<Step>> {
    let gateway = || 0..2_usize;
    let fate = prop_oneof![
        4 => Just(Fate::Confirmed),
        1 => Just(Fate::Refused),
        1 => Just(Fate::UnknownThere),
        1 => Just(Fate::UnknownLost),
    ];
    let answer_lost = if disturbed { 0.1 } else { 0.0 };
    let send = (gateway(), 0..4_u8, prop::bool::weighted(answer_lost))
        .prop_map(|(gateway, body, answer_lost)| Step::Send { gateway, body, answer_lost });
    let append = (gateway(), fate).prop_map(|(gateway, fate)| Step::Append { gateway, fate });
    let cache = u32::from(disturbed);
    let step = prop_oneof![
        8 => send,
        8 => append,
        4 => gateway().prop_map(|gateway| Step::Settle { gateway }),
        1 => gateway().prop_map(|gateway| Step::Crash { gateway }),
        2 => prop_oneof![1..3_i64, 14..17_i64].prop_map(|seconds| Step::Pass { seconds }),
        3 => (0..2_usize).prop_map(|partition| Step::Store { partition }),
        cache => Just(Step::Lose),
        cache => gateway().prop_map(|gateway| Step::Cut { gateway }),
        cache => gateway().prop_map(|gateway| Step::Heal { gateway }),
    ];
    prop::collection::vec(step, 1..60)
}

fn play(steps: Vec<Step>, undisturbed: bool) {
    let mut world = World::new();
    steps.into_iter().for_each(|step| world.step(step));
    world.end(undisturbed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn with_a_whole_cache_one_body_is_accepted_and_stored_whatever_dies(steps in steps(false)) {
        play(steps, true);
    }

    #[test]
    fn with_a_cache_cut_off_or_emptied_one_body_is_stored_and_none_vanishes(steps in steps(true)) {
        play(steps, false);
    }
}

/// The hole that `unsure_keys` closes: a local lock at one gateway, a shared one at the other.
#[test]
fn a_key_given_away_by_one_gateway_alone_and_then_by_the_cache_has_one_body() {
    let append = |gateway| Step::Append { gateway, fate: Fate::Confirmed };
    let send = |gateway, body| Step::Send { gateway, body, answer_lost: false };
    let both = [Step::Cut { gateway: 0 }, send(0, 0), append(0), send(1, 1), append(1)];
    for order in [[0, 1], [1, 0]] {
        let stored = order.map(|partition| Step::Store { partition });
        play(both.into_iter().chain(stored).collect(), false);
    }
}

/// A key lost with its lock, and the two records stored in either order.
#[test]
fn a_key_given_away_again_after_a_loss_has_one_body() {
    let append = |gateway| Step::Append { gateway, fate: Fate::Confirmed };
    let send = |gateway, body| Step::Send { gateway, body, answer_lost: false };
    let both =
        [send(0, 0), append(0), Step::Settle { gateway: 0 }, Step::Lose, send(1, 1), append(1)];
    for order in [[0, 1], [1, 0]] {
        let stored = order.map(|partition| Step::Store { partition });
        play(both.into_iter().chain(stored).collect(), false);
    }
}
