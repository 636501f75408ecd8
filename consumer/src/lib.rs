//! PulseStream.
