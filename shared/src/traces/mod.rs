//! Traces: what one sampled request, batch or range took, step by step, told to an OpenTelemetry collector.
//!
//! | file | what |
//! |---|---|
//! | `parent` | a place in a trace as text, in HTTP headers and record headers |
//! | `sampler` | which requests are traced |
//! | `export` | the bounded queue of finished spans and the task that sends them |
//! | `collector` | one POST of OTLP |
//!
//! A request begins a trace in the gateway. Its place travels in the record's header `traceparent`; who
//! reads the record (store, relay) makes spans of its own that link to it, for one batch holds records of
//! many traces. Nothing is global: spans are handed on as values, and who has none has nothing to do.
//!
//! **Invariant.** What is not sampled costs a look at one header and a random number, and nothing at all
//! when no collector is configured. A collector that is slow or gone costs spans, which are counted, and
//! nothing else. A span holds no key, no device, no payload.

use std::borrow::Cow;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SdkTracer, Span};
use prometheus::Registry;

mod collector;
mod export;
mod parent;
mod sampler;

pub use parent::TraceParent;

pub(crate) use collector::Collector;
pub(crate) use export::Exporting;

use self::sampler::Sampler;
use crate::config::Telemetry;
use crate::log::Topic;
use crate::metrics::Metrics;
use crate::request_id;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Links of one span at most; more traced records of one batch are counted as dropped links.
const MOST_LINKS: usize = 128;

/// Where the spans of one process go; cheap to clone. The default makes none.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<On>>);

struct On {
    tracer: SdkTracer,
    sampler: Sampler,
}

impl On {
    fn begin(&self, builder: SpanBuilder, parent: &Context) -> Box<Span> {
        Box::new(self.tracer.build_with_context(builder, parent))
    }
}

impl Traces {
    /// Starts the export of spans of that service, unless no collector is configured.
    pub(crate) fn start(
        config: &Telemetry,
        service: &'static str,
        registry: &Registry,
    ) -> (Self, Exporting) {
        let spans = export::SpanCounts::new(&Metrics(registry));
        let Some(collector) = Collector::at(&config.otlp_endpoint) else {
            return (Self::default(), Exporting::off());
        };
        let resource = export::resource(service, &config.resource_attributes);
        let (tracer, exporting) = export::start(collector, &resource, spans);
        let sampler = Sampler::new(config.trace_one_in, config.trace_asked_per_second);
        (Self(Some(Arc::new(On { tracer, sampler }))), exporting)
    }

    /// Begins the span of a request to this route template, when it is one of those that are traced. The
    /// caller says how it was answered.
    pub fn request(
        &self,
        method: &Method,
        route: &str,
        headers: &HeaderMap,
    ) -> Option<RequestSpan> {
        let on = self.0.as_ref()?;
        let parent = headers.get(TRACEPARENT).and_then(|text| TraceParent::parse(text.as_bytes()));
        on.sampler.takes(parent).then(|| RequestSpan::begin(on, parent, method, route))
    }

    /// Begins the span of work on records of the log by a group, when at least one of them is of a traced
    /// request; it links to all of those. `records` is how many there are in all.
    pub fn process(
        &self,
        operation: &'static str,
        group: &'static str,
        records: usize,
        parents: impl Iterator<Item = TraceParent>,
    ) -> Option<Step> {
        let on = self.0.as_ref()?;
        let links: Vec<_> = parents
            .filter(|parent| parent.is_sampled())
            .map(|parent| Link::with_context(parent.context()))
            .collect();
        if links.is_empty() {
            return None;
        }
        let builder = SpanBuilder::from_name(format!("{operation} {}", Topic::Raw))
            .with_kind(SpanKind::Consumer)
            .with_links(links)
            .with_attributes([
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.consumer.group.name", group),
                topic(Topic::Raw),
                count(records),
            ]);
        Some(Step(on.begin(builder, &Context::new())))
    }
}

