//! The command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use pulsestream_shared::config::Flag;

use crate::config_commands::ConfigCommand;
use crate::dlq::DlqCommand;
use crate::keys::KeysCommand;

/// An event pipeline for IoT devices: POST in, durable log, stored once, live on every dashboard.
#[derive(Debug, Parser)]
#[command(
    name = "pulsestream",
    version,
    arg_required_else_help = false,
    subcommand_required = false,
    after_help = "\
Examples:
  pulsestream                              everything in one process, data in ./data
  pulsestream --port 8080 --data-dir /var/lib/pulsestream
  pulsestream keys create --client acme    a key for a new client, also while it runs
  pulsestream dlq list                     what could not be stored, and why
  KAFKA_BROKERS=k:9092 DATABASE_URL=postgres://db/ps REDIS_URL=redis://r pulsestream migrate
  KAFKA_BROKERS=k:9092 DATABASE_URL=postgres://db/ps REDIS_URL=redis://r pulsestream gateway
  pulsestream config show                  what is in force, and where it came from"
)]
pub(crate) struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// A TOML file with settings; see config/default.toml.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Settings given as flags.
    #[command(flatten)]
    pub(crate) settings: Settings,
}

/// Flags that are settings; they win over file and environment.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Address to listen on [default: 127.0.0.1].
    #[arg(long, global = true)]
    host: Option<String>,
    /// Port to listen on [default: 3000; consumer 3001, broadcaster 3003].
    #[arg(long, global = true)]
    port: Option<u16>,
    /// Folder of the embedded engines [default: ./data].
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<String>,
    /// For trying things out: the live stream may be read without a key, on loopback only.
    #[arg(long, global = true)]
    dev: bool,
}

impl Settings {
    /// As `section.setting` and text.
    pub(crate) fn flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        if let Some(host) = &self.host {
            flags.push(("server.host", host.clone()));
        }
        if let Some(port) = self.port {
            // One process, one listener: whichever role it has.
            for setting in ["server.port", "server.consumer_port", "server.broadcaster_port"] {
                flags.push((setting, port.to_string()));
            }
        }
        if let Some(data_dir) = &self.data_dir {
            flags.push(("embedded.data_dir", data_dir.clone()));
        }
        if self.dev {
            flags.push(("server.dev", "true".to_owned()));
        }
        flags
    }
}

/// What to run.
#[derive(Debug, Default, Subcommand)]
pub(crate) enum Command {
    /// Run gateway, consumer and broadcaster in one process (the default).
    ///
    /// Embedded, with data in one folder, unless KAFKA_BROKERS, DATABASE_URL or REDIS_URL is set.
    #[default]
    Up,
    /// Run a gateway: devices' POSTs to the log.
    Gateway,
    /// Run a consumer: the log to the store.
    Consumer,
    /// Run a broadcaster: the log to live streams.
    Broadcaster,
    /// Create topics and tables; harmless when they are there.
    Migrate,
    /// Create, list and revoke API keys; works while the pipeline runs.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// List, show, replay and purge dead letters; works while the pipeline runs.
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Check or show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the description of the HTTP API (OpenAPI 3.1), of the settings in force.
    Openapi,
    /// Exit 0 when the service on this machine is ready.
    Healthcheck {
        /// Ask here instead of the configured host and port.
        #[arg(long)]
        url: Option<String>,
    },
    /// Print a completion script, such as: pulsestream completions bash > /etc/bash_completion.d/pulsestream
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Prints the completion script.
pub(crate) fn completions(shell: Shell) {
    let mut command = Cli::command();
    clap_complete::generate(shell, &mut command, "pulsestream", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn up_is_the_default_and_flags_are_settings() {
        let cli = Cli::parse_from(["pulsestream", "--port", "8080", "--dev"]);
        assert!(cli.command.is_none());
        assert!(cli.settings.flags().contains(&("server.port", "8080".to_owned())));
        assert!(cli.settings.flags().contains(&("server.dev", "true".to_owned())));
    }
}
