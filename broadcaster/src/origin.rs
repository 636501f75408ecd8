//! Which web pages may open streams: those of this server's own origin, and those the operator lists.
//!
//! A browser lets a page of any site open a WebSocket anywhere, without asking the server first. Keys and
//! tokens are not sent by the browser on its own, so another site's page has none; but with `--dev` none is
//! needed, and then the pages of every site the developer visits could read the stream.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use pulsestream_shared::origins::Origins;
use pulsestream_shared::problem::{Code, Problem};

/// Whether a request with these headers, to that target, may open a stream. Programs send no `Origin`.
///
/// # Errors
/// 403 for a page of another origin than the server's own and those that are let in.
pub(crate) fn check(origins: &Origins, headers: &HeaderMap, target: &Uri) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let own = || authority(origin).is_some_and(|of| is_own(&of, headers, target));
    if origins.allow(origin) || own() { Ok(()) } else { Err(Code::OriginRefused.into()) }
}

/// The same for a stream that needs neither key nor token. Its page must also be of this machine by name: a
/// site can give its own name the address of this machine, and is of the server's own origin then.
///
/// # Errors
/// 403 for a page of another origin.
pub(crate) fn check_anonymous(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let local = authority(origin).is_some_and(|of| is_local(of.host()));
    if local { Ok(()) } else { Err(Code::OriginRefused.into()) }
}

/// Host and port of `http://HOST:PORT`; none for `null`, which pages without an origin send.
fn authority(origin: &HeaderValue) -> Option<Authority> {
    let (_, authority) = origin.to_str().ok()?.split_once("://")?;
    authority.parse().ok()
}

/// Compared without the scheme, which a proxy that ends TLS changes.
fn is_own(origin: &Authority, headers: &HeaderMap, target: &Uri) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| target.authority().map(Authority::as_str)); // HTTP/2
    host.is_some_and(|host| origin.as_str().eq_ignore_ascii_case(host))
}

fn is_local(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(origin: &str, host: &str) -> HeaderMap {
        let pairs = [(header::ORIGIN, origin), (header::HOST, host)];
        let given = pairs.into_iter().filter(|(_, value)| !value.is_empty());
        given.map(|(name, value)| (name, value.parse().unwrap())).collect()
    }

    #[test]
    fn pages_of_the_servers_own_origin_and_of_listed_ones_may_and_no_others() {
        let origins = Origins::new(&["https://dash.example".to_owned()]);
        let target = Uri::from_static("/v1/stream");
        let may = |origin, host| check(&origins, &headers(origin, host), &target).is_ok();
        assert!(may("", "ps.example"), "a program");
        assert!(may("https://dash.example", "ps.example"));
        assert!(may("http://ps.example:3000", "ps.example:3000"));
        assert!(may("https://PS.example", "ps.example"), "a proxy ended TLS");
        for other in [
            "https://dash.example.evil",
            "http://dash.example",
            "https://dash.example:8443",
            "http://ps.example",
            "null",
            "ps.example:3000",
            "http://user@ps.example:3000",
        ] {
            assert!(!may(other, "ps.example:3000"), "{other}");
        }
        assert!(check(&Origins::new(&["*".to_owned()]), &headers("null", "x"), &target).is_ok());
        let target = Uri::from_static("https://ps.example/v1/stream");
        assert!(check(&origins, &headers("https://ps.example", ""), &target).is_ok());
        assert!(check(&origins, &headers("https://evil.example", ""), &target).is_err());
    }

    #[test]
    fn without_a_key_only_pages_of_this_machine_by_name_may() {
        let may = |origin| check_anonymous(&headers(origin, "x")).is_ok();
        assert!(may("") && may("http://localhost:3000") && may("http://[::1]:3000"));
        assert!(may("http://127.0.0.1:3000"));
        assert!(!may("http://rebound.example:3000") && !may("null"));
    }
}
