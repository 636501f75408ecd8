//! A log that confirms nothing: who waits for it, and who is told at once.

use std::sync::Arc;

use pulsestream_e2e::client::{PATIENCE, event};
use pulsestream_e2e::harness::{Engines, Harness};
use pulsestream_e2e::on_both;
use pulsestream_shared::testing::faults::{Fault, Faults, Method, Verdict};
use pulsestream_shared::testing::wait_for;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::contract::assert_problem;

on_both!(what_waits_behind_a_group_in_doubt_is_refused_with_it_and_its_keys_are_free);

async fn what_waits_behind_a_group_in_doubt_is_refused_with_it_and_its_keys_are_free(
    engines: Engines,
) {
    let faults = Faults::default();
    let pipeline = Harness::new(engines).faults(&faults).start().await;
    let client = pipeline.client();
    // The log that is one file takes a second group beside the first.
    let in_flight = match engines {
        Engines::Embedded => 2,
        Engines::Servers => 1,
    };
    let timeout = Arc::new(Semaphore::new(0));
    faults.next(Method::Append, in_flight, {
        let timeout = timeout.clone();
        Fault::run(move || {
            let timeout = timeout.clone();
            async move {
                timeout.acquire().await.expect("never closed").forget();
                Verdict::FailAfter
            }
        })
    });

    let mut posts = Vec::new();
    for at_work in 1..=in_flight + 2 {
        let (client, id, body) =
            (client.clone(), Uuid::new_v4(), event(pipeline.devices[0], at_work as f64));
        posts.push((id, body.clone(), tokio::spawn(async move { client.post(id, &body).await })));
        let line = format!("pulsestream_idempotency_total{{result=\"new\"}} {at_work}");
        wait_for("the event to have its lock", PATIENCE, async || {
            pipeline.client().get_text("/metrics").await.expect("metrics").contains(&line)
        })
        .await;
    }
    timeout.add_permits(in_flight);
    let mut answers = Vec::new();
    for (id, body, post) in posts {
        answers.push((id, body, post.await.expect("no panic").expect("an answer")));
    }
    let (in_doubt, behind) = answers.split_at(in_flight);
    in_doubt.iter().for_each(|(_, _, answer)| assert_problem(answer, 503, "outcome_unknown"));
    behind.iter().for_each(|(_, _, answer)| assert_problem(answer, 503, "log_unavailable"));

    let (id, body, _) = &behind[0];
    wait_for("the log to be tried again", PATIENCE, async || {
        let answer = client.post(*id, body).await.expect("an answer");
        assert!(matches!(answer.status, 202 | 503), "the key was not freed: {answer:?}");
        answer.status == 202
    })
    .await;
    pipeline.stop().await;
}
