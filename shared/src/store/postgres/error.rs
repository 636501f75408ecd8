//! What an error of PostgreSQL means for the caller: by SQLSTATE, never by text.

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::store::StoreError;
use crate::store::settle::Failure;

/// Judges an error of the driver.
pub(super) fn failure(error: sqlx::Error) -> Failure {
    match &error {
        sqlx::Error::Database(database) => {
            let named = database
                .try_downcast_ref::<PgDatabaseError>()
                .is_some_and(|error| error.constraint().is_some());
            by_sqlstate(database.code().as_deref().unwrap_or_default(), named, &error)
        }
        sqlx::Error::Configuration(_) | sqlx::Error::TypeNotFound { .. } => {
            StoreError::Deployment(error.to_string()).into()
        }
        _ => StoreError::Transient(error.to_string()).into(),
    }
}

/// As [`failure`], for statements that carry nothing of a device.
pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    failure(error).into()
}

/// True for a violation of a unique key.
pub(super) fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some("23505")
}

/// `named` tells whether the error names a constraint: "no partition for this row" has the code of a
/// CHECK violation (23514) and differs from one only in that.
fn by_sqlstate(code: &str, named: bool, error: &sqlx::Error) -> Failure {
    match (code.get(..2).unwrap_or_default(), code) {
        (_, "23514") if !named => Failure::NoDay,
        // What COPY cannot read is our encoding, never a device's value.
        (_, "22P03" | "22P04") => {
            StoreError::Deployment(format!("{error} (SQLSTATE {code})")).into()
        }
        ("22", _) | (_, "23502" | "23514" | "54001" | "21000") => Failure::Data(code.to_owned()),
        ("42" | "3D" | "3F" | "28", _) => {
            StoreError::Deployment(format!("{error} (SQLSTATE {code})")).into()
        }
        // 08, 40, 53, 55, 57, 58, 25006, 25P03, XX and whatever nobody thought of: a batch that waits
        // can be saved by a person, one that was thrown away cannot.
        _ => StoreError::Transient(format!("{error} (SQLSTATE {code})")).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sqlstate_alone_decides_between_waiting_stopping_and_dead_letters() {
        let word = |code| match by_sqlstate(code, true, &sqlx::Error::RowNotFound) {
            Failure::Data(_) => "data",
            Failure::NoDay => "day",
            Failure::Store(StoreError::Transient(_)) => "transient",
            Failure::Store(StoreError::Deployment(_)) => "deployment",
        };
        let transient = [
            "08006", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01", "25006",
            "25P03", "58030", "XX000", "23505", "0A000", "",
        ];
        transient.iter().for_each(|code| assert_eq!(word(code), "transient", "{code}"));
        let data = ["22P02", "22021", "22P05", "23502", "23514", "54001", "21000"];
        data.iter().for_each(|code| assert_eq!(word(code), "data", "{code}"));
        let deployment = ["42P01", "42501", "3D000", "3F000", "28P01", "22P03", "22P04"];
        deployment.iter().for_each(|code| assert_eq!(word(code), "deployment", "{code}"));
    }
}
