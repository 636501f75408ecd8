//! Journeys through the whole pipeline, written once and run on every engine set: over real HTTP and
//! real sockets, in process ([`harness`]) or as processes that can be killed ([`process`]).

#![expect(clippy::panic, reason = "tests end by panicking")]

pub mod client;
pub mod consumers;
pub mod harness;
pub mod process;
pub mod runs;
pub mod sse;
pub mod verify;

/// Runs each journey, a function of the [`harness::Engines`], on both engine sets, as a test of its own.
#[macro_export]
macro_rules! on_both {
    ($($journey:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $journey() {
                super::$journey($crate::harness::Engines::Embedded).await;
            })*
        }
        mod servers {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $journey() {
                super::$journey($crate::harness::Engines::Servers).await;
            })*
        }
    };
}
