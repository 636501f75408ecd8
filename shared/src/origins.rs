//! Which web pages of other origins the operator lets in (`server.cors_origins`).

use axum::http::HeaderValue;

/// The origins that are let in.
#[derive(Debug, Clone)]
pub enum Origins {
    /// Whoever comes.
    Any,
    /// These, compared byte by byte.
    Listed(Vec<String>),
}

impl Origins {
    /// As the setting has them: `*` stands for all.
    pub fn new(listed: &[String]) -> Self {
        let any = listed.iter().any(|origin| origin == "*");
        if any { Self::Any } else { Self::Listed(listed.to_vec()) }
    }

    /// Whether a page of that origin is let in.
    pub fn allow(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(listed) => {
                listed.iter().any(|listed| listed.as_bytes() == origin.as_bytes())
            }
        }
    }
}
