//! `ingest` against the scripted gateway.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pulsestream_loadgen::control::Control;
use pulsestream_loadgen::ingest::{self, Options, Report};
use pulsestream_loadgen::ledger::{Entry, Kind, read_all};
use tempfile::TempDir;
use uuid::Uuid;

use crate::server::{Reply, Seen, Server};

/// Four devices on two connections for a moment.
fn options(server: &Server) -> Options {
    Options {
        devices: 4,
        connections: 2,
        duration: Duration::from_millis(300),
        grace: Duration::from_secs(10),
        seed: 7,
        ..Options::new(&server.url, "ps_test_key")
    }
}

async fn run_with_ledger(options: Options) -> (Report, Vec<Entry>) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let report = ingest::run(Options { ledger: Some(path.clone()), ..options }).await.unwrap();
    (report, read_all(Path::new(&path)).unwrap())
}

fn already_seen(request: &Seen, before: &[Seen]) -> bool {
    before.iter().any(|seen| seen.key == request.key)
}

/// Requests with their key, grouped by it.
fn by_key(seen: &[Seen]) -> HashMap<String, Vec<&Seen>> {
    let mut groups: HashMap<String, Vec<&Seen>> = HashMap::new();
    for request in seen {
        groups.entry(request.key.clone().unwrap()).or_default().push(request);
    }
    groups
}

#[tokio::test]
async fn a_repeat_has_the_same_key_and_the_same_bytes() {
    let replayed = |request: &Seen, before: &[Seen]| match already_seen(request, before) {
        true => Reply::Replayed,
        false => Reply::Status(202),
    };
    let server = Server::start(replayed).await;
    let (report, ledger) =
        run_with_ledger(Options { repeats: 1.0, rate: Some(100.0), ..options(&server) }).await;
    let seen = server.seen();
    assert_eq!(report.accepted, 30);
    assert_eq!((report.repeats, report.replayed), (30, 30));
    assert_eq!(by_key(&seen).len(), 30);
    for requests in by_key(&seen).values() {
        let [first, repeat] = requests[..] else { panic!("{requests:?}") };
        assert_eq!(first.body, repeat.body);
        assert!(repeat.at - first.at >= Duration::from_millis(90), "a repeat comes later");
        assert_eq!(first.api_key.as_deref(), Some("ps_test_key"));
    }
    for entry in &ledger {
        assert_eq!((entry.status, entry.replayed), (202, Some(false)));
        assert_eq!((entry.repeat_status, entry.repeat_replayed), (Some(202), Some(true)));
    }
}

#[tokio::test]
async fn a_503_is_retried_after_what_it_asks_for_with_the_same_key() {
    let first_is_refused = |request: &Seen, before: &[Seen]| {
        if before.is_empty() || (before.len() == 1 && already_seen(request, before)) {
            return if before.is_empty() { Reply::Later(503, 1) } else { Reply::Status(202) };
        }
        Reply::Status(202)
    };
    let server = Server::start(first_is_refused).await;
    let (report, ledger) = run_with_ledger(options(&server)).await;
    let seen = server.seen();
    let refused = &seen[0];
    let retried = seen.iter().skip(1).find(|request| request.key == refused.key).unwrap();
    assert_eq!(retried.body, refused.body);
    assert!(retried.at - refused.at >= Duration::from_secs(1));
    assert_eq!((report.retries, report.answers_by_status[&503]), (1, 1));
    assert_eq!(report.by_status, BTreeMap::from([(202, report.accepted)]));
    let entry = ledger.iter().find(|entry| Some(entry.id.to_string()) == refused.key).unwrap();
    assert_eq!((entry.status, entry.attempts), (202, 2));
    let latency = report.latency_ms;
    assert!(latency.actual.max >= 1_000.0, "a retry's wait is part of the latency: {latency:?}");
}

#[tokio::test]
async fn a_dropped_connection_is_retried_with_the_same_key() {
    let drops_every_tenth = |request: &Seen, before: &[Seen]| {
        let tenth = before.len() % 10 == 9 && !already_seen(request, before);
        if tenth { Reply::Drop } else { Reply::Status(202) }
    };
    let server = Server::start(drops_every_tenth).await;
    let (report, ledger) = run_with_ledger(options(&server)).await;
    assert!(report.connection_errors > 0);
    assert_eq!(report.retries, report.connection_errors);
    assert_eq!(report.sent, report.accepted);
    let seen = server.seen();
    for entry in &ledger {
        let requests = &by_key(&seen)[&entry.id.to_string()];
        assert_eq!(requests.len() as u32, entry.attempts);
        assert!(requests.iter().all(|request| request.body == requests[0].body));
    }
}

