//! A file of JSON lines that many tasks append to.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// Appends one JSON object per line, buffered. A write that fails is remembered and reported by
/// [`finish`](Self::finish): the tasks that write have no use for the error, the run has.
#[derive(Debug)]
pub(crate) struct JsonLines(Mutex<State>);

#[derive(Debug)]
struct State {
    out: BufWriter<File>,
    fault: Option<io::Error>,
}

impl JsonLines {
    /// Creates or empties the file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let out = BufWriter::with_capacity(1 << 16, File::create(path)?);
        Ok(Self(Mutex::new(State { out, fault: None })))
    }

    pub(crate) fn write(&self, line: &impl Serialize) {
        self.with(|out| {
            serde_json::to_writer(&mut *out, line)?;
            out.write_all(b"\n")
        });
    }

    pub(crate) fn flush(&self) {
        self.with(Write::flush);
    }

    /// Flushes and returns the first error of the file's whole life.
    pub(crate) fn finish(&self) -> io::Result<()> {
        self.flush();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.fault.take().map_or(Ok(()), Err)
    }

    fn with(&self, act: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.fault.is_none() {
            state.fault = act(&mut state.out).err();
        }
    }
}
