//! `pulsestream config` and `pulsestream openapi`: what a configuration means.

use clap::Subcommand;
use pulsestream_shared::config::{Config, Loaded};

use crate::output::print;

/// Check or show the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Exit 0 when the configuration is valid; otherwise name every fault.
    Check,
    /// Print every setting in force and where it came from; secrets are hidden.
    Show,
}

/// A configuration that got here is valid.
pub(crate) fn run(command: &ConfigCommand, loaded: &Loaded) -> Result<(), String> {
    let text = match command {
        ConfigCommand::Check => "the configuration is valid\n".to_owned(),
        ConfigCommand::Show => loaded.show(),
    };
    print(&text)
}

/// `pulsestream openapi`: what a gateway with this configuration serves as `/openapi.json`.
pub(crate) fn openapi(config: &Config) -> Result<(), String> {
    let document = serde_json::to_string_pretty(&pulsestream_gateway::openapi(config));
    print(&(document.map_err(|error| error.to_string())? + "\n"))
}