#[tokio::test]
async fn devices_move_to_the_next_gateway_when_theirs_drops_them() {
    let broken = Server::start(|_, _| Reply::Drop).await;
    let sound = Server::start(|_, _| Reply::Status(202)).await;
    let urls = vec![broken.url.clone(), sound.url.clone()];
    let (report, ledger) = run_with_ledger(Options { urls, ..options(&sound) }).await;
    assert_eq!(report.connection_errors, 1, "only the connection that began there");
    assert_eq!(broken.seen().len(), 1);
    assert!(sound.seen().iter().any(|request| request.key == broken.seen()[0].key));
    assert!(ledger.iter().all(Entry::accepted));
}

#[tokio::test]
async fn a_device_sends_in_order_and_waits_for_each_answer() {
    let unruly = |request: &Seen, before: &[Seen]| match before.len() % 7 {
        _ if already_seen(request, before) => Reply::Status(202),
        3 => Reply::Drop,
        5 => Reply::Status(503),
        _ => Reply::Status(202),
    };
    let server = Server::start(unruly).await;
    let (report, ledger) = run_with_ledger(Options { bad: 0.0, ..options(&server) }).await;
    assert!(report.retries > 0);
    let mut highest: HashMap<String, i64> = HashMap::new();
    for request in server.seen() {
        let event = request.json();
        let highest = highest.entry(event["deviceId"].to_string()).or_default();
        let seq = event["value"].as_i64().unwrap();
        assert!(seq == *highest || seq == *highest + 1, "{seq} after {highest}");
        *highest = seq;
    }
    assert_eq!(highest.len(), 4);
    assert_eq!(highest.values().sum::<i64>() as usize, ledger.len());
}

#[tokio::test]
async fn the_ledger_and_the_report_count_what_the_server_saw() {
    let server = Server::start(|_, before| match before.len() % 5 {
        4 => Reply::Status(503),
        _ => Reply::Status(202),
    })
    .await;
    let run = Options { repeats: 0.5, rate: Some(300.0), ..options(&server) };
    let (report, ledger) = run_with_ledger(run).await;
    let seen = server.seen();
    let groups = by_key(&seen);
    let ids: BTreeSet<String> = ledger.iter().map(|entry| entry.id.to_string()).collect();
    assert_eq!(ids.len(), ledger.len(), "one line per event");
    assert_eq!(ids, groups.keys().cloned().collect());
    let answers: u64 = report.answers_by_status.values().sum();
    assert_eq!(answers as usize, seen.len());
    assert_eq!((report.sent as usize, report.unsent), (ledger.len(), 0));
    assert_eq!(report.sent, 90, "the schedule's 300/s for 0.3 s");
    let repeated = ledger.iter().filter(|entry| entry.repeat_status.is_some()).count() as u64;
    assert_eq!(report.repeats, repeated);
    assert_eq!(seen.len() as u64, report.sent + report.repeats + report.retries);
}

/// What the contract says about this request: the rules of the event's fields.
fn is_bad(request: &Seen) -> bool {
    let Some(key) = &request.key else { return true };
    let Ok(event) = serde_json::from_str::<serde_json::Value>(&request.body) else { return true };
    let now_ms = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64;
    let device = event["deviceId"].as_str().and_then(|id| Uuid::parse_str(id).ok());
    let typed = event["eventType"].as_str().is_some_and(|name| (2..=50).contains(&name.len()));
    let fresh = event["timestamp"].as_u64().is_some_and(|ms| now_ms.abs_diff(ms) < 300_000);
    let valid = device.is_some() && typed && fresh && event["value"].is_number();
    Uuid::parse_str(key).is_err() || !valid
}

#[tokio::test]
async fn each_bad_kind_is_bad_in_its_own_way_and_good_events_are_good() {
    let strict = |request: &Seen, _: &[Seen]| match is_bad(request) {
        true => Reply::Status(400),
        false => Reply::Status(202),
    };
    let server = Server::start(strict).await;
    let (report, ledger) =
        run_with_ledger(Options { bad: 0.5, rate: Some(400.0), ..options(&server) }).await;
    assert_eq!(report.sent, 120);
    assert!(report.bad >= 30 && report.bad == report.bad_answered_400, "{report:?}");
    assert_eq!((report.unexpected_total, report.accepted), (0, 120 - report.bad));
    let seen = server.seen();
    for kind in Kind::BAD {
        let of_kind: Vec<&Entry> = ledger.iter().filter(|entry| entry.kind == kind).collect();
        assert!(!of_kind.is_empty(), "{kind:?} was never sent");
        assert!(of_kind.iter().all(|entry| entry.status == 400 && entry.seq < 0));
        let id = Some(of_kind[0].id.to_string());
        let request = seen.iter().find(|request| request.key == id);
        let Some(request) = request else {
            assert_eq!(kind, Kind::MissingKey, "only this one's id is never sent");
            continue;
        };
        let Ok(event) = serde_json::from_str::<serde_json::Value>(&request.body) else {
            assert_eq!(kind, Kind::CutBody);
            continue;
        };
        match kind {
            Kind::ValueText => assert!(event["value"].is_string()),
            Kind::MissingDevice => assert!(event["deviceId"].is_null()),
            Kind::ShortType => assert_eq!(event["eventType"].as_str().unwrap().len(), 1),
            Kind::TooOld => {
                let age_ms = of_kind[0].sent_at - event["timestamp"].as_u64().unwrap();
                assert!((3_599_000..=3_600_000).contains(&age_ms), "{age_ms}");
            }
            other => panic!("{other:?} must not be a whole event with a key"),
        }
    }
}

