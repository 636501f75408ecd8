//! How soon the allocator gives freed memory back to the system.

use std::env;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The allocator's own setting, milliseconds.
const PURGE_DELAY: &str = "MIMALLOC_PURGE_DELAY";
/// At once, every batch would take back from the system what the last one gave: an eighth of a consumer's CPU.
const SOON_MS: &str = "100";

/// Begins the program anew, in the same process, with freed memory given back soon, unless its environment says how soon.
/// To be called before anything is read: a setting may lie in a pipe, which is read once.
///
/// A consumer frees with every batch what the next one takes; kept for a second, as the allocator does by itself, that is
/// a third more memory while it catches up. The allocator reads its settings before `main`, and code could change
/// them only by unsafe calls.
///
/// # Errors
/// It could not begin anew; freed memory is kept for a while.
pub(crate) fn give_back_soon() -> io::Result<()> {
    if env::var_os(PURGE_DELAY).is_some() {
        return Ok(());
    }
    let program = env::current_exe()?;
    let mut arguments = env::args_os();
    let mut anew = Command::new(program);
    if let Some(name) = arguments.next() {
        anew.arg0(name);
    }
    Err(anew.args(arguments).env(PURGE_DELAY, SOON_MS).exec())
}
