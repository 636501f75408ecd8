//! What every answer of every service has, whatever route gave it, and the protocols it is asked in.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
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

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_without_tls_and_streams_that_stall_are_answered() {
    let pipeline = Harness::new(Engines::Embedded)
        .set("PULSESTREAM__INGEST__BODY_STALL_TIMEOUT", "300ms")
        .start()
        .await;
    let http = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let post = |body: reqwest::Body| {
        let request = http
            .post(format!("{}/v1/events", pipeline.gateway_url()))
            .header("x-api-key", &pipeline.key)
            .header("idempotency-key", Uuid::new_v4().to_string())
            .header("content-type", "application/json");
        async { request.body(body).send().await.expect("an answer") }
    };
    let good = || post(event(pipeline.devices[0], 1.0).to_string().into());
    let accepted = good().await;
    assert_eq!(accepted.status(), 202);
    assert_eq!(accepted.version(), reqwest::Version::HTTP_2);
    let endless = || {
        let frames = stream::pending::<Result<hyper::body::Frame<Bytes>, Infallible>>();
        reqwest::Body::wrap(StreamBody::new(frames))
    };
    let stalled: Vec<_> = (0..300).map(|_| post(endless())).collect();
    for answer in futures_util::future::join_all(stalled).await {
        assert_eq!(answer.status(), 408);
    }
    assert_eq!(good().await.status(), 202, "on the same connection");
    pipeline.stop().await;
}
