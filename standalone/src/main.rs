//! The `pulsestream` binary; the program is the library's.

use std::process::ExitCode;

/// Freed memory goes back sooner and small allocations are cheaper than with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pulsestream::main()
}
