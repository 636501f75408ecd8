//! The data folder: it exists, it can be written, and one pipeline at a time owns it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;

use crate::log::LogError;

const LOCK_FILE: &str = "pulsestream.lock";

/// Ownership of a data folder, until dropped. The operating system gives it up when the process dies,
/// however it dies.
#[derive(Debug)]
pub(super) struct FolderLock {
    /// Held open for its lock alone.
    _file: File,
}

/// Creates the folder if need be and takes ownership of it.
///
/// # Errors
/// [`LogError::Unusable`] with a sentence for people: not a folder, not writable, in use.
pub(super) fn own(dir: &Path) -> Result<FolderLock, LogError> {
    let unusable = |error: &std::io::Error| LogError::Unusable(sentence(dir, error));
    std::fs::create_dir_all(dir).map_err(|error| unusable(&error))?;
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(LOCK_FILE))
        .map_err(|error| unusable(&error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let owner = owner(&mut file);
            let folder = dir.display();
            return Err(LogError::Unusable(format!("data folder {folder} is in use by {owner}")));
        }
        Err(TryLockError::Error(error)) => return Err(unusable(&error)),
    }
    note_owner(&mut file).map_err(|error| unusable(&error))?;
    Ok(FolderLock { _file: file })
}

fn owner(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => format!("process {}", text.trim()),
        _ => "another process".to_owned(),
    }
}

fn note_owner(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

fn sentence(dir: &Path, error: &std::io::Error) -> String {
    let folder = dir.display();
    match error.kind() {
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            format!("data folder {folder} is not a folder")
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            format!("data folder {folder} cannot be written: {error}")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            format!("data folder {folder} has no room: disk full")
        }
        _ => format!("data folder {folder} cannot be used: {error}"),
    }
}
