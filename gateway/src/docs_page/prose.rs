//! The Markdown that descriptions use: paragraphs, lists of `- ` lines, and `code`. Everything else is text.

use super::html::Html;

/// Writes paragraphs and lists.
pub(super) fn write(html: &mut Html, text: &str) {
    for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let items = || block.lines().map(|line| line.strip_prefix("- "));
        if items().all(|item| item.is_some()) {
            html.element("ul", &[], |html| {
                for item in items().flatten() {
                    html.element("li", &[], |html| spans(html, item));
                }
            });
        } else {
            html.element("p", &[], |html| spans(html, block));
        }
    }
}

/// Writes the inside of a paragraph.
pub(super) fn spans(html: &mut Html, mut text: &str) {
    while let Some((before, code, after)) = code(text) {
        html.text(before);
        html.code(code);
        text = after;
    }
    html.text(text);
}

/// The first `code` of a text, and what stands around it.
fn code(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('`')?;
    let (code, after) = rest.split_once('`')?;
    Some((before, code, after))
}
