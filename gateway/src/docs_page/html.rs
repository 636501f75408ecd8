//! HTML whose markup is the program's and whose text is the document's.
//!
//! Names of elements and attributes are `'static`; whatever is only known when the program runs comes in as
//! text or as an attribute's value, and both are escaped. Elements are closures, so they close in order.

/// An attribute and its value.
pub(super) type Attribute<'a> = (&'static str, &'a str);

/// A piece of a page being written.
#[derive(Default)]
pub(super) struct Html(String);

impl Html {
    /// The page so far.
    pub(super) fn into_string(self) -> String {
        self.0
    }

    /// Bytes written.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds the program's own markup.
    pub(super) fn markup(&mut self, markup: &'static str) {
        self.0.push_str(markup);
    }

    /// Adds text.
    pub(super) fn text(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                _ => self.0.push(character),
            }
        }
    }

    /// Adds an element around what `inner` adds.
    pub(super) fn element(
        &mut self,
        name: &'static str,
        attributes: &[Attribute<'_>],
        inner: impl FnOnce(&mut Self),
    ) {
        self.0.push('<');
        self.0.push_str(name);
        for (attribute, value) in attributes {
            self.0.push(' ');
            self.0.push_str(attribute);
            self.0.push_str("=\"");
            self.text(value);
            self.0.push('"');
        }
        self.0.push('>');
        inner(self);
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    /// Adds an element that holds text alone.
    pub(super) fn leaf(&mut self, name: &'static str, attributes: &[Attribute<'_>], text: &str) {
        self.element(name, attributes, |html| html.text(text));
    }

    /// Adds something to be read letter by letter.
    pub(super) fn code(&mut self, text: &str) {
        self.leaf("code", &[], text);
    }

    /// Adds a link to a place of this page.
    pub(super) fn link_to(&mut self, id: &str, inner: impl FnOnce(&mut Self)) {
        self.element("a", &[("href", &format!("#{id}"))], inner);
    }

    /// Adds lines that keep their breaks; too long ones are scrolled, also by keyboard.
    pub(super) fn lines(&mut self, class: &'static str, lines: &str) {
        self.element("pre", &[("class", class), ("tabindex", "0")], |html| html.code(lines));
    }
}