#[tokio::test]
async fn an_answer_nobody_expects_is_reported_with_its_body() {
    let server = Server::start(|_, _| Reply::Status(500)).await;
    let (report, ledger) = run_with_ledger(Options { rate: Some(100.0), ..options(&server) }).await;
    assert_eq!((report.unexpected_total, report.unexpected.len()), (30, 10));
    assert_eq!(report.unexpected[0].status, 500);
    assert_eq!(report.unexpected[0].body, "because the script says so");
    assert!(ledger.iter().all(|entry| entry.status == 500 && entry.attempts == 1));
}

/// One connection, 200 events/s for a second; the 40th request hangs for 500 ms. Some 100 events were due
/// meanwhile: measured from their schedule they were up to 500 ms late, measured from the send they were
/// all fast but one.
#[tokio::test]
async fn a_stall_is_charged_to_every_event_due_meanwhile() {
    let server = Server::start(|_, before| match before.len() {
        40 => Reply::Stall(Duration::from_millis(500)),
        _ => Reply::Status(202),
    })
    .await;
    let report = ingest::run(Options {
        devices: 20,
        connections: 1,
        rate: Some(200.0),
        duration: Duration::from_secs(1),
        ..options(&server)
    })
    .await
    .unwrap();
    let latency = report.latency_ms;
    assert_eq!(report.accepted, 200);
    assert!(latency.intended.p99 >= 400.0, "{latency:?}");
    assert!(latency.intended.p90 >= 200.0, "{latency:?}");
    assert!(latency.actual.p90 <= 100.0, "{latency:?}");
    assert!(latency.actual.max >= 500.0, "{latency:?}");
}

#[tokio::test]
async fn what_is_never_answered_is_kept_with_status_0_when_the_grace_period_ends() {
    let server = Server::start(|_, _| Reply::Drop).await;
    let grace = Duration::from_millis(200);
    let (report, ledger) = run_with_ledger(Options { grace, ..options(&server) }).await;
    assert_eq!((report.accepted, report.unanswered, report.sent), (0, 4, 4));
    assert_eq!(ledger.len(), 4, "each device was stuck with its first event");
    assert!(ledger.iter().all(|entry| entry.status == 0 && entry.answered_at.is_none()));
    assert_eq!(
        ledger.iter().map(|entry| entry.attempts).sum::<u32>() as usize,
        server.seen().len()
    );
}

#[tokio::test]
async fn a_stop_ends_the_run_early_and_loses_no_line() {
    let server = Server::start(|_, _| Reply::Status(202)).await;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let control = Arc::new(Control::default());
    let duration = Duration::from_secs(60);
    let slow =
        Options { rate: Some(100.0), ledger: Some(path.clone()), duration, ..options(&server) };
    let run = tokio::spawn(ingest::run_controlled(slow, Arc::clone(&control)));
    while control.done() < 5 {
        tokio::task::yield_now().await;
    }
    control.stop();
    let report = run.await.unwrap().unwrap();
    assert!(report.duration_s < 30.0);
    assert_eq!(read_all(&path).unwrap().len(), server.seen().len());
    assert_eq!((report.unsent, report.unanswered), (0, 0));
}

#[tokio::test]
async fn after_a_stop_no_event_is_begun() {
    let server = Server::start(|_, _| Reply::Status(202)).await;
    let control = Arc::new(Control::default());
    // Device 0 is due at once, device 1 a second later.
    let slow = Options { rate: Some(1.0), duration: Duration::from_secs(60), ..options(&server) };
    let run = tokio::spawn(ingest::run_controlled(slow, Arc::clone(&control)));
    while control.done() == 0 {
        tokio::task::yield_now().await;
    }
    control.stop();
    let report = run.await.unwrap().unwrap();
    assert_eq!((report.sent, server.seen().len(), report.unsent), (1, 1, 0));
}
