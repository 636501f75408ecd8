//! Is what the devices were told what the store and the log hold and the dashboards saw? Pure
//! comparison of four lists, no clock, no I/O.
//!
//! The rules are the variants of [`Rule`]; each can fail by itself, and says how often and for which
//! events it did. Reading the lists is [`crate::runs`]' matter.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use pulsestream_loadgen::ledger::{Entry, Kind};
use pulsestream_loadgen::live::Received;
use serde::Serialize;
use uuid::Uuid;

/// How many offenders of a rule are named.
const NAMED: usize = 5;

/// An event as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Event id.
    pub id: Uuid,
    /// Device id.
    pub device: Uuid,
    /// The value: the device's count.
    pub seq: i64,
    /// The log's offset it was stored under.
    pub pos: i64,
}

/// An event as the log holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// Event id.
    pub id: Uuid,
    /// Device id.
    pub device: Uuid,
    /// The value: the device's count.
    pub seq: i64,
    /// Partition.
    pub partition: i32,
    /// When the log took it, unix ms.
    pub logged_at_ms: i64,
    /// Accepted while Redis did not answer in time: another gateway may have accepted it too.
    pub unsure: bool,
}

/// What a run is held to beyond what holds always.
#[derive(Debug, Clone, Copy)]
pub struct Expect {
    /// Nothing was killed: the log repeats no event, unless a gateway was told `later` or could not
    /// ask Redis; and each socket saw every accepted event.
    pub undisturbed: bool,
    /// How many sockets were held.
    pub sockets: usize,
    /// Every socket was open when the run ended: its last connection saw the log to its end.
    pub open_at_end: bool,
}

/// What must hold. Each name is the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// A bad event was answered other than 400.
    BadNotRefused,
    /// A good event was refused for good.
    GoodRefused,
    /// An event was answered 202, its repeat otherwise.
    RepeatRefused,
    /// Acknowledged, and not in the store.
    NotStored,
    /// Acknowledged, and not in the log.
    NotLogged,
    /// More than one row of one id.
    StoredTwice,
    /// A row nobody sent as a good event: bad ones are among these.
    StoredForeign,
    /// The same in the log.
    LoggedForeign,
    /// In the log, read up to its end, and not in the store.
    LoggedNotStored,
    /// In the store and not in the log.
    StoredNotLogged,
    /// Stored with another device or value than it was sent with.
    Altered,
    /// A dead letter: these runs send nothing that deserves one.
    Buried,
    /// More than one record of one id in the log, though nothing was killed, none of them is unsure, and
    /// the device had its answer at the first attempt.
    LoggedTwice,
    /// A device's rows by `pos` do not ascend in the order it sent them.
    StoreOrder,
    /// A device's records by offset, repeats of an id left out, do not.
    LogOrder,
    /// The same id twice on one socket.
    SocketTwice,
    /// An event after one that follows it in its partition, on one connection.
    SocketOrder,
    /// Jumped over within one connection, or not shown at its end though it stayed open.
    SocketHole,
    /// Not seen by a socket that was never disturbed.
    SocketMissing,
    /// Seen on a socket and not in the log.
    SocketForeign,
}

/// Breaches of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Breaches {
    /// How many.
    pub count: u64,
    /// The first few.
    pub first: Vec<String>,
}

/// The result of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Good events answered 202.
    pub accepted: u64,
    /// Good events sent whose fate the device does not know: at most once anywhere.
    pub unsettled: u64,
    /// Rows in the store.
    pub stored: u64,
    /// Records in the log.
    pub logged: u64,
    /// Records of an id that the log holds already.
    pub log_repeats: u64,
    /// Records accepted while Redis did not answer in time.
    pub log_unsure: u64,
    /// Events on all sockets.
    pub seen: u64,
    /// What was broken; empty when all is well.
    pub faults: BTreeMap<Rule, Breaches>,
}

impl Verdict {
    /// How often these rules were broken.
    pub fn count(&self, rules: &[Rule]) -> u64 {
        rules.iter().filter_map(|rule| self.faults.get(rule)).map(|breaches| breaches.count).sum()
    }

    fn fault(&mut self, rule: Rule, count: usize, offender: impl fmt::Display) {
        if count == 0 {
            return;
        }
        let breaches = self.faults.entry(rule).or_default();
        breaches.count += count as u64;
        if breaches.first.len() < NAMED {
            breaches.first.push(offender.to_string());
        }
    }
}

