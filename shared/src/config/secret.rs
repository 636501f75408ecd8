//! A setting that must not be printed.

use std::fmt;

use serde::Deserialize;

/// A secret, or a URL that may hold one. `Debug` and `config show` never tell it.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The value itself, for the engine that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// True when nothing is set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0))
    }
}

/// Hides a URL's password and user, or the whole value when it is not a URL.
pub(super) fn redact(value: &str) -> String {
    if value.is_empty() {
        return String::new();
    }
    match url::Url::parse(value) {
        Ok(mut url) if url.has_host() || url.scheme() == "sqlite" => {
            let hidden = url.password().is_none() || url.set_password(Some("***")).is_ok();
            if hidden && url.query().is_none_or(|query| !query.contains("password")) {
                url.to_string()
            } else {
                "***".to_owned()
            }
        }
        _ => "***".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_opaque_secrets_are_hidden_and_the_rest_of_a_url_is_shown() {
        let shown = |value: &str| format!("{:?}", Secret::from(value));
        assert_eq!(shown("postgres://me:pw@db:5432/x"), "postgres://me:***@db:5432/x");
        assert_eq!(shown("redis://127.0.0.1:6379"), "redis://127.0.0.1:6379");
        assert_eq!(shown("correct horse"), "***");
        assert_eq!(shown("postgres://db/x?password=pw"), "***");
        assert_eq!(shown(""), "");
    }
}
