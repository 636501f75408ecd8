//! `/docs` as a browser gets it, and its commands as a shell runs them.

use pulsestream_e2e::harness::{Engines, Harness};
use pulsestream_shared::store::Scope;
use tokio::process::Command;

use crate::contract::assert_problem;

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_answered_to_everybody_with_a_policy_and_only_once() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let client = pipeline.client();
    let page = client.get("/docs").await.expect("an answer");
    assert_eq!(page.status, 200);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    let head = client.send(|http, url| http.head(format!("{url}/docs"))).await;
    let head = head.expect("an answer");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), page.header("content-length"));
    let etag = page.header("etag").to_owned();
    let again =
        client.send(|http, url| http.get(format!("{url}/docs")).header("if-none-match", etag));
    assert_eq!(again.await.expect("an answer").status, 304);
    let post = client.send(|http, url| http.post(format!("{url}/docs"))).await.expect("an answer");
    assert_problem(&post, 405, "method_not_allowed");
    assert_eq!(post.header("allow"), "GET, HEAD");
    pipeline.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_page_is_understood() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let page = pipeline.client().get_text("/docs").await.expect("a page");
    let admin = pipeline.home.make_key_with("operator", &[Scope::Admin], None).await;
    let mut tried = 0;
    for section in page.split("<article ").skip(1) {
        let (_, command) = section.split_once("<pre class=\"command\"").expect("a command");
        let (_, command) = command.split_once("<code>").expect("its text");
        let (command, _) = command.split_once("</code>").expect("an end");
        let command = unescaped(command) + " -sS -o /dev/null -w '%{http_code}'";
        let mut shell = Command::new("sh");
        shell.args(["-c", &command]).env("URL", pipeline.gateway_url());
        let done = shell.env("API_KEY", &admin).output().await.expect("a shell");
        let status = String::from_utf8(done.stdout).expect("a status");
        // An event and a device may be none of ours yet.
        assert!(
            status.starts_with('2') || status == "404",
            "{command}: {status} {:?}",
            done.stderr
        );
        assert!(section.contains(&format!(">{status}</span>")), "{command}: {status} is not told");
        tried += 1;
    }
    assert!(tried > 10, "only {tried}");
    pipeline.stop().await;
}

fn unescaped(html: &str) -> String {
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    pairs.iter().fold(html.to_owned(), |html, (from, to)| html.replace(from, to))
}
