//! One operation on the page: what it takes, a command to try it, and everything it may answer.

use axum::http::StatusCode;
use serde_json::Value;

use super::html::Html;
use super::{KEYS, command, elements, members, plain, prose, schema, text};

/// Writes an operation; `document` is where it refers to.
pub(super) fn write(html: &mut Html, document: &Value, path: &str, method: &str, spec: &Value) {
    let id = text(spec, "operationId");
    html.element("article", &[("aria-labelledby", id)], |html| {
        html.element("h3", &[("id", id)], |html| {
            html.link_to(id, |html| html.text(text(spec, "summary")));
        });
        html.element("p", &[("class", "route")], |html| route(html, path, method));
        prose::write(html, text(spec, "description"));
        key(html, spec);
        html.lines("command", &command::of(path, method, spec));
        parameters(html, spec);
        body(html, &spec["requestBody"]);
        html.leaf("h4", &[], "Answers");
        for (index, (status, answer)) in members(&spec["responses"]).enumerate() {
            write_answer(html, document, status, answer, index == 0);
        }
    });
}

/// Writes method and path.
pub(super) fn route(html: &mut Html, path: &str, method: &str) {
    let class = if method == "get" { "method get" } else { "method post" };
    html.leaf("span", &[("class", class)], &method.to_uppercase());
    html.text(" ");
    html.code(path);
}

fn key(html: &mut Html, spec: &Value) {
    let scopes: Vec<_> = elements(&spec["security"])
        .flat_map(members)
        .flat_map(|(_, scopes)| elements(scopes))
        .filter_map(Value::as_str)
        .collect();
    html.element("p", &[("class", "key")], |html| match scopes.first() {
        Some(scope) => {
            html.text("Needs an ");
            html.link_to(KEYS, |html| html.text("API key"));
            html.text(" with the scope ");
            html.code(scope);
            html.text(".");
        }
        None => html.text("Needs no API key."),
    });
}

fn parameters(html: &mut Html, spec: &Value) {
    if spec.get("parameters").is_none() {
        return;
    }
    html.leaf("h4", &[], "Parameters");
    html.element("dl", &[("class", "fields")], |html| {
        for parameter in elements(&spec["parameters"]) {
            let of = |key| text(parameter, key);
            let mut about = of("description").to_owned();
            if let Some(example) = parameter.get("example") {
                about.push_str(&format!("\n\nExample: `{}`", plain(example)));
            }
            let (schema, required) = (&parameter["schema"], parameter["required"] == true);
            schema::row(html, of("name"), of("in"), required, schema, &about);
        }
    });
}

fn body(html: &mut Html, body: &Value) {
    if body.is_null() {
        return;
    }
    html.leaf("h4", &[], "Body");
    prose::write(html, text(body, "description"));
    forms(html, &body["content"]);
}

fn write_answer(html: &mut Html, document: &Value, status: &str, answer: &Value, open: bool) {
    let attributes: &[_] =
        if open { &[("class", "answer"), ("open", "")] } else { &[("class", "answer")] };
    html.element("details", attributes, |html| {
        html.element("summary", &[], |html| {
            html.leaf("span", &[("class", class(status))], status);
            html.text(" ");
            html.text(reason(status));
            for (code, _) in members(&answer["content"]["application/problem+json"]["examples"]) {
                html.text(" ");
                html.code(code);
            }
        });
        prose::write(html, text(answer, "description"));
        headers(html, document, &answer["headers"]);
        forms(html, &answer["content"]);
        for (operation, link) in members(&answer["links"]) {
            leads_to(html, operation, link);
        }
    });
}

fn class(status: &str) -> &'static str {
    match status.as_bytes().first() {
        Some(b'2') => "status good",
        Some(b'4') => "status wrong",
        Some(b'5') => "status later",
        _ => "status",
    }
}

fn reason(status: &str) -> &'static str {
    let status: Option<StatusCode> = status.parse().ok();
    status.and_then(|status| status.canonical_reason()).unwrap_or_default()
}

fn headers(html: &mut Html, document: &Value, headers: &Value) {
    if members(headers).next().is_none() {
        return;
    }
    html.leaf("p", &[("class", "label")], "Headers");
    html.element("dl", &[("class", "fields")], |html| {
        for (name, header) in members(headers) {
            let place = text(header, "$ref").trim_start_matches('#');
            let header = document.pointer(place).unwrap_or(header);
            let presence = if header["required"] == true { "" } else { "if any" };
            schema::row(
                html,
                name,
                presence,
                false,
                &header["schema"],
                text(header, "description"),
            );
        }
    });
}

/// Writes a body in its media types, with every example.
fn forms(html: &mut Html, content: &Value) {
    for (media_type, form) in members(content) {
        html.element("p", &[("class", "form")], |html| {
            html.code(media_type);
            html.text(" ");
            schema::line(html, &form["schema"]);
        });
        prose::write(html, text(&form["schema"], "description"));
        schema::fields(html, &form["schema"]);
        for (name, example) in members(&form["examples"]) {
            html.element("figure", &[], |html| {
                html.element("figcaption", &[], |html| {
                    html.code(name);
                    html.text(" ");
                    prose::spans(html, text(example, "summary"));
                });
                html.lines("example", &as_sent(media_type, &example["value"]));
            });
        }
    }
}

/// A body as it is on the wire, JSON in lines.
pub(super) fn as_sent(media_type: &str, body: &Value) -> String {
    match body {
        Value::String(text) if !media_type.ends_with("json") => text.clone(),
        Value::Array(lines) if media_type.ends_with("ndjson") => {
            lines.iter().map(|line| format!("{line}\n")).collect()
        }
        _ => format!("{body:#}"),
    }
}

fn leads_to(html: &mut Html, operation: &str, link: &Value) {
    html.element("p", &[], |html| {
        html.text("Goes on with ");
        html.link_to(operation, |html| html.code(operation));
        for (parameter, found) in members(&link["parameters"]) {
            html.text(": its ");
            html.code(parameter);
            html.text(" is ");
            html.code(found.as_str().unwrap_or_default());
        }
        html.text(".");
    });
}
