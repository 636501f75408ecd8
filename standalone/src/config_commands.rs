//! `pulsestream config` and `pulsestream openapi`: what a configuration means.

use clap::Subcommand;
use pulsestream_shared::config::{Config, Loaded};
use serde_json::Value;

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

/// The description of the HTTP API of all services together.
pub(crate) fn document(config: &Config) -> Value {
    pulsestream_gateway::openapi(config, pulsestream_broadcaster::operations(config))
}

/// `pulsestream openapi`: what the all-in-one process with this configuration serves as `/openapi.json`.
pub(crate) fn openapi(config: &Config) -> Result<(), String> {
    let document = serde_json::to_string_pretty(&document(config));
    print(&(document.map_err(|error| error.to_string())? + "\n"))
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::config::load;

    use super::*;

    #[test]
    fn the_committed_document_is_that_of_the_code() {
        let config = load(None, std::iter::empty(), &[]).expect("the defaults").config;
        let of_code = serde_json::to_string_pretty(&document(&config)).expect("JSON");
        let committed = include_str!("../../docs/openapi.json").trim_end();
        let differ = committed.lines().zip(of_code.lines()).find(|(old, new)| old != new);
        assert!(
            committed == of_code,
            "docs/openapi.json is not what the code says ({differ:?}); renew it with\n\
             cargo run -p pulsestream -- openapi > docs/openapi.json"
        );
    }
}
