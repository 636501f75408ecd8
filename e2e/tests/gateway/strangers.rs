//! Keys that were never made, in numbers.

use futures_util::future::join_all;
use pulsestream_e2e::client::event;
use pulsestream_e2e::harness::{Engines, Harness};
use pulsestream_e2e::on_both;
use uuid::Uuid;

use crate::contract::assert_problem;
use crate::limits::series;

on_both!(a_flood_of_unknown_keys_is_told_so_and_asks_the_store_once_for_each_at_most);

async fn a_flood_of_unknown_keys_is_told_so_and_asks_the_store_once_for_each_at_most(
    engines: Engines,
) {
    const KEYS: usize = 600;
    let pipeline =
        Harness::new(engines).set("PULSESTREAM__KEYS__NEGATIVE_TTL", "10m").start().await;
    let (client, device) = (pipeline.client(), pipeline.devices[0]);
    client.accept(device, 0.0).await;
    let keys: Vec<_> = (0..KEYS).map(|_| format!("ps_live_{}", Uuid::new_v4().simple())).collect();
    for round in 1..=2 {
        for some in keys.chunks(100) {
            let asking = some.iter().map(|key| {
                let stranger = client.with_key(key);
                async move { stranger.post(Uuid::new_v4(), &event(device, 1.0)).await }
            });
            let (answers, ()) = tokio::join!(join_all(asking), async {
                client.accept(device, 2.0).await;
            });
            for answer in answers {
                assert_problem(&answer.expect("an answer"), 401, "invalid_api_key");
            }
        }
        let told = async |tier: &str| {
            let name = format!("key_lookups_total{{result=\"miss\",tier=\"{tier}\"}}");
            series(&pipeline, &name).await
        };
        assert_eq!(told("store").await, KEYS as u64, "round {round}");
        assert_eq!(told("process").await, KEYS as u64 * (round - 1));
    }
    pipeline.stop().await;
}
