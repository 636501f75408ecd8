//! A process that speaks TLS, from its start to the renewal of its certificate.

use std::path::Path;
use std::sync::Arc;

use futures_util::StreamExt as _;
use pulsestream_e2e::client::{PATIENCE, event};
use pulsestream_e2e::harness::Engines;
use pulsestream_e2e::process::Process;
use pulsestream_shared::testing::wait_for;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use uuid::Uuid;

use crate::support::{Site, run};

/// A new key, and a certificate by itself for `localhost`, in place of those that are there.
fn renew(folder: &Path) -> CertificateDer<'static> {
    let names = vec!["localhost".to_owned()];
    let pair = rcgen::generate_simple_self_signed(names).expect("a certificate");
    std::fs::write(folder.join("cert.pem"), pair.cert.pem()).expect("written");
    std::fs::write(folder.join("key.pem"), pair.signing_key.serialize_pem()).expect("written");
    pair.cert.into()
}

/// A connection of a client that trusts this certificate alone.
async fn connect(
    process: &Process,
    trusted: &CertificateDer<'static>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(process.url.trim_start_matches("http://")).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(client)).connect(name, stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_dashboards_and_healthcheck_speak_tls_and_certificates_are_renewed_while_it_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = renew(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let files = [
        ("PULSESTREAM__SERVER__TLS_CERT", &*file("cert.pem")),
        ("PULSESTREAM__SERVER__TLS_KEY", &*file("key.pem")),
    ];
    let site = Site::with(Engines::Embedded, &files).await;
    let process = Process::start("up", &site.home.variables).await;
    let url = process.url.replacen("http", "https", 1);
    wait_for("healthcheck to say it is ready", PATIENCE, async || {
        run(&["healthcheck", "--url", &url], &site.home.variables).await.code == Some(0)
    })
    .await;

    let mut request = "wss://localhost/v1/stream".into_client_request().expect("a request");
    request.headers_mut().insert("x-api-key", site.key.parse().expect("a header"));
    let stream = connect(&process, &first).await.expect("TLS");
    let (mut dashboard, _) = client_async(request, stream).await.expect("a WebSocket");

    let mut device = connect(&process, &first).await.expect("TLS");
    let body = event(Uuid::new_v4(), 21.5).to_string();
    let request = format!(
        "POST /v1/events HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-api-key: {}\r\n\
         idempotency-key: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        site.key,
        Uuid::new_v4(),
        body.len()
    );
    device.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = timeout(PATIENCE, device.read_to_string(&mut answer)).await.expect("in time");
    read.expect("text, and an end that is told");
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    let shown = timeout(PATIENCE, dashboard.next()).await.expect("in time");
    let shown = shown.expect("an open socket").expect("a frame").into_text().expect("text");
    assert!(shown.contains("21.5"), "{shown}");

    let second = renew(folder.path());
    wait_for("the new certificate", PATIENCE, async || connect(&process, &second).await.is_ok())
        .await;
    assert!(connect(&process, &first).await.is_err());
}
