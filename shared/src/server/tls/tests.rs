//! Files that change, and files that cannot be used.

use std::path::Path;

use tokio::net::TcpListener;

use super::super::tests::{encrypt, encrypted, write_pair};
use super::*;

/// Whether a client that trusts this certificate alone would speak to the server now.
async fn is_shown(tls: &Tls, certificate: &CertificateDer<'static>) -> bool {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = async { tls.accept(listener.accept().await.expect("accepted").0).await };
    let client = async {
        let stream = TcpStream::connect(address).await.expect("connected");
        encrypt(stream, certificate, "h2").await
    };
    let (_server, client) = tokio::join!(server, client);
    client.is_ok()
}

async fn open(folder: &Path) -> Result<Tls, TlsError> {
    Tls::open(&encrypted(folder)).await.map(|tls| tls.expect("files are set"))
}

#[tokio::test]
async fn new_files_are_taken_and_what_cannot_be_used_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = write_pair(folder.path());
    let tls = open(folder.path()).await.expect("good files");
    assert!(is_shown(&tls, &first).await);

    let second = write_pair(folder.path());
    assert!(is_shown(&tls, &first).await, "nobody has looked yet");
    tls.certificate.look_again().await;
    assert!(is_shown(&tls, &second).await);

    // Between the two writes of whoever renews: a key that is not the certificate's.
    let key = folder.path().join("key.pem");
    let kept = std::fs::read(&key).expect("a key");
    write_pair(folder.path());
    let third = std::fs::read(&key).expect("a key");
    std::fs::write(&key, &kept).expect("written");
    tls.certificate.look_again().await;
    assert!(is_shown(&tls, &second).await);
    std::fs::remove_file(&key).expect("removed");
    tls.certificate.look_again().await;
    assert!(is_shown(&tls, &second).await);
    std::fs::write(&key, third).expect("written");
    tls.certificate.look_again().await;
    assert!(!is_shown(&tls, &second).await, "the third is whole now");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_told_by_setting_and_path() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let told = async || match open(folder.path()).await {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    let cert = format!("server.tls_cert: {}", path("cert.pem").display());
    assert!(told().await.starts_with(&format!("{cert} cannot be read: ")));

    write_pair(folder.path());
    std::fs::copy(path("key.pem"), path("cert.pem")).expect("copied");
    assert!(told().await.starts_with(&format!("{cert} holds no certificate in PEM form: ")));

    write_pair(folder.path());
    std::fs::write(path("key.pem"), "-----BEGIN").expect("written");
    let key = format!("server.tls_key: {}", path("key.pem").display());
    assert!(told().await.starts_with(&format!("{key} holds no private key in PEM form: ")));

    write_pair(folder.path());
    let other = std::fs::read(path("key.pem")).expect("a key");
    write_pair(folder.path());
    std::fs::write(path("key.pem"), other).expect("written");
    assert_eq!(told().await, TlsError::Mismatch.to_string());
}
