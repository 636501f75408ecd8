//! What subscribers hold now. It is counted when it is asked for: kept up with each event, it would cost
//! every event.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Opts};
use pulsestream_shared::service::Context;

use crate::fan_out::FanOuts;
use crate::feed::Feed;

/// Two gauges, set whenever somebody looks.
#[derive(Clone)]
pub(crate) struct Load {
    feed: Arc<Feed>,
    fan_outs: Arc<FanOuts>,
    subscriptions: IntGauge,
    queue_bytes: IntGauge,
}

/// What they say.
pub(crate) struct Held {
    pub(crate) subscriptions: i64,
    pub(crate) queue_bytes: i64,
}

impl Load {
    pub(crate) fn new(context: &Context, feed: Arc<Feed>, fan_outs: Arc<FanOuts>) -> Self {
        let gauge = |name, help| {
            let opts = Opts::new(name, help).namespace("pulsestream");
            IntGauge::with_opts(opts).expect("metric names are literals")
        };
        let load = Self {
            feed,
            fan_outs,
            subscriptions: gauge("live_subscriptions", "Subscriptions of all open streams."),
            queue_bytes: gauge(
                "live_queue_bytes",
                "Bytes of events that subscribers have not taken yet; what several share is counted once.",
            ),
        };
        if let Err(error) = context.registry.register(Box::new(load.clone())) {
            tracing::error!(%error, "metric not registered");
        }
        load
    }

    /// Looks.
    pub(crate) fn held(&self) -> Held {
        let ((alone, bytes), (joined, fan_outs)) = (self.feed.load(), self.fan_outs.load());
        let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        // A fan-out is one of those the feed knows.
        self.subscriptions.set(whole((alone + joined).saturating_sub(fan_outs)));
        self.queue_bytes.set(whole(bytes));
        Held { subscriptions: self.subscriptions.get(), queue_bytes: self.queue_bytes.get() }
    }
}

impl Collector for Load {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = [&self.subscriptions, &self.queue_bytes];
        gauges.into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.held();
        let gauges = [&self.subscriptions, &self.queue_bytes];
        gauges.into_iter().flat_map(Collector::collect).collect()
    }
}
