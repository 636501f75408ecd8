//! A header whose value is a list (RFC 9110, 5.6.1), on one line or on several.

use axum::http::{HeaderMap, HeaderName};

/// Its items, without the white space around them; a line that is no text has none.
pub fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use axum::http::header::{ACCEPT, CONNECTION};

    use super::*;

    #[test]
    fn items_come_from_every_line_and_without_white_space() {
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, HeaderValue::from_static("keep-alive ,\tUpgrade"));
        headers.append(CONNECTION, HeaderValue::from_bytes(b"\xff").unwrap());
        headers.append(CONNECTION, HeaderValue::from_static("close"));
        let found: Vec<_> = items(&headers, CONNECTION).collect();
        assert_eq!(found, ["keep-alive", "Upgrade", "close"]);
        assert_eq!(items(&headers, ACCEPT).count(), 0);
    }
}
