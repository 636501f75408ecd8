//! The page against the document it is made of, whatever that says.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::hostile::CONFIG;
use crate::openapi::document;

/// The page's tags in order, each with its attributes; panics where elements do not close in order.
fn tags(page: &str) -> Vec<(String, Vec<(String, String)>)> {
    let (mut all, mut open) = (Vec::new(), Vec::new());
    for piece in page.trim_start_matches(START).split('<').skip(1) {
        let (tag, _) = piece.split_once('>').expect("a tag ends before the next begins");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
            continue;
        }
        let (name, rest) = tag.split_once(' ').unwrap_or((tag, ""));
        let values = rest.split('"').collect::<Vec<_>>();
        let attributes = values.chunks_exact(2).map(|pair| {
            let name = pair[0].trim().strip_suffix('=').expect("an attribute has a value");
            (name.to_owned(), unescaped(pair[1]))
        });
        all.push((name.to_owned(), attributes.collect()));
        if name != "meta" {
            open.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    all
}

/// Text as a browser reads it.
fn unescaped(html: &str) -> String {
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    pairs.iter().fold(html.to_owned(), |html, (from, to)| html.replace(from, to))
}

fn escaped(text: &str) -> String {
    let mut html = Html::default();
    html.text(text);
    html.into_string()
}

fn values(page: &str, attribute: &str) -> Vec<String> {
    let attributes = tags(page).into_iter().flat_map(|(_, attributes)| attributes);
    attributes.filter(|(name, _)| name == attribute).map(|(_, value)| value).collect()
}

/// The part of the page that is about one operation.
fn section<'p>(page: &'p str, id: &str) -> &'p str {
    let start = format!("<article aria-labelledby=\"{id}\">");
    let (_, rest) = page.split_once(&start).unwrap_or_else(|| panic!("no {id}"));
    rest.split_once("</article>").expect("an end").0
}

#[test]
fn every_operation_is_shown_with_all_it_takes_and_answers() {
    let document = document(&CONFIG, []);
    let page = render(&document);
    let mut examples = 0;
    for (path, methods) in members(&document["paths"]) {
        for (method, spec) in members(methods) {
            let id = text(spec, "operationId");
            let shown = section(&page, id);
            let has = |what: &str| assert!(shown.contains(&escaped(what)), "{id} lacks {what}");
            [path, &method.to_uppercase(), text(spec, "summary")].into_iter().for_each(has);
            for parameter in elements(&spec["parameters"]) {
                has(text(parameter, "name"));
            }
            let answers = members(&spec["responses"]);
            for (status, answer) in answers.chain([("", &spec["requestBody"])]) {
                has(status);
                members(&answer["headers"]).for_each(|(name, _)| has(name));
                for (media_type, form) in members(&answer["content"]) {
                    has(media_type);
                    for (name, example) in members(&form["examples"]) {
                        has(name);
                        has(&operation::as_sent(media_type, &example["value"]));
                        examples += 1;
                    }
                }
            }
        }
    }
    assert!(examples > 90, "only {examples}");
}

#[test]
fn every_type_is_shown_with_each_field_bound_and_choice() {
    let document = document(&CONFIG, []);
    let page = render(&document);
    for (name, schema) in members(&document["components"]["schemas"]) {
        let (_, shown) = page.split_once(&format!("id=\"{}\"", schema::anchor(name))).expect(name);
        let (shown, _) = shown.split_once("</details>").expect("an end");
        each_word(schema, &mut |word| assert!(shown.contains(&escaped(word)), "{name}: {word}"));
    }
}

/// Calls with every leaf of a schema and every name of a field, less what the page tells in other words.
fn each_word(value: &Value, call: &mut impl FnMut(&str)) {
    match value {
        Value::Object(of) => {
            for (key, value) in of {
                match key.as_str() {
                    "required" | "description" | "$ref" => {}
                    "properties" => {
                        members(value).for_each(|(name, _)| call(name));
                        members(value).for_each(|(_, field)| each_word(field, call));
                    }
                    _ => each_word(value, call),
                }
            }
        }
        Value::Array(of) => of.iter().for_each(|value| each_word(value, call)),
        // Told by "array of", and by the list of fields.
        Value::String(word) if word == "array" || word == "object" => {}
        Value::String(word) => call(word),
        Value::Number(number) => call(&number.to_string()),
        Value::Bool(_) | Value::Null => {}
    }
}

#[test]
fn every_link_finds_its_place_and_every_place_is_one() {
    let page = render(&document(&CONFIG, []));
    let ids = values(&page, "id");
    let places: BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), places.len());
    let linked = values(&page, "href")
        .into_iter()
        .chain(values(&page, "aria-labelledby").into_iter().map(|id| format!("#{id}")));
    for link in linked {
        match link.strip_prefix('#') {
            Some(id) => assert!(places.contains(&id.to_owned()), "{link}"),
            None => assert_eq!(link, "/openapi.json"),
        }
    }
}

