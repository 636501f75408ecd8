//! A body as it arrives: bounded in size, and cut when it stalls or trickles.
//!
//! A sender that holds a place must earn it: something arrives in every `stall`, and `stall` plus what
//! arrived divided by the slowest rate is never used up. What a body may take altogether is the caller's.

use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use pulsestream_shared::config;
use tokio::time::{Instant, timeout_at};

/// How fast a body must arrive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    stall: Duration,
    bytes_per_second: u32,
}

/// Why there is no body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Larger than it may be.
    TooLarge,
    /// It stalled, trickled, or was not whole in time.
    TooSlow,
    /// It ended too early.
    Cut,
}

impl Pace {
    pub(crate) fn new(config: &config::Ingest) -> Self {
        let bytes_per_second = config.min_body_bytes_per_second;
        Self { stall: config.body_stall_timeout, bytes_per_second }
    }

    /// When the next part must be here.
    fn next_due(self, start: Instant, now: Instant, arrived: usize) -> Instant {
        let earned = Duration::from_secs_f64(arrived as f64 / f64::from(self.bytes_per_second));
        (now + self.stall).min(start + self.stall + earned)
    }
}

/// Reads a body of at most `most` bytes that is whole by `deadline`.
///
/// # Errors
/// [`Fault`]; the rest of the body is not read.
pub(crate) async fn receive(
    mut body: Body,
    most: usize,
    pace: Pace,
    deadline: Instant,
) -> Result<Bytes, Fault> {
    let start = Instant::now();
    let (mut now, mut first, mut rest) = (start, Bytes::new(), Vec::new());
    loop {
        let arrived = first.len() + rest.len();
        let due = pace.next_due(start, now, arrived).min(deadline);
        let frame = match timeout_at(due, body.frame()).await {
            Err(_) => return Err(Fault::TooSlow),
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(_))) => return Err(Fault::Cut),
        };
        let Ok(data) = frame.into_data() else { continue };
        if arrived + data.len() > most {
            return Err(Fault::TooLarge);
        }
        // Most bodies come in one part, which is then not copied.
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
        now = Instant::now();
    }
    if rest.is_empty() {
        return Ok(first);
    }
    Ok([&first[..], &rest].concat().into())
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const STALL: Duration = Duration::from_millis(400);
    const PACE: Pace = Pace { stall: STALL, bytes_per_second: 1_000 };

    /// Parts of so many bytes, each after its pause.
    async fn read(parts: Vec<(u64, usize)>, most: usize) -> Result<usize, Fault> {
        let body = Body::from_stream(stream::unfold(parts.into_iter(), async |mut parts| {
            let (pause_ms, bytes) = parts.next()?;
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            Some((Ok::<_, std::io::Error>(vec![b'x'; bytes]), parts))
        }));
        let deadline = Instant::now() + 10 * STALL;
        receive(body, most, PACE, deadline).await.map(|bytes| bytes.len())
    }

    #[tokio::test]
    async fn parts_become_one_body_and_one_byte_too_many_is_refused() {
        let parts = vec![(0, 40), (1, 0), (1, 50), (1, 10)];
        assert_eq!(read(parts.clone(), 100).await, Ok(100));
        assert_eq!(read(parts, 99).await, Err(Fault::TooLarge));
        assert_eq!(read(vec![], 0).await, Ok(0));
    }

    #[tokio::test]
    async fn a_body_of_which_nothing_arrives_is_cut_before_its_deadline() {
        let start = Instant::now();
        assert_eq!(read(vec![(0, 900), (60_000, 100)], 1_000).await, Err(Fault::TooSlow));
        assert!(start.elapsed() < 5 * STALL, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_body_that_trickles_is_cut_however_often_something_arrives() {
        assert_eq!(read(vec![(40, 1); 100], 1_000).await, Err(Fault::TooSlow));
    }

    #[test]
    fn what_has_arrived_buys_time_and_a_pause_never_more_than_the_stall() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(PACE.next_due(start, at(0), 0), at(400));
        assert_eq!(PACE.next_due(start, at(300), 0), at(400));
        assert_eq!(PACE.next_due(start, at(300), 200), at(600));
        assert_eq!(PACE.next_due(start, at(300), 100_000), at(700));
    }
}
