//! The writer's SQL: many rows a statement, in a few fixed sizes, so that each is prepared once.
//!
//! A commit is a handful of calls to the connection's thread; `BEGIN` and `COMMIT` ride on the first and
//! the last of them, because each call costs a wake-up.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, SqliteConnection};

use super::fault::Fault;

/// Rows of one statement. Measured: beyond 256 nothing is gained.
const SIZES: [usize; 16] = [256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1];

/// What one statement does; the number is that of its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Records(usize),
    GroupPlaces(usize),
    OutcomeGroup,
    OutcomePages(usize),
    OutcomeRun,
    ForgetOutcomeGroups,
    ForgetOutcomePages,
    ForgetOutcomeRuns,
}

impl Kind {
    fn text(self) -> String {
        let rows = |insert: &str, row: &str, count: usize| {
            let rows = vec![row; count].join(",");
            format!("{insert} VALUES {rows}")
        };
        match self {
            Self::Records(count) => rows("INSERT OR FAIL INTO records", "(?,?,?,?,?,?,?)", count),
            Self::GroupPlaces(count) => rows("REPLACE INTO groups", "(?,?,?)", count),
            Self::OutcomeGroup => "INSERT INTO outcome_groups VALUES (?,?)".to_owned(),
            Self::OutcomePages(count) => rows("INSERT OR FAIL INTO outcome_pages", "(?,?)", count),
            Self::OutcomeRun => "INSERT INTO outcome_runs VALUES (?,?,?)".to_owned(),
            Self::ForgetOutcomeGroups => "DELETE FROM outcome_groups WHERE seq <= ?".to_owned(),
            Self::ForgetOutcomePages => "DELETE FROM outcome_pages WHERE id < ?".to_owned(),
            Self::ForgetOutcomeRuns => "DELETE FROM outcome_runs WHERE run <= ?".to_owned(),
        }
    }
}

/// A statement with its values.
pub(super) struct Step {
    kind: Kind,
    arguments: SqliteArguments,
}

impl Step {
    pub(super) fn new(kind: Kind, fill: impl FnOnce(&mut Values)) -> Self {
        let mut values = Values(SqliteArguments::default());
        fill(&mut values);
        Self { kind, arguments: values.0 }
    }

    /// As few statements as the fixed sizes allow.
    pub(super) fn many<T>(
        mut rows: &[T],
        kind: impl Fn(usize) -> Kind,
        fill: impl Fn(&T, &mut Values),
        steps: &mut Vec<Self>,
    ) {
        for size in SIZES {
            while let Some((now, later)) = rows.split_at_checked(size) {
                let step =
                    Self::new(kind(size), |values| now.iter().for_each(|row| fill(row, values)));
                steps.push(step);
                rows = later;
            }
        }
    }
}

/// Values in the order of the question marks.
pub(super) struct Values(SqliteArguments);

impl Values {
    pub(super) fn int(&mut self, value: i64) {
        self.add(value);
    }

    pub(super) fn text(&mut self, value: &str) {
        self.add(value.to_owned());
    }

    pub(super) fn blob(&mut self, value: &[u8]) {
        self.add(value.to_vec());
    }

    pub(super) fn blob_or_null(&mut self, value: Option<&[u8]>) {
        self.add(value.map(<[u8]>::to_vec));
    }

    fn add<'t>(&mut self, value: impl sqlx::Encode<'t, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>) {
        self.0.add(value).expect("integers, text and bytes always encode");
    }
}

/// Statement texts by kind and by what rides on them.
#[derive(Default)]
pub(super) struct Texts(HashMap<(Kind, bool, bool), Arc<str>>);

impl Texts {
    fn get(&mut self, kind: Kind, begin: bool, commit: bool) -> Arc<str> {
        let text = || {
            let begin = if begin { "BEGIN IMMEDIATE;" } else { "" };
            let commit = if commit { ";COMMIT" } else { "" };
            Arc::from(format!("{begin}{}{commit}", kind.text()))
        };
        Arc::clone(self.0.entry((kind, begin, commit)).or_insert_with(text))
    }
}

/// Runs the steps as one transaction; `begun` when the caller has already begun it. Rolled back as a
/// whole on any fault.
pub(super) async fn commit(
    connection: &mut SqliteConnection,
    texts: &mut Texts,
    steps: Vec<Step>,
    begun: bool,
) -> Result<(), Fault> {
    let result = run(connection, texts, steps, begun).await;
    if result.is_err() {
        roll_back(connection).await;
    }
    result
}

async fn run(
    connection: &mut SqliteConnection,
    texts: &mut Texts,
    steps: Vec<Step>,
    begun: bool,
) -> Result<(), Fault> {
    let count = steps.len();
    for (index, step) in steps.into_iter().enumerate() {
        let text = texts.get(step.kind, index == 0 && !begun, index + 1 == count);
        let query = sqlx::query_with(AssertSqlSafe(text), step.arguments);
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Some faults end the transaction by themselves; then there is nothing to roll back, and that is fine.
pub(super) async fn roll_back(connection: &mut SqliteConnection) {
    if let Err(error) = sqlx::raw_sql("ROLLBACK").execute(connection).await {
        tracing::debug!(%error, "nothing to roll back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_rows_is_cut_into_fixed_sizes_in_order() {
        for count in 0..1_000 {
            let rows: Vec<i64> = (0..count).collect();
            let mut steps = Vec::new();
            Step::many(&rows, Kind::Records, |row, values| values.int(*row), &mut steps);
            let sizes = steps.iter().map(|step| step.arguments.len());
            assert_eq!(i64::try_from(sizes.sum::<usize>()).unwrap(), count);
            assert!(steps.len() <= 7, "{count} rows took {} statements", steps.len());
        }
    }

    #[test]
    fn begin_and_commit_ride_on_the_outer_statements() {
        let mut texts = Texts::default();
        let alone = texts.get(Kind::GroupPlaces(2), true, true);
        assert_eq!(&*alone, "BEGIN IMMEDIATE;REPLACE INTO groups VALUES (?,?,?),(?,?,?);COMMIT");
        assert_eq!(&*texts.get(Kind::OutcomeGroup, false, false), &*Kind::OutcomeGroup.text());
    }
}
