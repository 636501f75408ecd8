//! Consumers that are killed, and groups that grow and shrink, under load: nothing lost, nothing twice, every
//! device in order, and no partition forgotten.

use std::time::Duration;

use anyhow::Context as _;
use pulsestream_e2e::consumers::{Act, Outcome, Size, run};

fn size() -> Size {
    Size {
        rate: 1_000,
        partitions: 4,
        devices: 50,
        consumers: 1,
        repeats: 0.05,
        poison: 0.002,
        protocol: "eager",
        named: false,
        seed: rand::random(),
    }
}

async fn outcome(size: &Size, seconds: u64, acts: &[(f64, Act)]) -> Outcome {
    let folder = tempfile::tempdir().expect("a folder");
    let acts: Vec<_> = acts.iter().map(|(at, act)| (Duration::from_secs_f64(*at), *act)).collect();
    let outcome = run(size, Duration::from_secs(seconds), &acts, folder.path()).await;
    let outcome = outcome.with_context(|| format!("seed {}", size.seed)).expect("a whole run");
    assert_eq!(outcome.faults(), Vec::<String>::new(), "seed {}: {outcome:?}", size.seed);
    assert!(outcome.dead > 0 && outcome.appended > outcome.events + outcome.dead, "{outcome:?}");
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_killed_at_random_points_lose_and_double_nothing() {
    let size = Size { consumers: 2, ..size() };
    // One alone, both within a moment, one while the group still mourns the last.
    let acts = [1.3, 1.9, 3.1, 7.7, 8.05, 8.4, 12.6, 15.2].map(|at| (at, Act::Restart));
    let outcome = outcome(&size, 18, &acts).await;
    assert_eq!(outcome.acts.len(), 10, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_grows_to_four_and_shrinks_to_two_stores_all_and_idles_nowhere() {
    grows_to_four_and_shrinks_to_two(&size()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cooperative_group_that_grows_to_four_and_shrinks_to_two_does_so_too() {
    grows_to_four_and_shrinks_to_two(&Size { protocol: "cooperative", ..size() }).await;
}

async fn grows_to_four_and_shrinks_to_two(size: &Size) {
    let grow = [(2.0, Act::Start), (3.0, Act::Start), (4.0, Act::Start)];
    let shrink = [(9.0, Act::Stop), (11.0, Act::Stop)];
    let outcome = outcome(size, 15, &[&grow[..], &shrink].concat()).await;
    assert!(outcome.longest_idle_s < 5.0, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_consumer_had_goes_on_within_ten_seconds() {
    let size = Size { consumers: 2, ..size() };
    let outcome = outcome(&size, 15, &[(3.0, Act::Kill)]).await;
    // It takes the group its session timeout, six seconds, to miss a member.
    assert!((3.0..10.0).contains(&outcome.longest_idle_s), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_named_consumer_had_goes_on_as_soon_as_it_is_back() {
    let size = Size { consumers: 2, protocol: "cooperative", named: true, ..size() };
    let outcome = outcome(&size, 12, &[(3.0, Act::Restart), (7.0, Act::Restart)]).await;
    // Nobody waits until it is missed.
    assert!(outcome.longest_idle_s < 5.0, "{outcome:?}");
}
