//! One answer of an operation: its status, what it means, its body and its headers.

use axum::http::StatusCode;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Parts;
use super::content::Content;
use crate::problem::Problem;
use crate::{problem, request_id};

/// A header of answers, told of beside the code that sets it.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// As it is written in documents, such as `Retry-After`.
    pub name: &'static str,
    /// What it tells.
    pub about: &'static str,
    /// Whether an answer that names it always has it.
    pub always: bool,
    /// A value.
    pub example: &'static str,
    /// Whether the value is a whole number; text otherwise.
    pub whole: bool,
}

impl Header {
    /// The same where it may be absent.
    #[must_use]
    pub const fn sometimes(self) -> Self {
        Self { always: false, ..self }
    }

    fn render(&self) -> Value {
        let (kind, example) = match self.example.parse::<u32>() {
            Ok(number) if self.whole => ("integer", json!(number)),
            _ => ("string", json!(self.example)),
        };
        json!({
            "description": self.about,
            "required": self.always,
            "schema": {"type": kind},
            "example": example,
        })
    }
}

/// Writes the schema of members that a route adds to problems.
pub(super) type Members = fn(&mut SchemaGenerator) -> Schema;

/// One answer. Every one also has `X-Request-Id`.
pub struct Answer {
    pub(super) status: StatusCode,
    about: String,
    content: Content,
    headers: Vec<Header>,
    links: Map<String, Value>,
}

impl Answer {
    /// An answer without a body. The text says what the client should do.
    pub fn new(status: StatusCode, about: impl Into<String>) -> Self {
        let (content, headers) = (Content::default(), vec![request_id::TOLD]);
        Self { status, about: about.into(), content, headers, links: Map::new() }
    }

    /// Its body is JSON of this type. Examples follow.
    #[must_use]
    pub fn json<T: JsonSchema + 'static>(mut self) -> Self {
        self.content.push("application/json", SchemaGenerator::subschema_for::<T>);
        self
    }

    /// Its body is text of this media type.
    #[must_use]
    pub fn text(mut self, media_type: &'static str) -> Self {
        self.content.push(media_type, SchemaGenerator::subschema_for::<String>);
        self
    }

    /// An example of the body, by a name that is unique in the operation.
    #[must_use]
    pub fn example(mut self, name: &str, about: &str, body: &impl Serialize) -> Self {
        self.content.example(name, about, json!(body));
        self
    }

    /// A header it has.
    #[must_use]
    pub fn header(mut self, header: Header) -> Self {
        self.headers.push(header);
        self
    }

    /// What may be asked next: an operation, and where in this answer its parameter is found.
    #[must_use]
    pub fn leads_to(mut self, operation: &str, parameter: &str, pointer: &str) -> Self {
        let found = format!("$response.body#{pointer}");
        let link = json!({"operationId": operation, "parameters": {parameter: found}});
        self.links.insert(operation.to_owned(), link);
        self
    }

    /// One answer for all problems of a status, and for what a route may add to them.
    pub(super) fn of_problems(
        status: StatusCode,
        problems: &[Problem],
        members: Option<Members>,
    ) -> Self {
        let mut about = String::new();
        let mut codes = Vec::new();
        for problem in problems {
            let code = problem.code();
            let (word, title) = (code.as_str(), code.title());
            about.push_str(&format!("- `{word}`: {title}. {}\n", code.advice()));
            codes.push(word);
        }
        let waits = problems.iter().all(|problem| problem.wait_seconds().is_some());
        let mut answer = Self::new(status, about.trim_end());
        answer.headers.extend(waits.then_some(problem::RETRY_AFTER_TOLD));
        let schema = move |generator: &mut SchemaGenerator| {
            let of = json!({"code": {"enum": codes}, "status": {"const": status.as_u16()}});
            let mut parts = vec![problem::schema(generator), json_schema!({"properties": of})];
            parts.extend(members.map(|schema| optional(schema(generator))));
            json_schema!({"allOf": parts})
        };
        answer.content.push("application/problem+json", schema);
        for problem in problems {
            let code = problem.code();
            answer.content.example(code.as_str(), code.title(), problem.shown());
        }
        answer
    }

    pub(super) fn render(self, parts: &mut Parts) -> Value {
        let mut headers = Map::new();
        for header in self.headers {
            let name = header.name.to_owned() + if header.always { "" } else { "-if-any" };
            headers.insert(
                header.name.to_owned(),
                json!({"$ref": format!("#/components/headers/{name}")}),
            );
            parts.headers.insert(name, header.render());
        }
        let mut answer = json!({"description": self.about, "headers": headers});
        if !self.content.is_empty() {
            answer["content"] = self.content.render(&mut parts.answered);
        }
        if !self.links.is_empty() {
            answer["links"] = self.links.into();
        }
        answer
    }
}

/// The same where every member may be absent.
fn optional(mut members: Schema) -> Schema {
    members.remove("required");
    members
}
