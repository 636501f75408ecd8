//! The least a server can do that sends the same to many: one `send()` of the same bytes for each
//! connection. What live delivery costs a frame is measured against it.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::process::cpu_time;

/// What is sent, and to how many.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Connections waited for before the first round.
    pub connections: usize,
    /// Payload bytes of each WebSocket text frame.
    pub bytes: u16,
    /// Rounds a second; in each every connection is sent one frame.
    pub rate: f64,
    /// How long rounds are begun.
    pub duration: Duration,
}

/// What it took.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Report {
    /// Frames sent.
    pub sends: u64,
    /// CPU of this process for each, user and system, in microseconds.
    pub cpu_us_per_send: f64,
}

/// Waits for the connections, sends, and returns. Nothing is read.
///
/// # Errors
/// A connection broke, or its client takes too little.
pub fn run(listener: &TcpListener, options: Options) -> Result<Report> {
    let mut connections = Vec::new();
    while connections.len() < options.connections {
        let (connection, _) = listener.accept().context("accept")?;
        connection.set_nodelay(true).context("set TCP_NODELAY")?;
        connections.push(connection);
    }
    let frame = frame(options.bytes);
    let (begun, before) = (Instant::now(), cpu_time(std::process::id())?);
    let mut sends = 0_u64;
    let mut due = Duration::ZERO;
    while due < options.duration {
        #[expect(clippy::disallowed_methods, reason = "a schedule; nothing is waited for")]
        thread::sleep(due.saturating_sub(begun.elapsed()));
        connections.iter_mut().try_for_each(|connection| send(connection, &frame))?;
        sends += connections.len() as u64;
        due += Duration::from_secs_f64(1.0 / options.rate);
    }
    let cpu = cpu_time(std::process::id())?.saturating_sub(before);
    Ok(Report { sends, cpu_us_per_send: cpu.as_secs_f64() * 1e6 / sends as f64 })
}

fn send(connection: &mut TcpStream, frame: &[u8]) -> Result<()> {
    connection.write_all(frame).context("send")
}

/// A text frame whose length takes two bytes.
fn frame(bytes: u16) -> Vec<u8> {
    let mut frame = vec![0x81, 126];
    frame.extend_from_slice(&bytes.to_be_bytes());
    frame.resize(frame.len() + usize::from(bytes), b'x');
    frame
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn every_connection_is_sent_one_frame_a_round() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let reader = || {
            thread::spawn(move || {
                let mut read = Vec::new();
                TcpStream::connect(address).unwrap().read_to_end(&mut read).unwrap();
                read
            })
        };
        let readers = [reader(), reader()];
        let options = Options {
            connections: 2,
            bytes: 300,
            rate: 100.0,
            duration: Duration::from_millis(30),
        };
        let report = run(&listener, options).unwrap();
        for reader in readers {
            let read = reader.join().unwrap();
            assert_eq!(read, frame(300).repeat(read.len() / 304));
            assert_eq!(read.len() as u64 / 304 * 2, report.sends);
        }
    }
}
