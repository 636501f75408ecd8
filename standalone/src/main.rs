//! PulseStream.
fn main() {}
