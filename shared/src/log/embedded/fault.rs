//! What SQLite's refusals mean here, told by result code, never by text.

use crate::log::{AppendError, LogError};

/// A failed statement, as far as the log cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No room on the disk (or in the file, when it is limited).
    DiskFull,
    /// A row with that key is there already: another process wrote since we looked.
    Conflict,
    /// Another process holds the write lock for longer than we wait.
    Busy,
    /// The file is not a database, or is damaged.
    Damaged(String),
    /// The folder or file cannot be written.
    ReadOnly(String),
    /// The operating system failed a read, a write or a flush.
    Io(String),
    /// Anything else.
    Other(String),
}

impl Fault {
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        let detail = error.to_string();
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .and_then(|code| code.parse::<u32>().ok());
        // The low byte is the primary result code: https://www.sqlite.org/rescode.html
        match code.map(|code| code & 0xff) {
            Some(13) => Self::DiskFull,
            Some(19) => Self::Conflict,
            Some(5 | 6) => Self::Busy,
            Some(11 | 26) => Self::Damaged(detail),
            Some(3 | 8 | 14) => Self::ReadOnly(detail),
            Some(10) => Self::Io(detail),
            _ => Self::Other(detail),
        }
    }

    /// The fault in a sentence for people.
    pub(crate) fn sentence(&self) -> String {
        match self {
            Self::DiskFull => "disk full: no room for the log in the data folder".to_owned(),
            Self::Conflict => "another process writes to the log at the same time".to_owned(),
            Self::Busy => "another process holds the log's write lock".to_owned(),
            Self::Damaged(detail) => format!("the log file is damaged: {detail}"),
            Self::ReadOnly(detail) => format!("the log file cannot be written: {detail}"),
            Self::Io(detail) => format!("the disk failed: {detail}"),
            Self::Other(detail) => detail.clone(),
        }
    }

    /// For records of a transaction that was rolled back. A failed flush may have reached the disk all
    /// the same, so it is the one case in which the records may be there.
    pub(crate) fn append_error(&self) -> AppendError {
        match self {
            Self::Io(_) => AppendError::Unknown(self.sentence()),
            _ => AppendError::Unavailable(self.sentence()),
        }
    }

    pub(crate) fn log_error(&self) -> LogError {
        match self {
            Self::Damaged(_) => LogError::Unusable(self.sentence()),
            _ => LogError::Unavailable(self.sentence()),
        }
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::of(&error)
    }
}
