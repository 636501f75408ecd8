//! Journeys through the whole pipeline, written once and run on every engine set: over real HTTP and
//! real sockets, in process ([`harness`]) or as processes that can be killed ([`process`]).

pub mod client;
pub mod harness;
pub mod process;
