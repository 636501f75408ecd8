//! The four runs, short, and the rules they are judged by; consumers that are killed and scaled.

mod consumers;
mod four;
mod rules;
