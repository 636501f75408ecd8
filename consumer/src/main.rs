//! The consumer as a process of its own; `pulsestream consumer` runs the same.

use std::process::ExitCode;

use pulsestream_shared::process;

fn main() -> ExitCode {
    process::main(
        pulsestream_consumer::ROLE,
        |server| server.consumer_port,
        pulsestream_consumer::build,
    )
}