/// Compares a ledger with the store's rows, the log's records (offset order within a partition, read to
/// the end), the ids of dead letters, and what the sockets received (in order within a socket).
pub fn verify(
    expect: Expect,
    ledger: &[Entry],
    stored: &[Stored],
    logged: &[Logged],
    buried: &[String],
    received: &[Received],
) -> Verdict {
    let mut verdict = Verdict {
        stored: stored.len() as u64,
        logged: logged.len() as u64,
        seen: received.len() as u64,
        ..Verdict::default()
    };
    for letter in buried {
        verdict.fault(Rule::Buried, 1, letter);
    }
    answers(&mut verdict, ledger);
    let log = Log::of(&mut verdict, expect, ledger, logged);
    presence(&mut verdict, ledger, stored, &log);
    orders(&mut verdict, stored, &log);
    sockets(&mut verdict, expect, ledger, &log, received);
    verdict
}

/// What the devices were told.
fn answers(verdict: &mut Verdict, ledger: &[Entry]) {
    for entry in ledger {
        let what = format_args!("{} answered {}", entry.id, entry.status);
        if entry.kind != Kind::Good {
            verdict.fault(Rule::BadNotRefused, usize::from(entry.status != 400), what);
            continue;
        }
        verdict.accepted += u64::from(entry.accepted());
        let unsettled = matches!(entry.status, 0 | 408 | 409 | 429 | 502..=504);
        verdict.unsettled += u64::from(unsettled && entry.attempts > 0);
        let refused = !entry.accepted() && !unsettled;
        verdict.fault(Rule::GoodRefused, usize::from(refused), what);
        // A repeat may find nobody, or be told to come later; it may not be refused.
        let repeat = entry.repeat_status.filter(|status| {
            (200..500).contains(status) && !matches!(status, 202 | 408 | 409 | 429)
        });
        let refused = repeat.map_or(0, |_| 1);
        let what = format_args!("{} repeated, answered {repeat:?}", entry.id);
        verdict.fault(Rule::RepeatRefused, refused, what);
    }
}

/// The log without repeats.
struct Log<'a> {
    /// Per partition the first record of each id, in offset order.
    partitions: BTreeMap<i32, Vec<&'a Logged>>,
    /// Where each id stands there.
    places: HashMap<Uuid, (i32, usize)>,
}

impl<'a> Log<'a> {
    fn of(verdict: &mut Verdict, expect: Expect, ledger: &[Entry], logged: &'a [Logged]) -> Self {
        let mut log = Self { partitions: BTreeMap::new(), places: HashMap::new() };
        // Of these the log may hold a second copy.
        let tried_again = ledger.iter().filter(|entry| entry.attempts > 1).map(|entry| entry.id);
        let unsure = logged.iter().filter(|record| record.unsure).map(|record| record.id);
        let repeatable: HashSet<Uuid> = tried_again.chain(unsure).collect();
        for record in logged {
            verdict.log_unsure += u64::from(record.unsure);
            if log.places.contains_key(&record.id) {
                verdict.log_repeats += 1;
                let fault = expect.undisturbed && !repeatable.contains(&record.id);
                verdict.fault(Rule::LoggedTwice, usize::from(fault), record.id);
                continue;
            }
            let partition = log.partitions.entry(record.partition).or_default();
            log.places.insert(record.id, (record.partition, partition.len()));
            partition.push(record);
        }
        log
    }
}

/// Everything acknowledged is there once, and nothing else is.
fn presence(verdict: &mut Verdict, ledger: &[Entry], stored: &[Stored], log: &Log<'_>) {
    let good = ledger.iter().filter(|entry| entry.kind == Kind::Good);
    let sent: HashMap<Uuid, &Entry> = good.map(|entry| (entry.id, entry)).collect();
    let mut rows = HashSet::with_capacity(stored.len());
    for row in stored {
        verdict.fault(Rule::StoredTwice, usize::from(!rows.insert(row.id)), row.id);
        let unlogged = !log.places.contains_key(&row.id);
        verdict.fault(Rule::StoredNotLogged, usize::from(unlogged), row.id);
        match sent.get(&row.id) {
            None => verdict.fault(Rule::StoredForeign, 1, row.id),
            Some(entry) => {
                let altered = (entry.device, entry.seq) != (row.device, row.seq);
                verdict.fault(Rule::Altered, usize::from(altered), row.id);
            }
        }
    }
    for record in log.partitions.values().flatten() {
        let foreign = !sent.contains_key(&record.id);
        verdict.fault(Rule::LoggedForeign, usize::from(foreign), record.id);
        let unstored = !rows.contains(&record.id);
        verdict.fault(Rule::LoggedNotStored, usize::from(unstored), record.id);
    }
    for entry in ledger.iter().filter(|entry| entry.accepted()) {
        let what = format_args!("{} seq {} of {}", entry.id, entry.seq, entry.device);
        verdict.fault(Rule::NotStored, usize::from(!rows.contains(&entry.id)), what);
        verdict.fault(Rule::NotLogged, usize::from(!log.places.contains_key(&entry.id)), what);
    }
}

