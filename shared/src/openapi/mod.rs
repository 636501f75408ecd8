//! The description of an HTTP API (OpenAPI 3.1), put together from what stands beside each handler.
//!
//! A route tells of itself by an [`Operation`]: the types it reads and writes, the problems it answers, the
//! bounds it holds to. Schemas come from those types ([`schemars`]), what a client should do about a problem
//! from [`Code::advice`](crate::problem::Code::advice), examples are values of the very types that are sent.
//! So nothing is told here a second time, and what is told is of the running configuration.
//!
//! Which routes there are is their services' matter; this module knows the form alone.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

mod answer;
mod content;
pub mod example;
mod operation;

pub use answer::{Answer, Header};
pub use operation::{Body, Operation, Parameter};

/// The whole document, of operations in any order.
pub fn document(info: Value, tags: Value, operations: Vec<Operation>) -> Value {
    let mut parts = Parts::default();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for operation in operations {
        let (path, method) = (operation.path, operation.method.as_str().to_ascii_lowercase());
        paths.entry(path).or_default().insert(method, operation.render(&mut parts));
    }
    let mut schemas = parts.answered.take_definitions(true);
    schemas.extend(parts.sent.take_definitions(true));
    json!({
        "openapi": "3.1.1",
        "info": info,
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "headers": parts.headers,
            "securitySchemes": {
                "apiKey": {
                    "type": "apiKey", "in": "header", "name": "x-api-key",
                    "description": "A key made by `pulsestream keys create`."
                },
                "bearer": {
                    "type": "http", "scheme": "bearer",
                    "description": "The same key, as `Authorization: Bearer KEY`."
                }
            }
        }
    })
}

/// The schema of an id: a UUID in hyphenated form.
pub fn uuid() -> Schema {
    json_schema!({"type": "string", "format": "uuid"})
}

/// What operations refer to.
struct Parts {
    /// Of types that clients send, and of types that are answered: what is optional in one is not always so
    /// in the other.
    sent: SchemaGenerator,
    answered: SchemaGenerator,
    headers: BTreeMap<String, Value>,
}

impl Default for Parts {
    fn default() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = "/components/schemas".into();
                settings.meta_schema = None;
            })
        };
        Self {
            sent: settings().for_deserialize().into_generator(),
            answered: settings().for_serialize().into_generator(),
            headers: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::problem::Code;

    #[test]
    fn problems_of_one_status_are_one_answer_that_names_each_code_and_what_to_do() {
        let operation = Operation::get("/x", "readX", "Read X")
            .answer(Answer::new(StatusCode::OK, "It is there."))
            .problem(Code::InvalidApiKey)
            .problem(Code::MissingApiKey)
            .problem(Code::Overloaded);
        let document = document(json!({}), json!([]), vec![operation]);
        let answers = &document["paths"]["/x"]["get"]["responses"];
        let refused = &answers["401"];
        let examples = &refused["content"]["application/problem+json"]["examples"];
        assert_eq!(examples["missing_api_key"]["value"]["status"], 401);
        assert_eq!(examples["invalid_api_key"]["value"]["code"], "invalid_api_key");
        let told = refused["description"].as_str().expect("text");
        assert!(told.contains(Code::InvalidApiKey.advice()), "{told}");
        assert!(refused["headers"].get("Retry-After").is_none());
        assert_eq!(
            answers["503"]["headers"]["Retry-After"]["$ref"],
            "#/components/headers/Retry-After"
        );
        assert!(document["components"]["headers"]["Retry-After"]["required"] == json!(true));
        assert!(document["components"]["schemas"]["Problem"]["properties"]["code"].is_object());
    }
}
