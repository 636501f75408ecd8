//! JSON schemas in words: a type in one line, the fields of an object as a list.

use serde_json::Value;

use super::html::Html;
use super::{elements, members, plain, prose, text};

/// Where a type of `#/components/schemas` is shown.
pub(super) fn anchor(name: &str) -> String {
    format!("type-{name}")
}

/// Keywords that hold schemas to be joined, and the word between them.
const JOINED: [(&str, &str); 3] = [("allOf", " with "), ("anyOf", " or "), ("oneOf", " or ")];

/// Bounds, and the words before and after them.
const BOUNDS: [(&str, &str, &str); 10] = [
    ("minimum", "at least", ""),
    ("maximum", "at most", ""),
    ("minLength", "at least", " characters"),
    ("maxLength", "at most", " characters"),
    ("minItems", "at least", " items"),
    ("maxItems", "at most", " items"),
    ("maxProperties", "at most", " entries"),
    ("pattern", "matches", ""),
    ("default", "without it", ""),
    ("const", "always", ""),
];

/// Writes a type in one line.
pub(super) fn line(html: &mut Html, schema: &Value) {
    let start = html.len();
    if let Some(name) = component(schema) {
        html.link_to(&anchor(name), |html| html.code(name));
    }
    for (keyword, word) in JOINED {
        // What is added to a type is told by its fields alone.
        let told = |part: &&Value| keyword != "allOf" || !is_record(part);
        for (index, part) in elements(&schema[keyword]).filter(told).enumerate() {
            html.text(if index > 0 { word } else { "" });
            line(html, part);
        }
    }
    kind(html, schema);
    for (index, value) in elements(&schema["enum"]).enumerate() {
        html.text(if index > 0 { " or " } else { between(html, start, ": ") });
        html.code(&plain(value));
    }
    for (keyword, before, after) in BOUNDS {
        if let Some(value) = schema.get(keyword).filter(|value| !value.is_null()) {
            html.text(between(html, start, ", "));
            html.text(before);
            html.text(" ");
            html.code(&plain(value));
            html.text(after);
        }
    }
    if let Some(names) = schema.get("propertyNames") {
        html.text(", its names ");
        line(html, names);
    }
}

/// What parts words from those before them; nothing at the start.
fn between(html: &Html, start: usize, words: &'static str) -> &'static str {
    if html.len() > start { words } else { "" }
}

/// Writes the word for what it is.
fn kind(html: &mut Html, schema: &Value) {
    let kinds = &schema["type"];
    let words: Vec<_> = elements(kinds).chain([kinds]).filter_map(Value::as_str).collect();
    match schema.get("items") {
        Some(items) => {
            html.text("array of ");
            line(html, items);
        }
        None => html.text(&words.join(" or ")),
    }
    if let Some(format) = schema["format"].as_str() {
        html.text(" (");
        html.text(format);
        html.text(")");
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        html.text(" of ");
        line(html, values);
    }
}

/// Whether [`fields`] tell all about it, so that a line would only say that it is an object.
pub(super) fn is_record(schema: &Value) -> bool {
    let mut forms = elements(&schema["anyOf"]).peekable();
    schema.get("properties").is_some() || (forms.peek().is_some() && forms.all(is_record))
}

/// Writes what a line does not tell: the fields, and those of the objects within.
pub(super) fn fields(html: &mut Html, schema: &Value) {
    if schema.get("properties").is_some() {
        html.element("dl", &[("class", "fields")], |html| {
            for (name, field) in members(&schema["properties"]) {
                let required = elements(&schema["required"]).any(|needed| needed == name);
                row(html, name, "", required, field, text(field, "description"));
            }
        });
    }
    for (keyword, _) in JOINED {
        for (index, part) in elements(&schema[keyword]).enumerate() {
            if keyword != "allOf" && part.get("properties").is_some() {
                let word = if index > 0 { "or" } else { "either" };
                html.leaf("p", &[("class", "label")], word);
                prose::write(html, text(part, "description"));
            }
            fields(html, part);
        }
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(within) = schema.get(keyword) {
            fields(html, within);
        }
    }
}

/// Writes one field or parameter.
pub(super) fn row(
    html: &mut Html,
    name: &str,
    place: &str,
    required: bool,
    schema: &Value,
    about: &str,
) {
    html.element("div", &[], |html| {
        html.element("dt", &[], |html| {
            html.code(name);
            html.text(" ");
            html.element("span", &[("class", "type")], |html| line(html, schema));
            for word in [place, if required { "required" } else { "" }] {
                if !word.is_empty() {
                    html.text(" ");
                    html.leaf("span", &[("class", "mark")], word);
                }
            }
        });
        html.element("dd", &[], |html| {
            prose::write(html, about);
            fields(html, schema);
        });
    });
}

/// The type a schema refers to.
fn component(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.strip_prefix("#/components/schemas/")
}
