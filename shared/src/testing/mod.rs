//! What tests of every crate share: one conformance suite a port, fault wrappers, a TCP proxy, and where
//! the real servers are. Compiled for tests alone (feature `testing`).

pub mod bus;
pub mod cache;
pub mod faults;
pub mod log;
pub mod proxy;
pub mod services;
pub mod store;

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

/// Waits until `condition` holds, looking again every few milliseconds.
///
/// # Panics
/// After `deadline`, naming `what` was waited for.
#[track_caller]
pub fn wait_for<F, Fut>(what: &str, deadline: Duration, condition: F) -> impl Future<Output = ()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let caller = std::panic::Location::caller();
    wait_until(format!("{what} ({caller})"), deadline, condition)
}

async fn wait_until<F, Fut>(what: String, deadline: Duration, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = Instant::now() + deadline;
    while !condition().await {
        assert!(Instant::now() < end, "waited {deadline:?} in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