#[test]
fn headings_go_down_one_step_at_a_time() {
    let page = render(&document(&CONFIG, []));
    let levels = tags(&page)
        .into_iter()
        .filter_map(|(name, _)| name.strip_prefix('h').and_then(|level| level.parse::<u8>().ok()));
    levels.fold(0, |before, level| {
        assert!(level <= before + 1, "{level} after {before}");
        level
    });
}

#[test]
fn the_page_loads_and_runs_nothing() {
    let page = render(&document(&CONFIG, []));
    let allowed = [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "nav",
        "main",
        "section",
        "article",
        "h1",
        "h2",
        "h3",
        "h4",
        "p",
        "ul",
        "li",
        "dl",
        "div",
        "dt",
        "dd",
        "pre",
        "code",
        "span",
        "a",
        "details",
        "summary",
        "figure",
        "figcaption",
    ];
    for (name, attributes) in tags(&page) {
        assert!(allowed.contains(&&*name), "{name}");
        for (attribute, _) in attributes {
            assert!(!attribute.starts_with("on") && attribute != "style", "{attribute}");
        }
    }
    assert!(!STYLE.contains("url(") && !STYLE.contains("@import") && !STYLE.contains('<'));
}

#[test]
fn the_policy_allows_the_style_of_the_page() {
    let page = render(&document(&CONFIG, []));
    let (_, style) = page.split_once("<style>").expect("a style");
    let (style, rest) = style.split_once("</style>").expect("an end");
    assert!(!rest.contains("<style"));
    let hash = format!("style-src 'sha256-{}'", STANDARD.encode(Sha256::digest(style)));
    let policy = policy();
    assert!(policy.to_str().expect("text").contains(&hash), "{policy:?}");
}

/// A document that says the same thing everywhere it can say something.
fn saying(word: &str) -> Value {
    let schema = json!({
        "type": "object", "description": word, "required": [word],
        "properties": {word: {
            "type": word, "enum": [word], "pattern": word, "default": word, "description": word,
        }},
        "additionalProperties": {"$ref": format!("#/components/schemas/{word}")},
    });
    let examples = json!({word: {"summary": word, "value": {word: word}}});
    let content = json!({word: {"schema": schema, "examples": examples}});
    let parameter = |place| {
        json!({"in": place, "name": word, "required": true, "description": word, "example": word,
            "schema": schema})
    };
    let operation = json!({
        "operationId": word, "summary": word, "description": word, "tags": [word],
        "security": [{word: [word]}], "parameters": [parameter("query"), parameter("header")],
        "requestBody": {"description": word, "content": content},
        "responses": {word: {
            "description": word, "headers": {word: {"description": word, "schema": schema}},
            "content": content, "links": {word: {"parameters": {word: word}}},
        }},
    });
    json!({
        "info": {"title": word, "version": word, "summary": word, "description": word},
        "tags": [{"name": word, "description": word}],
        "paths": {word: {"get": operation}},
        "components": {
            "schemas": {word: schema},
            "securitySchemes": {word: {"name": word, "description": word}},
        },
    })
}

fn vocabulary(page: &str) -> BTreeSet<(String, Vec<String>)> {
    let names = |attributes: Vec<(String, String)>| attributes.into_iter().map(|(name, _)| name);
    tags(page).into_iter().map(|(name, attributes)| (name, names(attributes).collect())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn nothing_a_document_says_becomes_a_tag_or_an_attribute(
        pieces in prop::collection::vec(prop_oneof![
            proptest::sample::select(vec![
                "<x-evil onload=1>", "</p>", "</style>", "<!--", "-->", "\" onclick=\"", "' x='", "&lt;",
                "&#60;", "`", "\n\n", "- ", "[a](javascript:1)", "=", ">", "<", "</", "]]>", "\0",
            ]).prop_map(str::to_owned),
            ".{0,8}",
        ], 1..8)
    ) {
        let word = pieces.concat();
        let plain = ["word", "- `item`"].into_iter();
        let own: BTreeSet<_> = plain.flat_map(|word| vocabulary(&render(&saying(word)))).collect();
        let page = render(&saying(&word));
        let strange: Vec<_> = vocabulary(&page).difference(&own).cloned().collect();
        prop_assert!(strange.is_empty(), "{strange:?}");
        let title = page.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
        prop_assert_eq!(unescaped(title.expect("a title").0), format!("{word} HTTP API"));
    }
}
