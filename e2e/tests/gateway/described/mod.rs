//! What `/openapi.json` says is so: every example of every answer is got from a running server, and has the
//! status, the headers, the media type and the schema it is said to have.
//!
//! [`request`] makes requests of the document's own examples; [`provoke`] puts the server into the state in
//! which it answers them so.

use std::collections::BTreeSet;

use boon::{Compiler, Schemas};
use pulsestream_e2e::harness::Engines;
use pulsestream_e2e::on_both;
use serde_json::Value;

mod provoke;
mod request;

use provoke::World;
use request::{Got, Operation};

on_both!(every_example_of_every_answer_is_got_from_a_running_server);

async fn every_example_of_every_answer_is_got_from_a_running_server(engines: Engines) {
    let world = World::start(engines).await;
    let document = world.document().await;
    let mut held = 0;
    for operation in Operation::all(&document) {
        let answers = operation.spec["responses"].as_object().expect("answers");
        for (status, answer) in answers {
            for (media_type, name) in examples(answer) {
                let what = format!("{} {status} {name}", operation.id);
                let got = world.provoke(&operation, &name).await;
                assert_eq!(got.status.to_string(), *status, "{what}: {got:?}");
                assert_eq!(got.header("content-type"), media_type, "{what}: {got:?}");
                hold(&document, &operation, status, &media_type, &name, &got);
                held += 1;
            }
        }
    }
    assert!(held > 90, "only {held} examples were found");
    world.stop().await;
}

/// Media type and name of each example; one of an answer without a body has no name.
fn examples(answer: &Value) -> Vec<(String, String)> {
    let Some(content) = answer["content"].as_object() else {
        return vec![(String::new(), String::new())];
    };
    let mut all = Vec::new();
    for (media_type, form) in content {
        let examples = form["examples"].as_object().expect("examples");
        assert!(!examples.is_empty(), "an answer without an example: {answer}");
        all.extend(examples.keys().map(|name| (media_type.clone(), name.clone())));
    }
    all
}

/// Compares what was got with what was told.
fn hold(
    document: &Value,
    operation: &Operation<'_>,
    status: &str,
    media_type: &str,
    name: &str,
    got: &Got,
) {
    let what = format!("{} {status} {name}", operation.id);
    let answer = &operation.spec["responses"][status];
    for (header, told) in answer["headers"].as_object().expect("headers") {
        let place = told["$ref"].as_str().expect("a reference").trim_start_matches('#');
        let told = document.pointer(place).expect("a header");
        let there = got.headers.contains_key(header.as_str());
        assert!(there || told["required"] == false, "{what} lacks {header}: {got:?}");
    }
    let Some(form) = answer["content"].get(media_type) else { return };
    let body = if media_type.ends_with("json") { got.json() } else { Value::from(&*got.text) };
    let pointer = format!(
        "api:///openapi.json#/paths/{}/{}/responses/{status}/content/{}/schema",
        escaped(operation.path),
        operation.method,
        escaped(media_type)
    );
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.add_resource("api:///openapi.json", document.clone()).expect("the document");
    let schema = compiler.compile(&pointer, &mut schemas).unwrap_or_else(|e| panic!("{what}: {e}"));
    for value in [&body, &form["examples"][name]["value"]] {
        schemas.validate(value, schema).unwrap_or_else(|e| panic!("{what}: {e}\n{value}"));
    }
    // The document is an example of itself, and has more in it than its example.
    if operation.id != "openapi" {
        assert_eq!(keys(&body), keys(&form["examples"][name]["value"]), "{what}");
    }
}

fn escaped(segment: &str) -> String {
    let pointer = segment.replace('~', "~0").replace('/', "~1");
    pointer.replace('{', "%7B").replace('}', "%7D").replace(' ', "%20")
}

/// Names of the members, also of what `data` holds.
fn keys(body: &Value) -> BTreeSet<String> {
    let of = |value: &Value| -> Vec<String> {
        value.as_object().map(|members| members.keys().cloned().collect()).unwrap_or_default()
    };
    let data = body["data"].get(0).unwrap_or(&body["data"]);
    let inner = of(data).into_iter().map(|key| format!("data.{key}"));
    of(body).into_iter().chain(inner).collect()
}
