//! The four runs, short, and the rules they are judged by.

mod four;
mod rules;
