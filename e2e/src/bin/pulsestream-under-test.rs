//! The product's binary under another name: built with the tests and by the same settings, so that a
//! test run needs no second build of everything.

use std::process::ExitCode;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pulsestream::main()
}
