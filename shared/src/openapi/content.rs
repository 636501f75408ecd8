//! A body in its forms: for each media type a schema and examples.

use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// Writes a schema, of a type mostly: `SchemaGenerator::subschema_for::<T>`.
type Describe = Box<dyn FnOnce(&mut SchemaGenerator) -> Schema>;

#[derive(Default)]
pub(super) struct Content(Vec<Form>);

struct Form {
    media_type: &'static str,
    describe: Describe,
    examples: Map<String, Value>,
}

impl Content {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(
        &mut self,
        media_type: &'static str,
        describe: impl FnOnce(&mut SchemaGenerator) -> Schema + 'static,
    ) {
        self.0.push(Form { media_type, describe: Box::new(describe), examples: Map::new() });
    }

    /// Of the form pushed last.
    pub(super) fn example(&mut self, name: &str, about: &str, body: Value) {
        if let Some(form) = self.0.last_mut() {
            form.examples.insert(name.to_owned(), json!({"summary": about, "value": body}));
        }
    }

    pub(super) fn render(self, generator: &mut SchemaGenerator) -> Value {
        let mut content = Map::new();
        for Form { media_type, describe, examples } in self.0 {
            let schema = describe(generator);
            content.insert(media_type.to_owned(), json!({"schema": schema, "examples": examples}));
        }
        content.into()
    }
}
