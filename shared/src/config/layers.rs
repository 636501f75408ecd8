//! Puts the layers of the configuration on top of each other and reports every fault at once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};
use validator::{Validate, ValidationErrors, ValidationErrorsKind};

use super::{Config, secret};

const DEFAULTS: &str = include_str!("../../../config/default.toml");
const PREFIX: &str = "PULSESTREAM__";

/// Names from the original system and a few that operators set all the time.
const SHORT_NAMES: [(&str, &str); 12] = [
    ("PORT", "server.port"),
    ("CONSUMER_PORT", "server.consumer_port"),
    ("BROADCASTER_PORT", "server.broadcaster_port"),
    ("DATA_DIR", "embedded.data_dir"),
    ("DATABASE_URL", "store.database_url"),
    ("REDIS_URL", "cache.redis_url"),
    ("KAFKA_BROKERS", "log.kafka_brokers"),
    ("CLOCK_DRIFT", "ingest.clock_drift"),
    ("MAX_EVENT_AGE", "ingest.max_event_age"),
    ("RETENTION_DAYS", "store.retention_days"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp_endpoint"),
    ("OTEL_RESOURCE_ATTRIBUTES", "telemetry.resource_attributes"),
];

const SECRETS: [&str; 3] = ["store.database_url", "cache.redis_url", "keys.pepper"];

/// Where a value in force came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The compiled-in file.
    Default,
    /// The file given.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// A setting given on the command line, as `section.setting` and its text.
pub type Flag = (&'static str, String);

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The name it was set by.
    pub setting: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Everything wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault(s):", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {}: {}", fault.setting, fault.message))
    }
}

/// A configuration in force.
#[derive(Debug)]
pub struct Loaded {
    /// The checked value.
    pub config: Config,
    /// Where each `section.setting` came from.
    pub sources: BTreeMap<String, Source>,
    table: Table,
}

impl Loaded {
    /// The effective configuration as TOML, each line with its source, secrets hidden.
    pub fn show(&self) -> String {
        let mut text = String::new();
        for (section, settings) in &self.table {
            text.push_str(&format!("[{section}]\n"));
            for (name, value) in settings.as_table().into_iter().flatten() {
                let path = format!("{section}.{name}");
                let shown = match value {
                    Value::String(value) if SECRETS.contains(&path.as_str()) => {
                        Value::String(secret::redact(value))
                    }
                    value => value.clone(),
                };
                text.push_str(&format!("{name} = {shown}  # {}\n", self.source(&path)));
            }
            text.push('\n');
        }
        text
    }

    /// Where a setting came from.
    pub fn source(&self, path: &str) -> Source {
        self.sources.get(path).cloned().unwrap_or(Source::Default)
    }
}

/// Loads defaults < `file` < `environment` < `flags`.
///
/// # Errors
/// [`Faults`]: unknown settings (with the nearest known name), wrong types, values out of range,
/// settings that contradict each other; all of them together.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    flags: &[Flag],
) -> Result<Loaded, Faults> {
    let mut layers = Layers::new();
    if let Some(path) = file {
        layers.add_file(path);
    }
    layers.add_environment(environment);
    for (path, text) in flags {
        layers.set_text(path, text, Source::Flag);
    }
    layers.finish()
}

struct Layers {
    defaults: Table,
    table: Table,
    sources: BTreeMap<String, Source>,
    faults: Vec<Fault>,
}

impl Layers {
    fn new() -> Self {
        let defaults: Table = DEFAULTS.parse().expect("config/default.toml is checked by a test");
        Self { table: defaults.clone(), defaults, sources: BTreeMap::new(), faults: Vec::new() }
    }

