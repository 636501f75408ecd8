//! Each rule of the comparison can fail: a clean run of three devices, with one thing put wrong.

use pulsestream_e2e::verify::{Expect, Logged, Rule, Stored, Verdict, verify};
use pulsestream_loadgen::ledger::{Entry, Kind};
use pulsestream_loadgen::live::Received;
use uuid::Uuid;

const DEVICES: u128 = 3;
const EACH: i64 = 4;
const SOCKETS: usize = 2;

/// A run as the four lists tell of it.
struct Run {
    expect: Expect,
    ledger: Vec<Entry>,
    stored: Vec<Stored>,
    logged: Vec<Logged>,
    buried: Vec<String>,
    received: Vec<Received>,
}

fn id(device: u128, seq: i64) -> Uuid {
    Uuid::from_u128(device * 1_000 + seq.unsigned_abs() as u128)
}

fn entry(device: u128, seq: i64, kind: Kind, status: u16) -> Entry {
    Entry {
        id: if seq > 0 { id(device, seq) } else { id(device + 500, seq) },
        device: Uuid::from_u128(device),
        seq,
        sent_at: 1,
        answered_at: Some(2),
        status,
        attempts: 1,
        kind,
        repeat_status: None,
        replayed: Some(false),
        repeat_replayed: None,
    }
}

impl Run {
    /// Devices take turns; each has a partition of its own; every event is logged at its turn's number.
    fn clean() -> Self {
        let expect = Expect { undisturbed: true, sockets: SOCKETS, open_at_end: true };
        let mut run = Self {
            expect,
            ledger: vec![entry(0, -1, Kind::CutBody, 400)],
            stored: Vec::new(),
            logged: Vec::new(),
            buried: Vec::new(),
            received: Vec::new(),
        };
        for seq in 1..=EACH {
            for device in 0..DEVICES {
                let time = seq * 10 + device as i64;
                run.ledger.push(entry(device, seq, Kind::Good, 202));
                let (id, name) = (id(device, seq), Uuid::from_u128(device));
                run.stored.push(Stored { id, device: name, seq, pos: seq });
                let partition = device as i32;
                let (logged_at_ms, unsure) = (time, false);
                run.logged.push(Logged { id, device: name, seq, partition, logged_at_ms, unsure });
                for socket in 0..SOCKETS {
                    let at = time.unsigned_abs();
                    run.received.push(Received {
                        socket,
                        connection: 1,
                        id,
                        device: name,
                        seq,
                        at,
                    });
                }
            }
        }
        run
    }

    /// The same run with kills, where sockets may miss what came while they were away.
    fn killed() -> Self {
        let mut run = Self::clean();
        run.expect.undisturbed = false;
        run
    }

    fn verdict(&self) -> Verdict {
        let Self { expect, ledger, stored, logged, buried, received } = self;
        verify(*expect, ledger, stored, logged, buried, received)
    }

    /// The rules that are broken, each with its count.
    fn broken(&self) -> Vec<(Rule, u64)> {
        let faults = self.verdict().faults;
        faults.into_iter().map(|(rule, breaches)| (rule, breaches.count)).collect()
    }

    fn log_place(&self, device: u128, seq: i64) -> usize {
        self.logged.iter().position(|record| record.id == id(device, seq)).expect("logged")
    }

    /// What a socket saw of an event is taken away.
    fn unsee(&mut self, socket: usize, device: u128, seq: i64) {
        self.received.retain(|seen| (seen.socket, seen.id) != (socket, id(device, seq)));
    }

    fn reconnect(&mut self, socket: usize, from_ms: u64) {
        let later = self.received.iter_mut().filter(|seen| seen.socket == socket);
        later.filter(|seen| seen.at >= from_ms).for_each(|seen| seen.connection = 2);
    }
}

#[test]
fn a_clean_run_breaks_nothing_and_is_counted() {
    let verdict = Run::clean().verdict();
    assert_eq!(verdict.faults.len(), 0, "{verdict:?}");
    let events = DEVICES as u64 * EACH as u64;
    assert_eq!((verdict.accepted, verdict.stored, verdict.logged), (events, events, events));
    assert_eq!(verdict.seen, events * SOCKETS as u64);
}

#[test]
fn a_bad_event_must_be_answered_400() {
    let mut run = Run::clean();
    run.ledger[0].status = 0;
    assert_eq!(run.broken(), [(Rule::BadNotRefused, 1)]);
}

#[test]
fn a_bad_event_that_is_stored_and_logged_is_foreign() {
    let mut run = Run::killed();
    let bad = run.ledger[0].id;
    let device = Uuid::from_u128(0);
    run.stored.push(Stored { id: bad, device, seq: 9, pos: 9 });
    let record = Logged { id: bad, device, seq: 9, ..run.logged[0].clone() };
    run.logged.push(Logged { logged_at_ms: 99, ..record });
    let told = run.broken();
    assert_eq!(told, [(Rule::StoredForeign, 1), (Rule::LoggedForeign, 1), (Rule::SocketHole, 2)]);
}

#[test]
fn a_good_event_or_its_repeat_that_is_refused_is_told() {
    let mut run = Run::clean();
    run.ledger[1].repeat_status = Some(422);
    assert_eq!(run.broken(), [(Rule::RepeatRefused, 1)]);
    run.ledger[1].repeat_status = Some(503);
    assert_eq!(run.broken(), []);
    run.ledger[1].status = 422;
    assert_eq!(run.broken(), [(Rule::GoodRefused, 1)]);
}

