//! The writer's SQL: many rows a statement, in a few fixed sizes, so that each is prepared once.
//!
//! A commit is one call to the connection's thread where it can be, else a handful: `BEGIN` and `COMMIT`
//! ride on the first and the last, the outcomes on the last of the records. Each call costs two wake-ups,
//! and the second waits its turn behind every request that is ready: the disk is idle meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, SqliteConnection};

use super::fault::Fault;

/// Rows of one statement. Measured: beyond 256 nothing is gained.
const SIZES: [usize; 16] = [256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1];

/// Values of a row of `records`.
const BATCH_VALUES: usize = 6;

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
            Self::Records(count) => {
                let row = format!("({})", ["?"; BATCH_VALUES].join(","));
                let values = "column1, column2, column3, column4, column5, x'', column6";
                let rows = rows(&format!("SELECT {values} FROM ("), &row, count);
                let columns = "topic, partition, offset, logged_at_ms, value, headers, count";
                // Without rows of nulls, by which a statement is filled up to its size.
                format!("INSERT OR FAIL INTO records ({columns}) {rows}) WHERE column1 IS NOT NULL")
            }
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

/// One call: a statement, perhaps another after it, and their values.
pub(super) struct Step {
    kind: Kind,
    then: Option<Kind>,
    arguments: SqliteArguments,
}

impl Step {
    pub(super) fn new(kind: Kind, fill: impl FnOnce(&mut Values)) -> Self {
        let mut values = Values(SqliteArguments::default());
        fill(&mut values);
        Self { kind, then: None, arguments: values.0 }
    }

    /// With another statement after the first, in the same call.
    fn then(self, kind: Kind, fill: impl FnOnce(&mut Values)) -> Self {
        let mut values = Values(self.arguments);
        fill(&mut values);
        Self { then: Some(kind), arguments: values.0, ..self }
    }

    /// Record batches, and the row of their outcomes when there is one, in as few calls as the largest
    /// size allows.
    pub(super) fn records<T>(
        rows: &[T],
        fill: impl Fn(&T, &mut Values),
        outcomes: Option<impl FnOnce(&mut Values)>,
        steps: &mut Vec<Self>,
    ) {
        for rows in rows.chunks(SIZES[0]) {
            let fits = |size: &usize| *size >= rows.len();
            let size = SIZES.into_iter().rev().find(fits).unwrap_or(SIZES[0]);
            steps.push(Self::new(Kind::Records(size), |values| {
                rows.iter().for_each(|row| fill(row, values));
                values.nulls((size - rows.len()) * BATCH_VALUES);
            }));
        }
        let Some(outcomes) = outcomes else { return };
        let step = match steps.pop() {
            Some(last) => last.then(Kind::OutcomeGroup, outcomes),
            None => Self::new(Kind::OutcomeGroup, outcomes),
        };
        steps.push(step);
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

    fn nulls(&mut self, count: usize) {
        (0..count).for_each(|_| self.add(None::<i64>));
    }

    fn add<'t>(&mut self, value: impl sqlx::Encode<'t, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>) {
        self.0.add(value).expect("integers, text and bytes always encode");
    }
}

/// Statement texts by kind and by what rides on them.
#[derive(Default)]
pub(super) struct Texts(HashMap<(Kind, Option<Kind>, bool, bool), Arc<str>>);

impl Texts {
    fn get(&mut self, kind: Kind, then: Option<Kind>, begin: bool, commit: bool) -> Arc<str> {
        let text = || {
            let begin = if begin { "BEGIN IMMEDIATE;" } else { "" };
            let then = then.map_or_else(String::new, |kind| format!(";{}", kind.text()));
            let commit = if commit { ";COMMIT" } else { "" };
            Arc::from(format!("{begin}{}{then}{commit}", kind.text()))
        };
        Arc::clone(self.0.entry((kind, then, begin, commit)).or_insert_with(text))
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
        let text = texts.get(step.kind, step.then, index == 0 && !begun, index + 1 == count);
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
            Step::many(&rows, Kind::GroupPlaces, |row, values| values.int(*row), &mut steps);
            let sizes = steps.iter().map(|step| step.arguments.len());
            assert_eq!(i64::try_from(sizes.sum::<usize>()).unwrap(), count);
            assert!(steps.len() <= 7, "{count} rows took {} statements", steps.len());
        }
    }

    #[test]
    fn up_to_256_batches_and_their_outcomes_go_in_one_call() {
        let fill =
            |row: &i64, values: &mut Values| (0..BATCH_VALUES).for_each(|_| values.int(*row));
        let outcomes = |values: &mut Values| {
            values.int(1);
            values.blob(b"packed");
        };
        for (count, calls) in [(0, 1), (1, 1), (5, 1), (255, 1), (256, 1), (257, 2), (1_000, 4)] {
            let rows: Vec<i64> = (0..count).collect();
            let mut steps = Vec::new();
            Step::records(&rows, fill, Some(outcomes), &mut steps);
            assert_eq!(steps.len(), calls, "{count} records");
            for step in steps {
                let text = Texts::default().get(step.kind, step.then, true, true);
                assert_eq!(text.matches('?').count(), step.arguments.len());
            }
        }
    }

    #[test]
    fn begin_and_commit_ride_on_the_outer_statements() {
        let mut texts = Texts::default();
        let alone = texts.get(Kind::GroupPlaces(2), None, true, true);
        assert_eq!(&*alone, "BEGIN IMMEDIATE;REPLACE INTO groups VALUES (?,?,?),(?,?,?);COMMIT");
        let outcome = texts.get(Kind::OutcomeGroup, None, false, false);
        assert_eq!(&*outcome, &*Kind::OutcomeGroup.text());
        let both = texts.get(Kind::ForgetOutcomeGroups, Some(Kind::OutcomeGroup), false, true);
        let texts = [Kind::ForgetOutcomeGroups, Kind::OutcomeGroup].map(Kind::text);
        assert_eq!(*both, format!("{};COMMIT", texts.join(";")));
    }
}
