//! CPU time of another process, from `/proc`. Linux only, like the measurements that use it.

use std::time::Duration;

use anyhow::{Context, Result};

/// What the kernel calls USER_HZ: fixed at 100 on every Linux that we measure on.
const TICKS_PER_S: f64 = 100.0;

/// CPU time, user and system, of the process so far, in steps of 10 ms.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse(&stat).with_context(|| format!("{path} is not in the known format"))
}

/// Fields 14 and 15, counted behind the command's name, which may hold spaces and brackets.
fn parse(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) / TICKS_PER_S))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 100";
        assert_eq!(parse(stat), Some(Duration::from_secs(3)));
    }

    #[test]
    fn our_own_cpu_time_can_be_read() {
        cpu_time(std::process::id()).unwrap();
    }
}
