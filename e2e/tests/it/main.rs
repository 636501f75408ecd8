//! One binary for all journeys: one link, one set of servers.

mod house;
mod journey;