/// Each device's events in the order it sent them.
fn orders(verdict: &mut Verdict, stored: &[Stored], log: &Log<'_>) {
    let mut rows: Vec<&Stored> = stored.iter().collect();
    rows.sort_by_key(|row| (row.device, row.pos));
    let mut highest = HashMap::new();
    for row in rows {
        check_order(verdict, Rule::StoreOrder, &mut highest, (row.device, row.seq, row.id));
    }
    highest.clear();
    for record in log.partitions.values().flatten() {
        let event = (record.device, record.seq, record.id);
        check_order(verdict, Rule::LogOrder, &mut highest, event);
    }
}

fn check_order(
    verdict: &mut Verdict,
    rule: Rule,
    highest: &mut HashMap<Uuid, i64>,
    (device, seq, id): (Uuid, i64, Uuid),
) {
    let highest = highest.entry(device).or_insert(i64::MIN);
    let offender = format_args!("{id}: seq {seq} of {device} after {highest}");
    verdict.fault(rule, usize::from(seq <= *highest), offender);
    *highest = seq.max(*highest);
}

/// One connection's progress through the log.
#[derive(Default)]
struct Connection {
    number: u64,
    /// When its first event was read, unix ms: what was logged later must come.
    since_ms: i64,
    /// First and last place per partition.
    places: BTreeMap<i32, (usize, usize)>,
}

/// What one socket saw so far.
#[derive(Default)]
struct Socket {
    ids: HashSet<Uuid>,
    connection: Connection,
}

/// What the dashboards saw, against the log without repeats: within a connection each partition is seen
/// without jump or return, from some place on.
fn sockets(
    verdict: &mut Verdict,
    expect: Expect,
    ledger: &[Entry],
    log: &Log<'_>,
    received: &[Received],
) {
    let mut sockets: BTreeMap<usize, Socket> = BTreeMap::new();
    for event in received {
        let socket = sockets.entry(event.socket).or_default();
        let name = format_args!("socket {} connection {}", event.socket, event.connection);
        let offender = format_args!("{name}: {}", event.id);
        if socket.connection.number != event.connection {
            let ended = std::mem::take(&mut socket.connection);
            begins(verdict, log, &ended, &name);
            socket.connection.number = event.connection;
            socket.connection.since_ms = event.at.cast_signed();
        }
        if !socket.ids.insert(event.id) {
            verdict.fault(Rule::SocketTwice, 1, offender);
            continue;
        }
        let Some(&(partition, place)) = log.places.get(&event.id) else {
            verdict.fault(Rule::SocketForeign, 1, offender);
            continue;
        };
        let seen = socket.connection.places.entry(partition).or_insert((place, place));
        verdict.fault(Rule::SocketOrder, usize::from(place < seen.1), offender);
        let jumped = place.saturating_sub(seen.1 + 1);
        verdict.fault(Rule::SocketHole, jumped, format_args!("{offender} after {jumped} missed"));
        seen.1 = seen.1.max(place);
    }
    for (number, socket) in &sockets {
        let connection = &socket.connection;
        let name = format_args!("socket {number} connection {}", connection.number);
        begins(verdict, log, connection, &name);
        if expect.open_at_end {
            ends(verdict, log, connection, &name);
        }
    }
    if expect.undisturbed {
        for number in 0..expect.sockets {
            let ids = sockets.get(&number).map(|socket| &socket.ids);
            let missing = ledger.iter().filter(|entry| entry.accepted());
            for entry in missing.filter(|entry| ids.is_none_or(|ids| !ids.contains(&entry.id))) {
                let offender = format_args!("socket {number}: {}", entry.id);
                verdict.fault(Rule::SocketMissing, 1, offender);
            }
        }
    }
}

/// The first record of the partition that was logged after the connection's first event was read.
fn due(records: &[&Logged], connection: &Connection) -> usize {
    records.partition_point(|record| record.logged_at_ms <= connection.since_ms)
}

/// A connection that saw anything of a partition began there no later than with what was logged after
/// it was open.
fn begins(verdict: &mut Verdict, log: &Log<'_>, connection: &Connection, name: &impl fmt::Display) {
    for (partition, &(first, _)) in &connection.places {
        let records = log.partitions.get(partition).map_or(&[][..], Vec::as_slice);
        let late = first.saturating_sub(due(records, connection));
        let offender = format_args!("{name}: partition {partition} begins {late} late");
        verdict.fault(Rule::SocketHole, late, offender);
    }
}

/// A connection that was open at the end saw every partition to its end.
fn ends(verdict: &mut Verdict, log: &Log<'_>, connection: &Connection, name: &impl fmt::Display) {
    for (partition, records) in &log.partitions {
        let seen = connection.places.get(partition).map(|&(_, last)| last + 1);
        let next = seen.unwrap_or_else(|| due(records, connection));
        let missed = records.len().saturating_sub(next);
        let offender = format_args!("{name}: partition {partition} ends {missed} early");
        verdict.fault(Rule::SocketHole, missed, offender);
    }
}
