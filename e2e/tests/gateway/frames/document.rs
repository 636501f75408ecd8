//! The document, and what came held to it.

use std::collections::BTreeSet;

use boon::{Compiler, Draft, Schemas};
use serde_json::Value;

/// Where the document is, as far as references within it go.
const PLACE: &str = "api:///asyncapi.json";

/// A command of a client's, as the document has it.
pub(crate) struct Command {
    message: String,
    example: String,
    pub(crate) payload: Value,
    /// Names of the messages by which it is answered when it was done.
    pub(crate) answers: Vec<String>,
}

/// The document, and which of its examples came about.
pub(crate) struct Held {
    document: Value,
    /// By their message and name.
    came: BTreeSet<(String, String)>,
}

impl Held {
    pub(crate) fn read() -> Self {
        let document = include_str!("../../../../docs/asyncapi.json");
        let held =
            Self { document: serde_json::from_str(document).expect("JSON"), came: BTreeSet::new() };
        for (message, example, payload) in held.examples() {
            held.judge(&message, &payload, &example);
        }
        held
    }

    /// Holds what came over a channel to the message of that name.
    #[track_caller]
    pub(crate) fn hold(&mut self, channel: &str, name: &str, got: &Value) {
        let place = format!("/channels/{channel}/messages/{name}/$ref");
        let message = self.document.pointer(&place).and_then(Value::as_str);
        let message = message.unwrap_or_else(|| panic!("{channel} has no message {name}: {got}"));
        let message = last(message);
        self.judge(&message, got, "what came");
        let same = |example: &(String, String, Value)| {
            example.0 == message && shape(&example.2) == shape(got)
        };
        let came = self.examples().into_iter().filter(same);
        self.came.extend(came.map(|(message, example, _)| (message, example)));
    }

    /// Every example of every message a client may send.
    pub(crate) fn commands(&self) -> Vec<Command> {
        let operations = self.document["operations"].as_object().expect("operations");
        let names = |of: &Value| -> Vec<String> {
            let all = of["messages"].as_array().expect("messages").iter();
            all.map(|one| last(one["$ref"].as_str().expect("a reference"))).collect()
        };
        let mut commands = Vec::new();
        for operation in operations.values().filter(|operation| operation["action"] == "receive") {
            let (said, mut answers) = (names(operation), names(&operation["reply"]));
            answers.retain(|answer| answer != "error");
            for (message, example, payload) in self.examples() {
                if said.contains(&message) {
                    let answers = answers.clone();
                    commands.push(Command { message, example, payload, answers });
                }
            }
        }
        commands
    }

    /// Notes that a command was said as its example has it, and done.
    pub(crate) fn obeyed(&mut self, command: Command) {
        self.came.insert((command.message, command.example));
    }

    pub(crate) fn every_example_came_about(&self) {
        let all = self.examples().into_iter().map(|(message, example, _)| (message, example));
        let all: BTreeSet<_> = all.collect();
        assert!(all.len() > 35, "only {} examples were found", all.len());
        let never: Vec<_> = all.difference(&self.came).collect();
        assert!(never.is_empty(), "examples that never came about: {never:?}");
    }

    /// Message, name and payload of each example.
    fn examples(&self) -> Vec<(String, String, Value)> {
        let messages = self.document["components"]["messages"].as_object().expect("messages");
        let mut all = Vec::new();
        for (message, spec) in messages {
            let examples = spec["examples"].as_array().expect("examples");
            assert!(!examples.is_empty(), "{message} has no example");
            all.extend(examples.iter().map(|example| {
                let name = example["name"].as_str().expect("a name").to_owned();
                (message.clone(), name, example["payload"].clone())
            }));
        }
        all
    }

    /// A document lets members be added; a server that adds one must tell of it there.
    #[track_caller]
    fn judge(&self, message: &str, payload: &Value, what: &str) {
        let schema = &self.document["components"]["messages"][message]["payload"]["$ref"];
        let schema = last(schema.as_str().expect("a reference"));
        self.validate(&schema, payload, &format!("{message}, {what}"));
        self.names_every_member(&schema, payload);
        for event in payload["events"].as_array().into_iter().flatten() {
            self.names_every_member("Event", event);
        }
    }

    #[track_caller]
    fn validate(&self, schema: &str, payload: &Value, what: &str) {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.set_default_draft(Draft::V7);
        compiler.add_resource(PLACE, self.document.clone()).expect("the document");
        let pointer = format!("{PLACE}#/components/schemas/{schema}");
        let compiled =
            compiler.compile(&pointer, &mut schemas).unwrap_or_else(|e| panic!("{schema}: {e}"));
        schemas.validate(payload, compiled).unwrap_or_else(|e| panic!("{what}: {e}\n{payload}"));
    }

    #[track_caller]
    fn names_every_member(&self, schema: &str, payload: &Value) {
        let known = &self.document["components"]["schemas"][schema]["properties"];
        for member in payload.as_object().expect("an object").keys() {
            assert!(known.get(member).is_some(), "{schema} does not name {member}: {payload}");
        }
    }
}

fn last(reference: &str) -> String {
    reference.rsplit('/').next().unwrap_or_default().to_owned()
}

/// What an example stands for: which members there are, what is said by a word, and whether events came.
fn shape(payload: &Value) -> BTreeSet<String> {
    let members = payload.as_object().into_iter().flatten();
    let shown = members.map(|(name, value)| match name.as_str() {
        "recovered" | "reason" | "code" => format!("{name} {value}"),
        "events" => format!("{name} {}", value.as_array().is_some_and(Vec::is_empty)),
        _ => name.clone(),
    });
    shown.collect()
}
