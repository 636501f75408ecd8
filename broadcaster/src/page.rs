//! The live page at `/`: files that are part of the program, so it works on a machine without a network.
//!
//! No build step and nothing from outside. Its policy allows scripts, styles and requests of its own origin
//! (and requests to the gateways', where that is another), no inline code, and no markup made of text:
//! what a device calls itself stays text even if the page had a mistake.

use axum::Router;
use axum::http::{HeaderValue, header};
use pulsestream_shared::page::Page;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Where the document is told of the gateways.
const GATEWAY: &str = "{{gateway}}";

const STYLES: &str =
    concat!(include_str!("../../shared/src/page/palette.css"), include_str!("../page/style.css"));
const DOCUMENT: &str = include_str!("../page/index.html");
/// Path, type, content.
const FILES: [(&str, &str, &str); 13] = [
    ("/page/main.js", SCRIPT, include_str!("../page/main.js")),
    ("/page/chart.js", SCRIPT, include_str!("../page/chart.js")),
    ("/page/gathered.js", SCRIPT, include_str!("../page/gathered.js")),
    ("/page/letters.js", SCRIPT, include_str!("../page/letters.js")),
    ("/page/rows.js", SCRIPT, include_str!("../page/rows.js")),
    ("/page/send.js", SCRIPT, include_str!("../page/send.js")),
    ("/page/words.js", SCRIPT, include_str!("../page/words.js")),
    // Also for pages of others: the client is documented there.
    ("/page/pulsestream.js", SCRIPT, include_str!("../../clients/js/pulsestream.js")),
    ("/page/style.css", STYLE, STYLES),
    ("/page/icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
    ("/page/uplot.js", SCRIPT, include_str!("../page/vendor/uplot-1.6.32.js")),
    ("/page/uplot.css", STYLE, include_str!("../page/vendor/uplot-1.6.32.css")),
    ("/page/uplot-license.txt", TEXT, include_str!("../page/vendor/uplot-LICENSE")),
];

/// The page and its files. `gateway`: the origin of the gateways; empty when it is the page's own.
pub(crate) fn routes(gateway: &str) -> Router {
    let document = Page::new(HTML, DOCUMENT.replace(GATEWAY, gateway))
        .header(header::CONTENT_SECURITY_POLICY, policy(gateway))
        .header(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    let router = Router::new().route("/", safe(document).route());
    FILES.into_iter().fold(router, |router, (path, media_type, content)| {
        router.route(path, safe(Page::new(media_type, content)).route())
    })
}

/// Taken for what it says it is.
fn safe(page: Page) -> Page {
    page.header(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
}

fn policy(gateway: &str) -> HeaderValue {
    let policy = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self' {gateway}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What stands between quotes after `before`.
    fn quoted<'t>(text: &'t str, before: &str) -> Vec<&'t str> {
        text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    fn own() -> impl Iterator<Item = (&'static str, &'static str)> {
        let files = FILES.into_iter().filter(|(path, ..)| !path.contains("uplot"));
        files.map(|(path, _, content)| (path, content)).chain([("/", DOCUMENT)])
    }

    #[test]
    fn every_file_the_page_asks_for_is_there() {
        let mut asked = quoted(DOCUMENT, "<script type=\"module\" src=\"");
        asked.extend(quoted(DOCUMENT, "<link rel=\"stylesheet\" href=\""));
        asked.extend(quoted(DOCUMENT, "<link rel=\"icon\" href=\""));
        for (_, content) in own() {
            asked.extend(quoted(content, " from \"").iter().filter(|path| path.starts_with('/')));
        }
        for path in &asked {
            assert!(FILES.iter().any(|(there, ..)| there == path), "{path} is not there");
        }
        assert!(asked.len() >= 10, "only {asked:?}");
    }

    #[test]
    fn nothing_in_it_needs_a_weaker_policy_or_makes_markup_of_text() {
        let inline = ["<style", " style=", " onclick", " onload", "javascript:"];
        let markup = ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("];
        for (path, content) in own() {
            for forbidden in inline.iter().chain(&markup) {
                assert!(!content.contains(forbidden), "{path}: {forbidden}");
            }
        }
        let scripts = DOCUMENT.matches("<script").count();
        assert_eq!(scripts, quoted(DOCUMENT, "<script type=\"module\" src=\"").len());
        let policy = policy("");
        assert!(!policy.to_str().unwrap().contains("unsafe"));
    }

    #[test]
    fn the_page_may_talk_to_its_own_origin_and_to_the_gateways() {
        let connect = |gateway| {
            let policy = policy(gateway);
            let policy = policy.to_str().unwrap().to_owned();
            let part = policy.split("; ").find(|part| part.starts_with("connect-src")).unwrap();
            part.trim_end().to_owned()
        };
        assert_eq!(connect(""), "connect-src 'self'");
        assert_eq!(
            connect("https://in.example:8443"),
            "connect-src 'self' https://in.example:8443"
        );
        assert_eq!(DOCUMENT.matches(GATEWAY).count(), 1);
    }
}
