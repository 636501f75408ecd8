//! What a run of dashboards amounts to.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Plan;
use super::check::Verdict;
use crate::latency::{Latency, Percentiles};

/// The result of a run. Counts are over all sockets unless a field says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Sockets asked for.
    pub sockets: u64,
    /// Sockets open when the run ended.
    pub open_at_end: u64,
    /// Connections made: handshakes that succeeded.
    pub connections: u64,
    /// Seconds until every socket had been open; absent when that never happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_s: Option<f64>,
    /// Text and binary frames received.
    pub frames: u64,
    /// Frames that were an event.
    pub events: u64,
    /// Different event ids among them.
    pub distinct_events: u64,
    /// Frames that were not an event.
    pub undecodable: u64,
    /// The first of these, shortened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undecodable_example: Option<String>,
    /// Pings answered.
    pub pings: u64,
    /// The same id twice on one socket.
    pub repeats: Repeats,
    /// Events whose sequence number was not above all of their device before it on the same connection.
    pub out_of_order: u64,
    /// Places where a device's sequence number jumped on one connection. Means loss only when every
    /// event of the devices was accepted and no filter hides any.
    pub holes: u64,
    /// Sequence numbers jumped over in these places.
    pub missing: u64,
    /// Connections ended by the server, by close code; 1005: a close without code, 1006: cut without a
    /// close frame.
    pub closes: BTreeMap<u16, u64>,
    /// Handshakes refused, by HTTP status.
    pub refused: BTreeMap<u16, u64>,
    /// Connects that failed below HTTP or took too long.
    pub connect_errors: u64,
    /// Connections that broke the WebSocket protocol.
    pub protocol_errors: u64,
    /// Now minus the event's `timestamp`, at the socket. Needs one clock for sender and receiver.
    pub latency_ms: Percentiles,
    /// Seconds from the start to the end.
    pub duration_s: f64,
}

/// Repeats of an id on one socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeats {
    /// Over the whole run, reconnects included.
    pub on_socket: u64,
    /// Within one connection; these are among the former.
    pub on_connection: u64,
}

/// Running totals.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// How long after the start the last socket was first open.
    pub(super) ready: Option<Duration>,
    pub(super) pings: u64,
    pub(super) connect_errors: u64,
    pub(super) protocol_errors: u64,
    pub(super) closes: BTreeMap<u16, u64>,
    pub(super) refused: BTreeMap<u16, u64>,
    connections: u64,
    opened_sockets: usize,
    frames: u64,
    events: u64,
    undecodable: u64,
    undecodable_example: Option<String>,
    repeats: Repeats,
    out_of_order: u64,
    holes: u64,
    missing: u64,
    latency: Latency,
}

impl Tally {
    /// A socket is open; `first` for the first time.
    pub(super) fn connected(&mut self, first: bool, plan: &Plan) {
        self.connections += 1;
        self.opened_sockets += usize::from(first);
        if first && self.opened_sockets == plan.options.sockets {
            self.ready = Some(plan.start.elapsed());
        }
    }

    /// A frame was an event.
    pub(super) fn event(&mut self, verdict: &Verdict, latency: Duration) {
        self.frames += 1;
        self.events += 1;
        self.repeats.on_socket += u64::from(verdict.repeat);
        self.repeats.on_connection += u64::from(verdict.repeat_in_connection);
        self.out_of_order += u64::from(verdict.out_of_order);
        self.holes += u64::from(verdict.missing > 0);
        self.missing += verdict.missing;
        self.latency.record(latency);
    }

    /// A frame was something else.
    pub(super) fn undecodable(&mut self, frame: &str) {
        self.frames += 1;
        self.undecodable += 1;
        self.undecodable_example.get_or_insert_with(|| frame.chars().take(200).collect());
    }

    /// The report of a run that ends now.
    pub(super) fn report(plan: &Plan, open_at_end: u64) -> Report {
        let distinct_events = plan.interner().events() as u64;
        let mut tally = plan.tally();
        Report {
            sockets: plan.options.sockets as u64,
            open_at_end,
            connections: tally.connections,
            ready_s: tally.ready.map(|ready| ready.as_secs_f64()),
            frames: tally.frames,
            events: tally.events,
            distinct_events,
            undecodable: tally.undecodable,
            undecodable_example: tally.undecodable_example.take(),
            pings: tally.pings,
            repeats: tally.repeats,
            out_of_order: tally.out_of_order,
            holes: tally.holes,
            missing: tally.missing,
            closes: std::mem::take(&mut tally.closes),
            refused: std::mem::take(&mut tally.refused),
            connect_errors: tally.connect_errors,
            protocol_errors: tally.protocol_errors,
            latency_ms: tally.latency.percentiles(),
            duration_s: plan.start.elapsed().as_secs_f64(),
        }
    }
}
