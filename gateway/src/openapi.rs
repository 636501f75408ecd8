//! The description of this service's HTTP API, put together from what each route tells of itself, and
//! served as `/openapi.json`.

use axum::Router;
use axum::http::StatusCode;
use pulsestream_shared::admin;
use pulsestream_shared::config::Config;
use pulsestream_shared::openapi::{self, Answer, Operation};
use pulsestream_shared::page::{ETAG, Page, unchanged};
use serde_json::{Value, json};

use crate::{batch, docs_page, ingest, read};

/// The document, of these settings. A process that shows live events too describes its routes for those.
pub fn document(config: &Config, live: impl IntoIterator<Item = Operation>) -> Value {
    let live: Vec<_> = live.into_iter().collect();
    let info = json!({
        "title": "PulseStream",
        "version": env!("CARGO_PKG_VERSION"),
        "summary": "Events of IoT devices: durable, stored once, shown live.",
        "description": ABOUT,
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    });
    let groups = [
        ("send", "For devices: events in."),
        ("read", "For whoever shows or analyses what was stored."),
        ("live", "For dashboards: around the live stream."),
        ("process", "About this process: probes, figures, this document."),
    ];
    let shown = groups.into_iter().filter(|(name, _)| *name != "live" || !live.is_empty());
    let tags = shown.map(|(name, description)| json!({"name": name, "description": description}));
    let tags = tags.collect();
    let mut operations = vec![
        ingest::described::operation(&config.ingest),
        batch::described::operation(&config.ingest),
    ];
    operations.extend(read::operations());
    operations.extend(live);
    operations.extend(admin::operations());
    operations.extend([operation(), docs_page::operation()]);
    openapi::document(info, tags, operations)
}

const ABOUT: &str = "\
Answers that are not a success are `application/problem+json` with a stable `code`; decide by that. 4xx: \
correct the request, the same again would be refused again (409 and 429 aside). 503: nothing is wrong with the \
request, send the same again after `Retry-After` seconds. A method that a path does not have is answered 405 \
with `Allow`, an unknown path 404. `HEAD` works wherever `GET` does.

Times are unix milliseconds. Fields may be added to answers: ignore those you do not know. You see your own \
tenant's data and nothing of another's.

Live events (`/v1/stream`: WebSocket, server-sent events and long polls) are described in `docs/live.md`.";

fn operation() -> Operation {
    let answer =
        Answer::new(StatusCode::OK, "OpenAPI 3.1, of the settings this process runs with.")
            .json::<serde_json::Map<String, Value>>()
            .example("document", "How it begins", &json!({"openapi": "3.1.1"}))
            .header(ETAG);
    Operation::get("/openapi.json", "openapi", "This description, for programs")
        .tag("process")
        .answer(answer)
        .answer(unchanged())
}

/// `/openapi.json`.
pub(crate) fn routes(document: &Value) -> Router {
    let json = document.to_string();
    Router::new().route("/openapi.json", Page::new("application/json", json).route())
}

#[cfg(test)]
mod tests {
    use pulsestream_shared::config::load;

    use super::*;

    #[test]
    fn every_member_of_a_problem_is_in_its_schema() {
        let config = load(None, std::iter::empty(), &[]).expect("the defaults").config;
        let document = document(&config, []);
        let operations = document["paths"].as_object().into_iter().flatten();
        let answers = operations
            .flat_map(|(_, methods)| methods.as_object().into_iter().flatten())
            .flat_map(|(_, spec)| spec["responses"].as_object().into_iter().flatten());
        let mut seen = 0;
        for (status, answer) in answers {
            let form = &answer["content"]["application/problem+json"];
            let parts = form["schema"]["allOf"].as_array().into_iter().flatten();
            let told: Vec<_> = parts
                .map(|part| {
                    part["$ref"].as_str().map_or(part, |place| {
                        &document["components"]["schemas"][place.rsplit('/').next().unwrap()]
                    })
                })
                .filter_map(|part| part["properties"].as_object())
                .flat_map(|properties| properties.keys())
                .collect();
            for (name, example) in form["examples"].as_object().into_iter().flatten() {
                for member in example["value"].as_object().expect("members").keys() {
                    assert!(told.contains(&member), "{status} {name}: {member}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 300, "only {seen}");
    }
}
