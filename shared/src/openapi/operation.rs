//! One operation: a method of a path, what it takes and what it answers.

use std::collections::BTreeMap;

use axum::http::{Method, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answer::Members;
use super::content::Content;
use super::{Answer, Header, Parts};
use crate::problem::{Code, Problem};
use crate::store::Scope;

/// Where a parameter stands, what it may hold and what it means.
pub struct Parameter {
    /// `query`, `path` or `header`.
    pub place: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Whether the request is refused without it.
    pub required: bool,
    /// What it means, and what its absence does.
    pub about: String,
    /// A JSON schema.
    pub schema: Value,
    /// A value; `None` for one that only an answer can give.
    pub example: Option<Value>,
}

/// What is sent: the same thing in one or more media types.
pub struct Body {
    about: String,
    required: bool,
    content: Content,
}

impl Body {
    /// Something every request of the operation must have.
    pub fn new(about: impl Into<String>) -> Self {
        Self { about: about.into(), required: true, content: Content::default() }
    }

    /// Something a request may have.
    pub fn optional(about: impl Into<String>) -> Self {
        Self { required: false, ..Self::new(about) }
    }

    /// In this form.
    #[must_use]
    pub fn content(
        mut self,
        media_type: &'static str,
        describe: impl FnOnce(&mut SchemaGenerator) -> Schema + 'static,
    ) -> Self {
        self.content.push(media_type, describe);
        self
    }

    /// An example in the form told last; sending it gets the answer's example of the same name.
    #[must_use]
    pub fn example(mut self, name: &str, about: &str, body: &impl Serialize) -> Self {
        self.content.example(name, about, json!(body));
        self
    }

    fn render(self, parts: &mut Parts) -> Value {
        let content = self.content.render(&mut parts.sent);
        json!({"description": self.about, "required": self.required, "content": content})
    }
}

/// One operation. Problems of one status become one answer, with an example for each code.
pub struct Operation {
    pub(super) path: &'static str,
    pub(super) method: Method,
    id: &'static str,
    summary: &'static str,
    tag: &'static str,
    about: String,
    scope: Option<Scope>,
    parameters: Vec<Parameter>,
    body: Option<Body>,
    answers: Vec<Answer>,
    problems: BTreeMap<StatusCode, Vec<Problem>>,
    problem_headers: Vec<(StatusCode, Header)>,
    problem_members: Vec<(StatusCode, Members)>,
}

impl Operation {
    /// `GET` of a path, with a name for programs and one for people.
    pub fn get(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::GET, path, id, summary)
    }

    /// `POST` to a path.
    pub fn post(path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self::new(Method::POST, path, id, summary)
    }

    fn new(method: Method, path: &'static str, id: &'static str, summary: &'static str) -> Self {
        Self {
            path,
            method,
            id,
            summary,
            tag: "",
            about: String::new(),
            scope: None,
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            problems: BTreeMap::new(),
            problem_headers: Vec::new(),
            problem_members: Vec::new(),
        }
    }

    /// The group it is shown in.
    #[must_use]
    pub fn tag(self, tag: &'static str) -> Self {
        Self { tag, ..self }
    }

    /// What it does, in paragraphs.
    #[must_use]
    pub fn about(self, about: impl Into<String>) -> Self {
        Self { about: about.into(), ..self }
    }

    /// It needs an API key with this scope, and answers what such routes answer without one.
    #[must_use]
    pub fn needs(self, scope: Scope) -> Self {
        let lacks = format!("this API key lacks the scope {}", scope.as_str());
        Self { scope: Some(scope), ..self }
            .problem(Code::MissingApiKey)
            .problem(Code::InvalidApiKey)
            .problem(Problem::from(Code::Forbidden).detail(lacks))
            .problem(Code::Unavailable)
    }

    /// Takes a parameter.
    #[must_use]
    pub fn parameter(mut self, parameter: Parameter) -> Self {
        self.parameters.push(parameter);
        self
    }

    /// Takes a body.
    #[must_use]
    pub fn body(self, body: Body) -> Self {
        Self { body: Some(body), ..self }
    }

    /// Answers so.
    #[must_use]
    pub fn answer(mut self, answer: Answer) -> Self {
        self.answers.push(answer);
        self
    }

    /// Answers this problem, or one like it.
    #[must_use]
    pub fn problem(mut self, problem: impl Into<Problem>) -> Self {
        let problem = problem.into();
        self.problems.entry(problem.code().status()).or_default().push(problem);
        self
    }

    /// A header its problems of a status have, beside those every problem has.
    #[must_use]
    pub fn problem_header(mut self, status: StatusCode, header: Header) -> Self {
        self.problem_headers.push((status, header));
        self
    }

    /// Its problems of a status may have the members of this type, beside those every problem has.
    #[must_use]
    pub fn problem_members<T: JsonSchema>(mut self, status: StatusCode) -> Self {
        self.problem_members.push((status, T::json_schema));
        self
    }

    pub(super) fn render(self, parts: &mut Parts) -> Value {
        let problems = self.problems.iter().map(|(status, problems)| {
            let members = self.problem_members.iter().find(|(of, _)| of == status);
            let headers = self.problem_headers.iter().filter(|(of, _)| of == status);
            let answer = Answer::of_problems(*status, problems, members.map(|(_, of)| *of));
            headers.fold(answer, |answer, (_, header)| answer.header(*header))
        });
        let answers = self.answers.into_iter().chain(problems);
        let responses: Map<String, Value> = answers
            .map(|answer| (answer.status.as_str().to_owned(), answer.render(parts)))
            .collect();
        let mut operation = json!({
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "description": self.about,
            "responses": responses,
        });
        if !self.parameters.is_empty() {
            operation["parameters"] = self.parameters.into_iter().map(Parameter::render).collect();
        }
        if let Some(body) = self.body {
            operation["requestBody"] = body.render(parts);
        }
        if let Some(scope) = self.scope {
            let scopes = [scope.as_str()];
            operation["security"] = json!([{"apiKey": scopes}, {"bearer": scopes}]);
        }
        operation
    }
}

impl Parameter {
    fn render(self) -> Value {
        let mut parameter = json!({
            "in": self.place,
            "name": self.name,
            "required": self.required,
            "description": self.about,
            "schema": self.schema,
        });
        if let Some(example) = self.example {
            parameter["example"] = example;
        }
        parameter
    }
}
