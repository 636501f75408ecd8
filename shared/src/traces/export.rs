//! From finished spans to the collector: a bounded queue and one task.
//!
//! The SDK's own batch processor has a thread, says nowhere how many spans it dropped, and blocks whoever
//! shuts it down; this one is a channel.

use std::time::Duration;

use bytes::Bytes;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanLimits, SpanProcessor,
};
use prometheus::IntCounter;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::MOST_LINKS;
use super::collector::Collector;
use crate::metrics::Metrics;

/// Spans that may wait; more are dropped and counted. 1 % of 30,000 requests a second, for a second.
const QUEUE: usize = 2_048;
/// Spans of one POST at most.
const BATCH: usize = 512;
/// How long spans wait for company.
const GATHER: Duration = Duration::from_secs(1);
/// How long the last spans of a process may take.
const FINISH_WITHIN: Duration = Duration::from_secs(3);

/// What became of spans.
pub(super) struct SpanCounts {
    exported: IntCounter,
    /// The collector did not take them.
    failed: IntCounter,
    /// The queue was full.
    dropped: IntCounter,
}

impl SpanCounts {
    pub(super) fn new(metrics: &Metrics<'_>) -> Self {
        let help = "Spans of traced requests, by what became of them.";
        let all = metrics.counters("trace_spans_total", help, &["result"]);
        let [exported, failed, dropped] =
            ["exported", "failed", "dropped"].map(|result| all.with_label_values(&[result]));
        Self { exported, failed, dropped }
    }
}

/// Who tells: the service, and what the operator adds or puts in its place (`name=value` each).
pub(super) fn resource(service: &'static str, attributes: &[String]) -> Resource {
    let added = attributes.iter().filter_map(|attribute| attribute.split_once('='));
    let added = added.map(|(name, value)| KeyValue::new(name.to_owned(), value.to_owned()));
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", service),
            KeyValue::new("service.namespace", "pulsestream"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
        ])
        .with_attributes(added)
        .build()
}

/// Starts the task; the tracer's spans go to it when they end.
pub(super) fn start(
    collector: Collector,
    resource: &Resource,
    counts: SpanCounts,
) -> (SdkTracer, Exporting) {
    let (spans, queue) = mpsc::channel(QUEUE);
    let provider = SdkTracerProvider::builder()
        // What is not sampled never gets here.
        .with_sampler(Sampler::AlwaysOn)
        .with_span_limits(SpanLimits {
            max_links_per_span: MOST_LINKS as u32,
            ..SpanLimits::default()
        })
        .with_resource(resource.clone())
        .with_span_processor(Queue { spans, dropped: counts.dropped.clone() })
        .build();
    let exporter = Exporter { queue, collector, resource: resource.into(), counts, failing: false };
    let stop = CancellationToken::new();
    let task = tokio::spawn(exporter.run(stop.clone()));
    (provider.tracer("pulsestream"), Exporting(Some((stop, task))))
}

/// The task that sends spans, as its owner holds it.
pub(crate) struct Exporting(Option<(CancellationToken, JoinHandle<()>)>);

impl Exporting {
    pub(super) fn off() -> Self {
        Self(None)
    }

    /// Sends what is queued, for a bounded time, and ends.
    pub(crate) async fn finish(self) {
        let Some((stop, mut task)) = self.0 else { return };
        stop.cancel();
        if timeout(FINISH_WITHIN, &mut task).await.is_err() {
            tracing::warn!("the last spans were not sent in time");
            task.abort();
        }
    }
}

/// Where the SDK leaves finished spans.
#[derive(Debug)]
struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: IntCounter,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

struct Exporter {
    queue: mpsc::Receiver<SpanData>,
    collector: Collector,
    resource: ResourceAttributesWithSchema,
    counts: SpanCounts,
    failing: bool,
}

impl Exporter {
    /// Runs until `stop`, then until the queue is empty.
    async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            let gathering = gather(&mut self.queue, &mut batch);
            // Cancel safe: what was taken is in the batch.
            if stop.run_until_cancelled(gathering).await != Some(true) {
                break;
            }
            self.export(std::mem::take(&mut batch)).await;
        }
        self.queue.close();
        while !batch.is_empty() || self.queue.recv_many(&mut batch, BATCH).await > 0 {
            self.export(std::mem::take(&mut batch)).await;
        }
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        let spans = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        match self.collector.post(Bytes::from(request.encode_to_vec())).await {
            Ok(answer) => {
                let refused = refused(&answer).min(spans);
                self.counts.exported.inc_by(spans - refused);
                self.counts.failed.inc_by(refused);
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the collector takes spans again");
                }
            }
            Err(error) => {
                self.counts.failed.inc_by(spans);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "the collector does not take spans");
                }
            }
        }
    }
}

/// Takes spans until a batch is full, or the first has waited long enough; false when none will come.
async fn gather(queue: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) -> bool {
    let mut taken = queue.recv_many(batch, BATCH).await;
    let fill = async {
        while taken > 0 && batch.len() < BATCH {
            let room = BATCH - batch.len();
            taken = queue.recv_many(batch, room).await;
        }
    };
    // Late is what most batches are.
    drop(timeout(GATHER, fill).await);
    !batch.is_empty()
}

/// How many spans the collector refused although it took the request.
fn refused(answer: &Bytes) -> u64 {
    let answer = ExportTraceServiceResponse::decode(answer.clone()).unwrap_or_default();
    let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
    u64::try_from(rejected).unwrap_or(0)
}
