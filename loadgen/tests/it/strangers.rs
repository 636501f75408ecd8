//! `strangers` against the scripted gateway.

use std::collections::BTreeSet;
use std::time::Duration;

use pulsestream_loadgen::strangers::{self, Options};

use crate::server::{Reply, Seen, Server};

const KEY: &str = "ps_test_key";

fn options(server: &Server) -> Options {
    Options {
        url: server.url.clone(),
        key: KEY.to_owned(),
        rate: 50.0,
        connections: 4,
        strangers_per_s: 200.0,
        url_baseline: None,
        duration: Duration::from_millis(500),
        rounds: 1,
    }
}

#[tokio::test]
async fn every_stranger_has_another_key_and_good_events_have_theirs() {
    let server = Server::start(|request: &Seen, _: &[Seen]| {
        Reply::Status(if request.api_key.as_deref() == Some(KEY) { 202 } else { 401 })
    });
    let server = server.await;
    let report = strangers::run(options(&server)).await.unwrap();
    let round = &report.rounds[0];
    for turn in [&round.alone, &round.beside] {
        assert_eq!(turn.by_status.keys().collect::<Vec<_>>(), [&202]);
    }
    assert_eq!(round.strangers.by_status.keys().collect::<Vec<_>>(), [&401]);
    assert_eq!(round.strangers.errors, 0);
    let (asked, late) = (round.strangers.by_status[&401], round.strangers.late);
    // Each connection asks at the beginning of its period, and the schedule is kept or what it lost told.
    assert!((64..=164).contains(&(asked + late)), "{asked} asked, {late} late");
    let seen = server.seen();
    let keys: Vec<_> = seen.iter().filter_map(|request| request.api_key.as_deref()).collect();
    let strangers: Vec<_> = keys.into_iter().filter(|key| *key != KEY).collect();
    assert_eq!(strangers.len() as u64, asked);
    assert_eq!(strangers.iter().collect::<BTreeSet<_>>().len(), strangers.len());
}

#[tokio::test]
async fn a_baseline_is_flooded_in_a_turn_of_its_own_and_gets_no_good_event() {
    let gateway = Server::start(|_: &Seen, _: &[Seen]| Reply::Status(202)).await;
    let bare = Server::start(|_: &Seen, _: &[Seen]| Reply::Status(202)).await;
    let options = Options { url_baseline: Some(bare.url.clone()), ..options(&gateway) };
    let report = strangers::run(options).await.unwrap();
    let beside = report.rounds[0].beside_baseline.as_ref().unwrap();
    assert_eq!(beside.by_status.keys().collect::<Vec<_>>(), [&202]);
    assert!(report.p99_ratio_baseline.is_some());
    let seen = bare.seen();
    assert!(seen.len() >= 64, "{} asked", seen.len());
    assert!(seen.iter().all(|request| request.api_key.as_deref() != Some(KEY)));
}

#[tokio::test]
async fn a_key_that_does_not_work_is_told_before_the_first_round() {
    let server = Server::start(|_: &Seen, _: &[Seen]| Reply::Status(401)).await;
    let error = strangers::run(options(&server)).await.unwrap_err();
    assert!(error.to_string().contains("401"), "{error}");
}
