//! The `pulsestream` binary: the whole pipeline in one process, each service alone, and the commands of
//! an operator. A library, so that tests run the very same program.

use std::process::ExitCode;

use clap::Parser as _;
use pulsestream_shared::admin::Dependency;
use pulsestream_shared::auth::Keyring;
use pulsestream_shared::config::{self, Loaded};
use pulsestream_shared::engine::OpenError;
use pulsestream_shared::process::{EXIT_USAGE, Failure, block_on, complain};
use pulsestream_shared::service::{Context, Role, Routes};
use pulsestream_shared::telemetry;

mod banner;
mod cli;
mod config_commands;
mod dlq;
mod healthcheck;
mod keys;
mod memory;
mod output;
mod roles;

use cli::{Cli, Command};

/// How the all-in-one process names itself.
pub const ROLE: Role =
    Role { name: "pulsestream", required: &[Dependency::Log, Dependency::Store] };

/// Builds gateway, consumer and broadcaster on one engine and one listener.
///
/// # Errors
/// [`OpenError`] when one of them cannot be built.
pub async fn build(context: Context) -> Result<Routes, OpenError> {
    let keyring = Keyring::open(&context).await?;
    let document = config_commands::document(&context.config);
    let gateway =
        pulsestream_gateway::build_beside(context.clone(), keyring.clone(), &document).await?;
    let broadcaster = pulsestream_broadcaster::build(context.clone(), keyring).await?;
    let consumer = pulsestream_consumer::build(context).await?;
    // Paths nobody knows are the gateway's to answer and to count.
    Ok(gateway.merge(broadcaster).merge(consumer))
}

/// The program: command line, configuration, logs, then what was asked for.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(asked) if !asked.use_stderr() => asked.exit(), // --help, --version
        Err(error) => return complain(&error, EXIT_USAGE),
    };
    let command = cli.command.unwrap_or_default();
    if let Command::Completions { shell } = command {
        cli::completions(shell);
        return ExitCode::SUCCESS;
    }
    let gives_back = match command {
        Command::Consumer => memory::give_back_soon(),
        _ => Ok(()),
    };
    let flags = cli.settings.flags();
    let loaded = match config::load(cli.config.as_deref(), std::env::vars(), &flags) {
        Ok(loaded) => loaded,
        Err(faults) => return complain(&faults, EXIT_USAGE),
    };
    if let Err(error) = telemetry::start(&loaded.config.telemetry) {
        return complain(&error, EXIT_USAGE);
    }
    if let Err(error) = gives_back {
        tracing::debug!(%error, "freed memory is kept for a while");
    }
    match run(command, loaded) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => complain(&failure.reason, failure.code),
    }
}

fn run(command: Command, loaded: Loaded) -> Result<(), Failure> {
    match command {
        Command::Up => block_on(roles::up(loaded.config))?,
        Command::Gateway => block_on(roles::gateway(loaded.config))?,
        Command::Consumer => block_on(roles::consumer(loaded.config))?,
        Command::Broadcaster => block_on(roles::broadcaster(loaded.config))?,
        Command::Migrate => block_on(roles::migrate(loaded.config))?,
        Command::Keys(command) => block_on(keys::run(command, loaded.config))?,
        Command::Dlq(command) => block_on(dlq::run(command, loaded.config))?,
        Command::Config(command) => config_commands::run(&command, &loaded)?,
        Command::Openapi => config_commands::openapi(&loaded.config)?,
        Command::Healthcheck { url } => block_on(healthcheck::run(url, loaded.config))?,
        Command::Completions { .. } => {}
    }
    Ok(())
}
