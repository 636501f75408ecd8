//! JSON schemas in words: a type in one line, the fields of an object as a list.

use serde_json::Value;

use super::html::Html;
use super::{elements, members, prose, text};

/// Where a type of `#/components/schemas` is shown.
pub(super) fn anchor(name: &str) -> String {
    format!("type-{name}")
}

/// Keywords that hold schemas to be joined, and the word between them.
const JOINED: [(&str, &str); 3] = [("allOf", " with "), ("anyOf", " or "), ("oneOf", " or ")];

/// Bounds, and how they are told.
const BOUNDS: [(&str, &str); 11] = [
    ("minimum", "at least"),
    ("maximum", "at most"),
    ("minLength", "characters at least"),
    ("maxLength", "characters at most"),
    ("minItems", "items at least"),
    ("maxItems", "items at most"),
    ("maxProperties", "entries at most"),
    ("format", "format"),
    ("pattern", "matches"),
    ("default", "without it"),
    ("const", "always"),
];

/// Writes a type in one line.
pub(super) fn line(html: &mut Html, schema: &Value) {
    if let Some(name) = component(schema) {
        html.link_to(&anchor(name), |html| html.code(name));
    }
    for (keyword, word) in JOINED {
        for (index, part) in elements(&schema[keyword]).enumerate() {
            html.text(if index > 0 { word } else { "" });
            line(html, part);
        }
    }
    kind(html, schema);
    for (index, value) in elements(&schema["enum"]).enumerate() {
        html.text(if index > 0 { " or " } else { " " });
        html.code(&shown(value));
    }
    for (keyword, words) in BOUNDS {
        if let Some(value) = schema.get(keyword).filter(|value| !value.is_null()) {
            html.element("span", &[("class", "bound")], |html| {
                html.text(words);
                html.text(" ");
                html.code(&shown(value));
            });
        }
    }
    if let Some(names) = schema.get("propertyNames") {
        html.text("; names: ");
        line(html, names);
    }
}

/// The word for what it is.
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
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        html.text(" by name, of ");
        line(html, values);
    }
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
    for keyword in ["allOf", "anyOf", "oneOf"] {
        for part in elements(&schema[keyword]) {
            if keyword != "allOf" && part.get("properties").is_some() {
                html.leaf("p", &[("class", "label")], "Either");
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
            if !place.is_empty() {
                html.leaf("span", &[("class", "place")], place);
            }
            if required {
                html.leaf("span", &[("class", "required")], "required");
            }
        });
        html.element("dd", &[], |html| {
            html.element("p", &[("class", "type")], |html| line(html, schema));
            prose::write(html, about);
            fields(html, schema);
        });
    });
}

/// The type a schema refers to.
fn component(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.strip_prefix("#/components/schemas/")
}

/// A string without its quotes, anything else as JSON.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