/// The span of one request.
pub struct RequestSpan {
    span: Box<Span>,
    trace: Trace,
    answered: bool,
}

impl RequestSpan {
    #[cold]
    fn begin(on: &Arc<On>, parent: Option<TraceParent>, method: &Method, route: &str) -> Self {
        let method = known(method);
        let builder = SpanBuilder::from_name(format!("{method} {route}"))
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("http.request.method", method),
                KeyValue::new("http.route", route.to_owned()),
                KeyValue::new("pulsestream.request_id", request_id::to_log()),
            ]);
        let outside = parent.map_or_else(Context::new, |parent| {
            Context::new().with_remote_span_context(parent.context())
        });
        let span = on.begin(builder, &outside);
        let inside = Context::new().with_remote_span_context(span.span_context().clone());
        let trace = Trace(Arc::new(Within { on: on.clone(), inside }));
        Self { span, trace, answered: false }
    }

    /// To be handed to whoever works on the request.
    pub fn trace(&self) -> Trace {
        self.trace.clone()
    }

    /// Ends the span.
    pub fn answered(mut self, status: StatusCode) {
        self.answered = true;
        self.span
            .set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if status.is_server_error() {
            fail(&mut self.span, status.as_str().to_owned());
        }
    }
}

/// One that nobody answered was given up by its client.
impl Drop for RequestSpan {
    fn drop(&mut self) {
        if !self.answered {
            fail(&mut self.span, "cancelled");
        }
    }
}

/// A traced request, for whoever works on it.
#[derive(Clone)]
pub struct Trace(Arc<Within>);

struct Within {
    on: Arc<On>,
    /// The request's span as parent.
    inside: Context,
}

impl Trace {
    /// Begins a step of the work.
    pub fn step(&self, name: &'static str) -> Step {
        Step(self.0.on.begin(SpanBuilder::from_name(name), &self.0.inside))
    }

    /// Begins the sending of so many records to a topic; [`Step::parent`] goes into their headers.
    pub fn send(&self, to: Topic, records: usize) -> Step {
        let builder = SpanBuilder::from_name(format!("send {to}"))
            .with_kind(SpanKind::Producer)
            .with_attributes([
                KeyValue::new("messaging.operation.type", "send"),
                topic(to),
                count(records),
            ]);
        Step(self.0.on.begin(builder, &self.0.inside))
    }
}

/// A step under way; ends when dropped.
pub struct Step(Box<Span>);

impl Step {
    /// This step's place in the trace.
    pub fn parent(&self) -> TraceParent {
        TraceParent::of(self.0.span_context())
    }

    /// It did not do what it was for; `kind` is of a closed set.
    pub fn failed(&mut self, kind: &'static str) {
        fail(&mut self.0, kind);
    }
}

/// The steps of a request that follow each other.
pub struct Steps<'a> {
    trace: Option<&'a Trace>,
    current: Option<Step>,
}

impl<'a> Steps<'a> {
    /// Of a request that is traced, or not.
    pub fn of(trace: Option<&'a Trace>) -> Self {
        Self { trace, current: None }
    }

    /// Ends the step at hand and begins the next.
    pub fn next(&mut self, name: &'static str) {
        if let Some(trace) = self.trace {
            self.end();
            self.current = Some(trace.step(name));
        }
    }

    /// Ends the step at hand.
    pub fn end(&mut self) {
        self.current = None;
    }
}

fn fail(span: &mut Span, kind: impl Into<Cow<'static, str>>) {
    span.set_attribute(KeyValue::new("error.type", kind.into()));
    span.set_status(Status::error(""));
}

fn topic(topic: Topic) -> KeyValue {
    KeyValue::new("messaging.destination.name", topic.name())
}

fn count(records: usize) -> KeyValue {
    KeyValue::new("messaging.batch.message_count", i64::try_from(records).unwrap_or(i64::MAX))
}

/// A closed set: a client may invent methods.
fn known(method: &Method) -> &'static str {
    let methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"];
    methods.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}
