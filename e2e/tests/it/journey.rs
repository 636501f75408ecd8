//! The way of one event, on both engine sets.

use pulsestream_e2e::client::{Dashboard, PATIENCE};
use pulsestream_e2e::harness::{Engines, Harness};
use pulsestream_e2e::on_both;
use pulsestream_shared::event::EventId;
use pulsestream_shared::log::STORE_GROUP;
use pulsestream_shared::testing::wait_for;

on_both!(one_event_goes_all_the_way);

async fn one_event_goes_all_the_way(engines: Engines) {
    let pipeline = Harness::new(engines).devices(1).start().await;
    let mut dashboard =
        Dashboard::connect(pipeline.stream_url(), &pipeline.key, "").await.expect("connected");
    let id = pipeline.client().accept(pipeline.devices[0], 21.5).await;
    let shown = dashboard.next().await;
    assert_eq!(shown["id"], EventId(id).to_string());
    assert_eq!(shown["value"], 21.5);
    let store = pipeline.engine().store.clone();
    wait_for("the event to be stored", PATIENCE, async || {
        let progress = store.progress(STORE_GROUP).await.expect("progress");
        progress.iter().any(|place| place.last_id == Some(EventId(id)))
    })
    .await;
    pipeline.stop().await;
}
