//! `pulsestream dlq`: dead letters a person can work with.
//!
//! The table `dead_letters` decides what there is; the log is asked for bytes alone, at the place that a
//! letter's row names. So a copy on `metrics.dlq` that no row names, and a repeated one, are never seen.
//! Nothing here needs the pipeline to stand still: see [`DeadLetterStore`] for what may happen meanwhile.
//!
//! [`DeadLetterStore`]: pulsestream_shared::store::DeadLetterStore

use std::collections::HashMap;

use clap::Subcommand;
use pulsestream_shared::config::Config;
use pulsestream_shared::engine::{self, AttachedLog, Stores};
use pulsestream_shared::event::ClientId;
use pulsestream_shared::log::STORE_GROUP;
use pulsestream_shared::process::Failure;
use pulsestream_shared::store::{Letter, LetterFilter, LetterPlace, LetterState, Progress};

mod bytes;
mod filter;
mod list;
mod purge;
mod replay;
mod show;
mod tally;

use filter::Which;

/// Letters of one page.
const PAGE: usize = 500;

/// List, show, replay and purge dead letters.
#[derive(Debug, Subcommand)]
pub(crate) enum DlqCommand {
    /// List dead letters, newest first.
    List {
        #[command(flatten)]
        which: Which,
        /// So many at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter: why it died, its key, headers and bytes.
    Show {
        /// As `dlq list` names it, or the id of its event.
        letter: String,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Send dead letters to the store once more, under their own ids; it is safe to do so again.
    Replay {
        /// This one alone, as `dlq list` names it, or by the id of its event.
        letter: Option<String>,
        #[command(flatten)]
        which: Which,
        /// So many at most.
        #[arg(long)]
        limit: Option<usize>,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Delete dead letters for good. Those that are on their way to the store are left.
    Purge {
        /// This one alone, as `dlq list` names it, or by the id of its event.
        letter: Option<String>,
        #[command(flatten)]
        which: Which,
        /// All of them; needed when nothing else says which.
        #[arg(long)]
        all: bool,
        /// So many at most.
        #[arg(long)]
        limit: Option<usize>,
        /// Say what would be done, and do nothing.
        #[arg(long)]
        dry_run: bool,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(command: DlqCommand, config: Config) -> Result<(), Failure> {
    let stores = engine::open_store(&config).await.map_err(|error| error.to_string())?;
    let desk = Desk { clients: client_names(&stores).await?, stores };
    match command {
        DlqCommand::List { which, limit, json } => {
            list::run(&desk, &which.filter(&desk)?, limit, json).await
        }
        DlqCommand::Show { letter, json } => {
            let progress = desk.progress().await?;
            let letter = judged(desk.one(&letter).await?, &progress);
            let log = open_log(&config).await?;
            let shown = show::run(&desk, &log, letter, json).await;
            log.close().await;
            shown
        }
        DlqCommand::Replay { letter, which, limit, dry_run, json } => {
            let most_attempts = which.max_attempts;
            let filter = desk.narrowed(which.filter(&desk)?, letter.as_deref()).await?;
            // Whoever names one letter means it.
            let most_attempts = match letter {
                Some(_) => most_attempts,
                None => Some(most_attempts.unwrap_or(replay::MOST_ATTEMPTS)),
            };
            let order = replay::Order { filter, most_attempts, limit, dry_run, json };
            let log = open_log(&config).await?;
            let replayed = replay::run(&desk, &log, order).await;
            log.close().await;
            replayed
        }
        DlqCommand::Purge { letter, which, all, limit, dry_run, yes, json } => {
            if letter.is_none() && which.is_empty() && !all {
                return Err(filter::usage(
                    "say which dead letters to purge (--reason, --since, --device, --client, \
                     --max-attempts, or a letter), or --all",
                ));
            }
            let filter = desk.narrowed(which.filter(&desk)?, letter.as_deref()).await?;
            purge::run(&desk, purge::Order { filter, limit, dry_run, yes, json }).await
        }
    }
}

async fn open_log(config: &Config) -> Result<AttachedLog, String> {
    AttachedLog::open(config).await.map_err(|error| error.to_string())
}

async fn client_names(stores: &Stores) -> Result<HashMap<ClientId, String>, String> {
    let keys = stores.keys.list().await.map_err(|error| error.to_string())?;
    Ok(keys.into_iter().map(|key| (key.client, key.client_name)).collect())
}

/// What every command works with.
struct Desk {
    stores: Stores,
    /// The clients that have a key.
    clients: HashMap<ClientId, String>,
}

impl Desk {
    /// The client's name, else its number.
    fn client(&self, client: ClientId) -> String {
        self.clients.get(&client).cloned().unwrap_or_else(|| client.to_string())
    }

    /// How far the store has come; to be read before the letters it judges, see `Letter::state`.
    async fn progress(&self) -> Result<Vec<Progress>, String> {
        self.stores.events.progress(STORE_GROUP).await.map_err(|error| error.to_string())
    }

    /// The one letter of that name.
    async fn one(&self, name: &str) -> Result<Letter, Failure> {
        let letters = self.named(&LetterFilter::default(), name).await?;
        match letters.as_slice() {
            [letter] => Ok(letter.clone()),
            letters => {
                let names: Vec<_> = letters.iter().map(|it| it.place.to_string()).collect();
                let names = names.join(", ");
                Err(format!("{name}: these dead letters are meant: {names}; name one").into())
            }
        }
    }

    /// The filter, for the letter of that name alone if there is one.
    async fn narrowed(
        &self,
        filter: LetterFilter,
        name: Option<&str>,
    ) -> Result<LetterFilter, Failure> {
        let Some(name) = name else { return Ok(filter) };
        let letters = self.named(&filter, name).await?;
        filter::only(filter, name, &letters)
    }

    /// At least one.
    async fn named(&self, filter: &LetterFilter, name: &str) -> Result<Vec<Letter>, Failure> {
        let wanted = filter::Name::parse(name)?;
        let found = self.stores.letters.newest(&wanted.filter(filter.clone()), PAGE).await;
        let mut found = found.map_err(|error| error.to_string())?;
        found.retain(|letter| wanted.is_of(letter));
        if found.is_empty() {
            return Err(format!("{name}: there is no such dead letter").into());
        }
        Ok(found)
    }
}

/// All letters that are meant, page by page in the order of their places.
struct Pages<'a> {
    desk: &'a Desk,
    filter: &'a LetterFilter,
    after: Option<LetterPlace>,
    ended: bool,
}

impl<'a> Pages<'a> {
    fn of(desk: &'a Desk, filter: &'a LetterFilter) -> Self {
        Self { desk, filter, after: None, ended: false }
    }

    /// The next letters, each with what it waits for; none: there are no more.
    async fn next(&mut self) -> Result<Vec<(Letter, LetterState)>, String> {
        if self.ended {
            return Ok(Vec::new());
        }
        let progress = self.desk.progress().await?;
        let letters = self.desk.stores.letters.walk(self.filter, self.after, PAGE).await;
        let letters = letters.map_err(|error| error.to_string())?;
        self.after = letters.last().map(|letter| letter.place);
        self.ended = letters.len() < PAGE;
        Ok(letters.into_iter().map(|letter| judged(letter, &progress)).collect())
    }
}

fn judged(letter: Letter, progress: &[Progress]) -> (Letter, LetterState) {
    let state = letter.state(progress);
    (letter, state)
}
