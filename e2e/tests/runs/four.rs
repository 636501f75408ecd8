//! The four runs of the release check, each some seconds long.

use std::time::Duration;

use pulsestream_e2e::runs::{Run, Size, run};

#[tokio::test(flavor = "multi_thread")]
async fn embedded_undisturbed() {
    check(Run::A).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_undisturbed() {
    check(Run::B).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_killed() {
    check(Run::C).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_killed() {
    check(Run::D).await;
}

async fn check(which: Run) {
    let size = Size {
        duration: Duration::from_secs(8),
        rate: 500.0,
        devices: 100,
        sockets: 5,
        partitions: 4,
        kill_every: Duration::from_secs(2),
        seed: rand::random(),
        keep: None,
    };
    let outcome = run(which, &size).await.expect("a whole run");
    let shown = format!("seed {}, killed {:?}", size.seed, outcome.killed);
    assert_eq!(outcome.faults(), Vec::<String>::new(), "{shown}");
    assert_eq!(outcome.ingest.sent, 4_000, "{shown}");
    assert_eq!(outcome.ingest.accepted + outcome.ingest.bad, 4_000, "{shown}");
    assert_eq!(outcome.ingest.bad_answered_400, outcome.ingest.bad, "{shown}");
    assert_eq!(outcome.verdict.stored, outcome.ingest.accepted, "{shown}");
    assert_eq!(outcome.live.open_at_end, 5, "{shown}");
    assert_eq!(outcome.killed.len(), if which.kills() { 3 } else { 0 }, "{shown}");
    if !which.kills() {
        let repeats = outcome.verdict.log_repeats;
        assert_eq!(outcome.verdict.logged - repeats, outcome.ingest.accepted, "{shown}");
        assert_eq!(outcome.live.events, outcome.ingest.accepted * 5, "{shown}");
        assert_eq!(outcome.live.connections, 5, "{shown}");
    }
}
