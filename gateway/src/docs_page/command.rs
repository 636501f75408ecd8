//! A request as a command for a shell: `curl`, with the examples of what the operation requires.
//!
//! An example tells of one event at one moment. A command is run at another one, again and again: it asks the
//! shell for the time and for a new key. `$URL` and `$API_KEY` are what its reader sets.

use pulsestream_shared::openapi::example;
use serde_json::Value;
use url::form_urlencoded::byte_serialize;

use super::{elements, members, plain, text};

/// What the reader sets before the first command.
pub(super) const SETTING: &str = "export URL=http://127.0.0.1:3000 API_KEY=ps_live_...";

const NEW_KEY: &str = "$(uuidgen 2>/dev/null || cat /proc/sys/kernel/random/uuid)";

/// The command of one operation.
pub(super) fn of(path: &str, method: &str, operation: &Value) -> String {
    let mut arguments = vec![format!("curl \"$URL{}\"", target(path, operation))];
    if operation.get("security").is_some() {
        arguments.push("-H \"x-api-key: $API_KEY\"".to_owned());
    }
    for header in required(operation, "header") {
        let (name, value) = (doubly_quoted(text(header, "name")), plain(&header["example"]));
        let fresh = doubly_quoted(&value).replace(&example::EVENT_ID.to_string(), NEW_KEY);
        arguments.push(format!("-H \"{name}: {fresh}\""));
    }
    let body = members(&operation["requestBody"]["content"]).next();
    match body {
        Some((media_type, form)) => {
            arguments.push(format!("-H \"Content-Type: {}\"", doubly_quoted(media_type)));
            let example = members(&form["examples"]).next();
            let body = example.map(|(_, example)| format!("{:#}", example["value"]));
            let fresh = at_present(&quoted(&body.unwrap_or_default()), "'");
            arguments.push(format!("-d {fresh}"));
        }
        None if method != "get" => arguments.push(format!("-X {}", method.to_uppercase())),
        None => {}
    }
    arguments.join(" \\\n  ")
}

/// Path and query, to stand within double quotes.
fn target(path: &str, operation: &Value) -> String {
    let mut target = doubly_quoted(path);
    for parameter in required(operation, "path") {
        let name = format!("{{{}}}", text(parameter, "name"));
        target = target.replace(&name, &encoded(parameter));
    }
    let query: Vec<_> = required(operation, "query")
        .map(|parameter| {
            let value = at_present(&encoded(parameter), "");
            format!("{}={value}", doubly_quoted(text(parameter, "name")))
        })
        .collect();
    if query.is_empty() { target } else { format!("{target}?{}", query.join("&")) }
}

/// Required parameters; a header that may be needed is sent as well.
fn required<'d>(operation: &'d Value, place: &'static str) -> impl Iterator<Item = &'d Value> {
    elements(&operation["parameters"]).filter(move |parameter| {
        parameter["in"] == place && (parameter["required"] == true || place == "header")
    })
}

fn encoded(parameter: &Value) -> String {
    byte_serialize(plain(&parameter["example"]).as_bytes()).collect()
}

/// Lets the shell say what time it is; `quote` ends the quotes around it and begins them again.
fn at_present(word: &str, quote: &str) -> String {
    [-60, 0, 60].into_iter().fold(word.to_owned(), |word, offset_s: i64| {
        let told = (example::TIMESTAMP_MS + offset_s * 1_000).to_string();
        let seconds = match offset_s {
            0 => "$(date +%s)".to_owned(),
            _ => format!("$(($(date +%s){offset_s:+}))"),
        };
        word.replace(&told, &format!("{quote}{seconds}000{quote}"))
    })
}

/// One word of a shell that means this text.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Text to stand within double quotes of a shell.
fn doubly_quoted(text: &str) -> String {
    let mut quoted = String::new();
    for character in text.chars() {
        if matches!(character, '"' | '$' | '`' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_shell_reads_what_was_quoted_as_it_was(text in "[ -~\n\u{e9}]{0,40}|['\"$`\\\\!(){};]{0,12}") {
            for word in [quoted(&text), format!("\"{}\"", doubly_quoted(&text))] {
                let script = format!("printf '%s.' {word}");
                let got = Command::new("sh").args(["-c", &script]).output().unwrap();
                prop_assert_eq!(String::from_utf8(got.stdout).unwrap(), format!("{text}."));
            }
        }
    }
}
