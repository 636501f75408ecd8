//! `/docs`: the API's description as one page for people, made at the start of the very document that
//! `/openapi.json` serves. It says nothing of its own about any route.
//!
//! The page needs nothing but itself: no script, no font, no image, no other host, so it works on a machine
//! without a network and prints. Its policy allows the one style that stands in it and nothing else. What the
//! document says reaches the page as text ([`html`]), so it cannot become markup.

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pulsestream_shared::openapi::{Answer, Operation};
use pulsestream_shared::page::{ETAG, Page, unchanged};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use html::Html;

mod command;
mod html;
mod operation;
mod prose;
mod schema;
#[cfg(test)]
mod tests;

const PATH: &str = "/docs";
const MEDIA_TYPE: &str = "text/html; charset=utf-8";
const STYLE: &str =
    concat!(include_str!("../../../shared/src/page/palette.css"), include_str!("style.css"));
const START: &str = "<!doctype html>";

/// Where the page tells of API keys.
const KEYS: &str = "api-keys";

/// The page in the API's description.
pub(crate) fn operation() -> Operation {
    let page = Answer::new(StatusCode::OK, "One page that needs no other file and no network.")
        .text(MEDIA_TYPE)
        .example("document", "How it begins", &START)
        .header(ETAG);
    Operation::get(PATH, "docs", "This description, for people")
        .tag("process")
        .answer(page)
        .answer(unchanged())
}

/// `/docs`.
pub(crate) fn routes(document: &Value) -> Router {
    let text = HeaderValue::from_static;
    let page = Page::new(MEDIA_TYPE, render(document))
        .header(header::CONTENT_SECURITY_POLICY, policy())
        .header(header::X_CONTENT_TYPE_OPTIONS, text("nosniff"))
        .header(header::REFERRER_POLICY, text("no-referrer"));
    Router::new().route(PATH, page.route())
}

/// The page's own style and nothing else, from wherever.
fn policy() -> HeaderValue {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

/// The page of a document.
fn render(document: &Value) -> String {
    let mut html = Html::default();
    html.markup(START);
    html.element("html", &[("lang", "en")], |html| {
        html.element("head", &[], |html| head(html, &document["info"]));
        html.element("body", &[], |html| {
            html.markup("<a class=\"skip\" href=\"#main\">Skip to the description</a>");
            html.element("header", &[], |html| title(html, &document["info"]));
            html.element("nav", &[("aria-label", "Contents")], |html| contents(html, document));
            html.element("main", &[("id", "main"), ("tabindex", "-1")], |html| {
                main(html, document)
            });
        });
    });
    html.into_string()
}

fn head(html: &mut Html, info: &Value) {
    html.markup("<meta charset=\"utf-8\">");
    html.markup("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    html.markup("<meta name=\"color-scheme\" content=\"light dark\">");
    html.leaf("title", &[], &format!("{} HTTP API", text(info, "title")));
    html.element("style", &[], |html| html.markup(STYLE));
}

fn title(html: &mut Html, info: &Value) {
    html.element("h1", &[], |html| {
        html.text(text(info, "title"));
        html.leaf("span", &[("class", "version")], text(info, "version"));
    });
    html.leaf("p", &[], text(info, "summary"));
    html.markup("<p>For programs: <a href=\"/openapi.json\">/openapi.json</a></p>");
}

fn contents(html: &mut Html, document: &Value) {
    for tag in elements(&document["tags"]).filter_map(|tag| tag["name"].as_str()) {
        html.element("p", &[("class", "label")], |html| {
            html.link_to(&section_of(tag), |html| html.text(tag));
        });
        html.element("ul", &[], |html| {
            for (path, method, spec) in operations(document, tag) {
                html.element("li", &[], |html| {
                    html.link_to(text(spec, "operationId"), |html| {
                        operation::route(html, path, method);
                    });
                });
            }
        });
    }
    html.element("p", &[("class", "label")], |html| {
        html.link_to(KEYS, |html| html.text("keys"));
        html.text(" ");
        html.link_to("types", |html| html.text("types"));
    });
}

fn main(html: &mut Html, document: &Value) {
    prose::write(html, text(&document["info"], "description"));
    keys(html, &document["components"]["securitySchemes"]);
    for tag in elements(&document["tags"]) {
        let name = text(tag, "name");
        let id = section_of(name);
        html.element("section", &[("aria-labelledby", &id)], |html| {
            html.leaf("h2", &[("id", &id)], name);
            prose::write(html, text(tag, "description"));
            for (path, method, spec) in operations(document, name) {
                operation::write(html, document, path, method, spec);
            }
        });
    }
    types(html, &document["components"]["schemas"]);
}

fn keys(html: &mut Html, schemes: &Value) {
    html.element("section", &[("aria-labelledby", KEYS)], |html| {
        html.leaf("h2", &[("id", KEYS)], "keys");
        html.element("ul", &[], |html| {
            for (_, scheme) in members(schemes) {
                html.element("li", &[], |html| {
                    html.code(scheme["name"].as_str().unwrap_or("Authorization"));
                    html.text(": ");
                    prose::spans(html, text(scheme, "description"));
                });
            }
        });
        html.leaf(
            "p",
            &[],
            "The commands on this page find the server and the key in two variables:",
        );
        html.lines("command", command::SETTING);
    });
}

fn types(html: &mut Html, schemas: &Value) {
    html.element("section", &[("aria-labelledby", "types")], |html| {
        html.leaf("h2", &[("id", "types")], "types");
        for (name, schema) in members(schemas) {
            html.element("details", &[("class", "answer")], |html| {
                html.element("summary", &[], |html| html.leaf("h3", &[], name));
                // Within: a browser opens what it jumps into.
                html.element("div", &[("id", &schema::anchor(name))], |html| {
                    prose::write(html, text(schema, "description"));
                    if !schema::is_record(schema) {
                        html.element("p", &[("class", "type")], |html| schema::line(html, schema));
                    }
                    schema::fields(html, schema);
                });
            });
        }
    });
}

fn section_of(tag: &str) -> String {
    format!("tag-{tag}")
}

/// Path, method and description of each operation of a tag.
fn operations<'d>(
    document: &'d Value,
    tag: &'d str,
) -> impl Iterator<Item = (&'d str, &'d str, &'d Value)> {
    let paths = members(&document["paths"]);
    let all = paths.flat_map(|(path, methods)| {
        members(methods).map(move |(method, spec)| (path, method, spec))
    });
    all.filter(move |(_, _, spec)| elements(&spec["tags"]).any(|of| of == tag))
}

/// A member that is text; nothing when it is absent.
fn text<'d>(value: &'d Value, key: &str) -> &'d str {
    value[key].as_str().unwrap_or_default()
}

/// A string without its quotes, anything else as JSON.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The members of an object.
fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, member)| (name.as_str(), member))
}

/// The elements of an array.
fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
