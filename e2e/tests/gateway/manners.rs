//! What every answer of every service has, whatever route gave it.

use pulsestream_e2e::client::{Client, event};
use pulsestream_e2e::harness::{Engines, Harness};
use uuid::Uuid;

use crate::contract::assert_problem;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_keeps_the_id_its_client_gave_it() {
    let pipeline = Harness::new(Engines::Embedded).start().await;
    let client = pipeline.client();
    let ask = async |path: &str, id: &str| {
        let (path, id) = (path.to_owned(), id.to_owned());
        let sent =
            client.send(|http, url| http.get(format!("{url}{path}")).header("x-request-id", id));
        sent.await.expect("an answer")
    };
    for path in ["/livez", "/v1/devices", "/nowhere"] {
        assert_eq!(ask(path, "from-me").await.header("x-request-id"), "from-me", "{path}");
        let made = ask(path, "two words").await;
        assert!(!["", "two words"].contains(&made.header("x-request-id")), "{path}");
    }
    assert_eq!(ask("/nowhere", "from-me").await.body["requestId"], "from-me");
    let accepted = client.post(Uuid::new_v4(), &event(pipeline.devices[0], 1.0)).await;
    assert!(!accepted.expect("an answer").header("x-request-id").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_are_problems_also_beside_the_gateway() {
    let pipeline = Harness::new(Engines::Servers).start().await;
    for service in &pipeline.services {
        let client = Client::new(&service.url, "");
        assert_problem(&client.get("/nowhere").await.expect("an answer"), 404, "not_found");
        let sent = client.send(|http, url| http.delete(format!("{url}/livez"))).await;
        let refused = sent.expect("an answer");
        assert_problem(&refused, 405, "method_not_allowed");
        assert_eq!(refused.header("allow"), "GET, HEAD");
    }
    pipeline.stop().await;
}