#[test]
fn an_acknowledged_event_must_be_stored_and_logged() {
    let mut run = Run::killed();
    run.stored.retain(|row| row.id != id(1, 2));
    assert_eq!(run.broken(), [(Rule::NotStored, 1), (Rule::LoggedNotStored, 1)]);
    let mut run = Run::killed();
    run.logged.remove(run.log_place(1, 2));
    let told = [(Rule::NotLogged, 1), (Rule::StoredNotLogged, 1), (Rule::SocketForeign, 2)];
    assert_eq!(run.broken(), told);
}

#[test]
fn an_unanswered_event_may_be_stored_once_or_not_at_all() {
    let mut run = Run::clean();
    run.ledger.iter_mut().filter(|entry| entry.seq == EACH).for_each(|entry| entry.status = 503);
    assert_eq!(run.verdict().unsettled, DEVICES as u64);
    assert_eq!(run.broken(), []);
    run.stored.push(run.stored[run.stored.len() - 1].clone());
    assert_eq!(run.broken(), [(Rule::StoredTwice, 1), (Rule::StoreOrder, 1)]);
    run.stored.retain(|row| row.seq != EACH);
    run.logged.retain(|record| record.seq != EACH);
    run.received.retain(|seen| seen.seq != EACH);
    assert_eq!(run.broken(), []);
}

#[test]
fn a_row_with_another_value_or_device_is_altered() {
    let mut run = Run::clean();
    run.stored[0].device = Uuid::from_u128(77);
    assert_eq!(run.broken(), [(Rule::Altered, 1)]);
}

#[test]
fn a_dead_letter_is_a_fault() {
    let mut run = Run::clean();
    run.buried.push("id_conflict".to_owned());
    assert_eq!(run.broken(), [(Rule::Buried, 1)]);
}

#[test]
fn the_log_may_repeat_an_id_only_for_a_reason() {
    for mut run in [Run::clean(), Run::killed()] {
        run.logged.push(run.logged[0].clone());
        let told: &[_] = if run.expect.undisturbed { &[(Rule::LoggedTwice, 1)] } else { &[] };
        assert_eq!(run.broken(), told);
        assert_eq!(run.verdict().log_repeats, 1);
        run.ledger[1].attempts = 2;
        assert_eq!(run.broken(), []);
        run.ledger[1].attempts = 1;
        run.logged[0].unsure = true;
        assert_eq!(run.broken(), []);
        assert_eq!(run.verdict().log_unsure, 1);
    }
}

#[test]
fn order_in_store_and_log_is_the_devices_own() {
    let mut run = Run::clean();
    let (first, second) = (0, DEVICES as usize);
    run.stored[first].pos = 2;
    run.stored[second].pos = 1;
    assert_eq!(run.broken(), [(Rule::StoreOrder, 1)]);
    let mut run = Run::clean();
    run.logged.swap(first, second);
    assert_eq!(run.broken()[0], (Rule::LogOrder, 1));
}

#[test]
fn a_repeat_on_a_socket_counts_across_its_connections() {
    let mut run = Run::killed();
    let mut again = run.received[0].clone();
    again.connection = 2;
    again.at = 1_000;
    run.received.push(again);
    assert_eq!(run.broken()[0], (Rule::SocketTwice, 1));
}

#[test]
fn an_event_that_comes_late_is_out_of_order_and_left_a_hole() {
    let mut run = Run::killed();
    let of_socket: Vec<_> = (0..run.received.len())
        .filter(|place| run.received[*place].socket == 0)
        .filter(|place| run.received[*place].device == Uuid::from_u128(1))
        .collect();
    run.received.swap(of_socket[1], of_socket[2]);
    assert_eq!(run.broken(), [(Rule::SocketOrder, 1), (Rule::SocketHole, 1)]);
}

#[test]
fn a_hole_counts_within_a_connection_and_not_between_two() {
    let mut run = Run::killed();
    run.unsee(0, 1, 2);
    assert_eq!(run.broken(), [(Rule::SocketHole, 1)]);
    run.reconnect(0, 30);
    assert_eq!(run.broken(), []);
}

#[test]
fn what_is_logged_after_a_connection_opened_must_come_from_the_start() {
    let mut run = Run::killed();
    // The connection's first event is of device 0 at 30: device 1's at 31 had to come on it.
    run.reconnect(0, 30);
    run.unsee(0, 1, 3);
    assert_eq!(run.broken(), [(Rule::SocketHole, 1)]);
}

#[test]
fn a_socket_that_stayed_open_saw_every_partition_to_its_end() {
    let mut run = Run::killed();
    run.unsee(1, 2, EACH);
    assert_eq!(run.broken(), [(Rule::SocketHole, 1)]);
    run.expect.open_at_end = false;
    assert_eq!(run.broken(), []);
    run.expect.open_at_end = true;
    run.received.retain(|seen| seen.socket == 0 || seen.device != Uuid::from_u128(2));
    // Nothing of the partition came at all: what was logged after the connection's first event counts.
    assert_eq!(run.broken(), [(Rule::SocketHole, EACH.unsigned_abs())]);
}

#[test]
fn an_undisturbed_socket_misses_nothing_even_if_it_saw_nothing() {
    let mut run = Run::clean();
    run.received.retain(|seen| seen.socket == 0);
    let events = DEVICES as u64 * EACH as u64;
    assert_eq!(run.broken(), [(Rule::SocketMissing, events)]);
    let mut run = Run::clean();
    run.unsee(1, 0, 1);
    assert_eq!(run.broken(), [(Rule::SocketMissing, 1)]);
}

#[test]
fn only_the_first_offenders_are_named() {
    let mut run = Run::killed();
    run.stored.clear();
    let verdict = run.verdict();
    let missing = &verdict.faults[&Rule::NotStored];
    assert_eq!((missing.count, missing.first.len()), (DEVICES as u64 * EACH as u64, 5));
}