    fn fault(&mut self, setting: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault { setting: setting.into(), message: message.into() });
    }

    fn add_file(&mut self, path: &Path) {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return self.fault(path.display().to_string(), error.to_string()),
        };
        let table: Table = match text.parse() {
            Ok(table) => table,
            Err(error) => return self.fault(path.display().to_string(), error.to_string()),
        };
        for (section, settings) in table {
            let Value::Table(settings) = settings else {
                self.fault(section, "belongs into a [section]");
                continue;
            };
            for (name, value) in settings {
                let full = format!("{section}.{name}");
                self.set(&full, &full, value, Source::File(path.to_owned()));
            }
        }
    }

    fn add_environment(&mut self, environment: impl Iterator<Item = (String, String)>) {
        let mut variables: Vec<_> = environment.collect();
        variables.sort(); // faults in a stable order
        for (name, value) in variables {
            let (base, from_file) = match name.strip_suffix("_FILE") {
                Some(base) => (base, true),
                None => (name.as_str(), false),
            };
            let Some(path) = path_of_variable(base) else { continue };
            let source = Source::Environment(name.clone());
            if !from_file {
                self.set_text(&path, &value, source);
                continue;
            }
            match std::fs::read_to_string(&value) {
                Ok(text) => self.set_text(&path, text.trim_end(), source),
                Err(error) => self.fault(name, format!("{value}: {error}")),
            }
        }
    }

    /// Sets a value given as text, read as the type its default has.
    fn set_text(&mut self, path: &str, text: &str, source: Source) {
        let named = match &source {
            Source::Environment(name) => name.clone(),
            _ => path.to_owned(),
        };
        let value = match self.default_of(path) {
            Some(Value::Integer(_)) => text.trim().parse().map(Value::Integer).ok(),
            Some(Value::Boolean(_)) => text.trim().parse().map(Value::Boolean).ok(),
            Some(Value::Array(_)) => Some(list(text)),
            _ => Some(Value::String(text.to_owned())),
        };
        match value {
            Some(value) => self.set(path, &named, value, source),
            None => {
                let wanted = self.default_of(path).map_or("value", Value::type_str);
                self.fault(named, format!("\"{text}\" is not a whole {wanted}"));
            }
        }
    }

    fn set(&mut self, path: &str, named: &str, value: Value, source: Source) {
        let Some(default) = self.default_of(path) else {
            let hint =
                self.nearest(path).map_or(String::new(), |near| format!(", did you mean {near}?"));
            return self.fault(named, format!("unknown setting{hint}"));
        };
        if !default.same_type(&value) {
            let message = format!("is a {}, not a {}", default.type_str(), value.type_str());
            return self.fault(named, message);
        }
        let Some((section, name)) = path.split_once('.') else { return };
        if let Some(Value::Table(settings)) = self.table.get_mut(section) {
            settings.insert(name.to_owned(), value);
            self.sources.insert(path.to_owned(), source);
        }
    }

    fn default_of(&self, path: &str) -> Option<&Value> {
        let (section, name) = path.split_once('.')?;
        self.defaults.get(section)?.as_table()?.get(name)
    }

    /// Back to the default; where it came from stays known.
    fn reset(&mut self, path: &str) {
        let default = self.default_of(path).cloned();
        let Some(((section, name), default)) = path.split_once('.').zip(default) else { return };
        if let Some(Value::Table(settings)) = self.table.get_mut(section) {
            settings.insert(name.to_owned(), default);
        }
    }

    fn nearest(&self, path: &str) -> Option<String> {
        let known = self.defaults.iter().flat_map(|(section, settings)| {
            let names = settings.as_table().into_iter().flatten();
            names.map(move |(name, _)| format!("{section}.{name}"))
        });
        known
            .map(|candidate| (strsim::damerau_levenshtein(&candidate, path), candidate))
            .min()
            .filter(|(distance, _)| *distance <= path.len() / 2)
            .map(|(_, candidate)| candidate)
    }

    fn finish(mut self) -> Result<Loaded, Faults> {
        match Config::deserialize_each(&self.table) {
            Ok(config) => {
                if let Err(errors) = config.validate() {
                    collect(&errors, "", &mut self.faults);
                }
                self.faults.extend(config.contradictions());
                if self.faults.is_empty() {
                    return Ok(Loaded { config, sources: self.sources, table: self.table });
                }
            }
            Err(unread) => {
                // The others are judged as if those that do not read had their defaults. Contradictions
                // are not: they may be between a setting and such a default.
                for fault in &unread {
                    self.reset(&fault.setting);
                }
                if let Ok(Err(errors)) = Config::deserialize_each(&self.table).map(|c| c.validate())
                {
                    collect(&errors, "", &mut self.faults);
                }
                self.faults.extend(unread);
            }
        }
        for fault in &mut self.faults {
            if let Some(Source::Environment(name)) = self.sources.get(&fault.setting) {
                fault.setting.clone_from(name);
            }
        }
        Err(Faults(self.faults))
    }
}

/// A list as variables hold it: values between commas.
fn list(text: &str) -> Value {
    let values = text.split(',').map(str::trim).filter(|value| !value.is_empty());
    Value::Array(values.map(|value| Value::String(value.to_owned())).collect())
}

impl Config {
    /// Deserialises setting by setting first, so that every one that does not read is named, not only
    /// the first.
    fn deserialize_each(table: &Table) -> Result<Self, Vec<Fault>> {
        let defaults: Table = DEFAULTS.parse().expect("config/default.toml is checked by a test");
        let mut faults = Vec::new();
        for (section, settings) in table {
            for (name, value) in settings.as_table().into_iter().flatten() {
                let mut probe = defaults.clone();
                if let Some(Value::Table(section)) = probe.get_mut(section) {
                    section.insert(name.clone(), value.clone());
                }
                if let Err(error) = Self::deserialize(probe) {
                    let message = error.message().to_owned();
                    faults.push(Fault { setting: format!("{section}.{name}"), message });
                }
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Self::deserialize(table.clone())
            .map_err(|error| vec![Fault { setting: String::new(), message: error.to_string() }])
    }
}

fn path_of_variable(name: &str) -> Option<String> {
    if let Some((_, path)) = SHORT_NAMES.iter().find(|(short, _)| *short == name) {
        return Some((*path).to_owned());
    }
    Some(name.strip_prefix(PREFIX)?.to_ascii_lowercase().replacen("__", ".", 1))
}

fn collect(errors: &ValidationErrors, path: &str, faults: &mut Vec<Fault>) {
    for (name, kind) in errors.errors() {
        let setting = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        match kind {
            ValidationErrorsKind::Struct(inner) => collect(inner, &setting, faults),
            ValidationErrorsKind::Field(found) => faults.extend(found.iter().map(|error| Fault {
                setting: setting.clone(),
                message: error.message.as_deref().unwrap_or("is out of range").to_owned(),
            })),
            ValidationErrorsKind::List(_) => {}
        }
    }
}
