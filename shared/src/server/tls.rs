//! TLS from two files, which are read again when they change.
//!
//! A certificate lives shorter than a process: what renews it replaces the files, and new connections get
//! the new one within [`LOOK_INTERVAL`]. Files that cannot be used (half written, of different pairs) are
//! told of once and change nothing. Client certificates are not asked for: who calls is told by API keys.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, InconsistentKeys, ServerConfig};
use tokio_rustls::{Accept, TlsAcceptor};
use xxhash_rust::xxh3::xxh3_64;

use crate::config;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{setting}: {path} cannot be read: {error}", path = path.display())]
    Unreadable {
        /// Which of the two.
        setting: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        error: std::io::Error,
    },
    /// A file is not in PEM form, or holds something else.
    #[error("{setting}: {path} holds no {wanted} in PEM form: {error}", path = path.display())]
    NotPem {
        /// Which of the two.
        setting: &'static str,
        /// Its path.
        path: PathBuf,
        /// What should be there.
        wanted: &'static str,
        /// What is wrong.
        #[source]
        error: pem::Error,
    },
    /// They belong to different pairs.
    #[error("server.tls_key is not the key of the certificate in server.tls_cert")]
    Mismatch,
    /// Anything else the TLS library does not take.
    #[error("server.tls_cert and server.tls_key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// The server's side of TLS.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    certificate: Arc<Certificate>,
}

impl Tls {
    /// Reads the files; `None` when none are set.
    ///
    /// # Errors
    /// [`TlsError`], for a person.
    pub(crate) async fn open(config: &config::Server) -> Result<Option<Self>, TlsError> {
        if !config.is_encrypted() {
            return Ok(None);
        }
        let provider = Arc::new(ring::default_provider());
        let certificate = Certificate::read(config, provider.clone()).await?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(certificate.clone());
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions are resumed from what the client holds: nothing is kept here for each of them.
        server.ticketer = ring::Ticketer::new()?;
        Ok(Some(Self { acceptor: TlsAcceptor::from(Arc::new(server)), certificate }))
    }

    pub(super) fn accept(&self, stream: TcpStream) -> Accept<TcpStream> {
        self.acceptor.accept(stream)
    }

    /// Goes on looking at the files; never ends.
    pub(crate) async fn follow_files(&self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            self.certificate.look_again().await;
        }
    }
}

/// The certificate and key that new connections get.
#[derive(Debug)]
struct Certificate {
    files: Files,
    provider: Arc<CryptoProvider>,
    in_force: RwLock<Arc<CertifiedKey>>,
    /// What the files held, or why they could not be read, when they were last looked at.
    seen: AtomicU64,
}

impl Certificate {
    async fn read(
        config: &config::Server,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<Self>, TlsError> {
        let files = Files { chain: config.tls_cert.clone(), key: config.tls_key.clone() };
        let pems = files.read().await?;
        let in_force = RwLock::new(Arc::new(pems.pair(&files, &provider)?));
        let seen = AtomicU64::new(pems.mark());
        Ok(Arc::new(Self { files, provider, in_force, seen }))
    }

    /// Takes what is new in the files, or tells why it cannot be taken, once for each thing found.
    async fn look_again(&self) {
        let found = self.files.read().await;
        let mark = match &found {
            Ok(pems) => pems.mark(),
            Err(error) => xxh3_64(error.to_string().as_bytes()),
        };
        if self.seen.swap(mark, Ordering::Relaxed) == mark {
            return;
        }
        match found.and_then(|pems| pems.pair(&self.files, &self.provider)) {
            Ok(pair) => {
                *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pair);
                tracing::info!("new connections get the new certificate");
            }
            Err(error) => tracing::error!(%error, "the old certificate stays in force"),
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

#[derive(Debug)]
struct Files {
    chain: PathBuf,
    key: PathBuf,
}

impl Files {
    async fn read(&self) -> Result<Pems, TlsError> {
        let chain = read("server.tls_cert", &self.chain).await?;
        let key = read("server.tls_key", &self.key).await?;
        Ok(Pems { chain, key })
    }
}

async fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = tokio::fs::read(path).await;
    read.map_err(|error| TlsError::Unreadable { setting, path: path.to_owned(), error })
}

/// What the two files hold.
struct Pems {
    chain: Vec<u8>,
    key: Vec<u8>,
}

impl Pems {
    fn mark(&self) -> u64 {
        xxh3_64(&self.chain).rotate_left(1) ^ xxh3_64(&self.key)
    }

    fn pair(&self, files: &Files, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let not_pem = |setting, path: &Path, wanted, error| TlsError::NotPem {
            setting,
            path: path.to_owned(),
            wanted,
            error,
        };
        let no_chain = |error| not_pem("server.tls_cert", &files.chain, "certificate", error);
        let chain = CertificateDer::pem_slice_iter(&self.chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(no_chain)?;
        if chain.is_empty() {
            return Err(no_chain(pem::Error::NoItemsFound));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| not_pem("server.tls_key", &files.key, "private key", error))?;
        CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::Mismatch,
            error => TlsError::Unusable(error),
        })
    }
}

#[cfg(test)]
mod tests;
