//! Connections as clients see them, with routers that do next to nothing.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, Version, header};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::*;
use crate::service::App;
use crate::shutdown::Shutdown;
use crate::testing::wait_for;

/// For what must come.
const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not come by itself, beside [`SOON`].
const LONG: Duration = Duration::from_secs(3_600);
const SOON: Duration = Duration::from_millis(100);

fn settings() -> config::Server {
    let mut server = config::load(None, std::iter::empty(), &[]).expect("defaults").config.server;
    (server.header_timeout, server.keep_alive_timeout) = (LONG, LONG);
    (server.max_connection_age, server.drain_timeout) = (LONG, LONG);
    server.write_stall_timeout = LONG;
    server
}

struct Server {
    address: std::net::SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(settings: config::Server) -> Self {
        Self::answering(settings, Router::new().route("/", get(async || "hello"))).await
    }

    async fn answering(settings: config::Server, router: Router) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shutdown = Shutdown::default();
        let tls = Tls::open(&settings).await.expect("files").map(Arc::new);
        let app = Arc::new(App::starting(router, Manners::new(&settings)));
        let terms = Terms::new(app, tls, &settings, &shutdown);
        let task = tokio::spawn(async move { serve(listener, terms, &settings).await });
        Self { address, shutdown, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connected")
    }

    async fn http1(&self) -> Http1 {
        Http1::on(self.connect().await).await
    }

    async fn http2(&self) -> Http2 {
        Http2::on(self.connect().await).await
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// A client's connection; the task ends with it.
struct Http1(http1::SendRequest<Body>, JoinHandle<hyper::Result<()>>);

impl Http1 {
    async fn on(stream: impl Stream) -> Self {
        let (send, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
        Self(send, tokio::spawn(connection))
    }

    async fn ask(&mut self) -> Response<Incoming> {
        self.ask_for("/").await
    }

    async fn ask_for(&mut self, path: &str) -> Response<Incoming> {
        let request = Request::builder().uri(path).header("host", "test").body(Body::empty());
        let answer = self.0.send_request(request.expect("a request"));
        timeout(PATIENCE, answer).await.expect("in time").expect("an answer")
    }
}

struct Http2(http2::SendRequest<Body>, JoinHandle<hyper::Result<()>>);

impl Http2 {
    async fn on(stream: impl Stream) -> Self {
        let io = TokioIo::new(stream);
        let (send, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
        Self(send, tokio::spawn(connection))
    }

    async fn ask(&mut self) -> Response<Incoming> {
        let request = Request::builder().uri("http://test/").body(Body::empty());
        let answer = self.0.send_request(request.expect("a request"));
        timeout(PATIENCE, answer).await.expect("in time").expect("an answer")
    }

    /// The server has taken its leave, and the client has nothing open.
    async fn sent_away(self) {
        timeout(PATIENCE, self.1).await.expect("in time").expect("no panic").expect("no error");
    }
}

fn closes(answer: &Response<Incoming>) -> bool {
    answer.headers().get(header::CONNECTION).is_some_and(|value| value == "close")
}

/// The server closes without a word.
async fn closed(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("in time");
    assert_eq!((read.expect("no reset"), &bytes[..]), (0, &b""[..]));
}

/// A new key, and a certificate by itself for `localhost`, written to the two files.
pub(super) fn write_pair(folder: &Path) -> CertificateDer<'static> {
    let names = vec!["localhost".to_owned()];
    let pair = rcgen::generate_simple_self_signed(names).expect("a certificate");
    std::fs::write(folder.join("cert.pem"), pair.cert.pem()).expect("written");
    std::fs::write(folder.join("key.pem"), pair.signing_key.serialize_pem()).expect("written");
    pair.cert.into()
}

pub(super) fn encrypted(folder: &Path) -> config::Server {
    let mut settings = settings();
    (settings.tls_cert, settings.tls_key) = (folder.join("cert.pem"), folder.join("key.pem"));
    settings
}

/// A TLS client that trusts one certificate and speaks that protocol.
pub(super) async fn encrypt(
    stream: TcpStream,
    trusted: &CertificateDer<'static>,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let provider = Arc::new(ring::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(client)).connect(name, stream).await
}

#[tokio::test]
async fn http_1_and_http_2_are_both_spoken_in_the_clear() {
    let server = Server::start(settings()).await;
    assert_eq!(server.http1().await.ask().await.version(), Version::HTTP_11);
    assert_eq!(server.http2().await.ask().await.version(), Version::HTTP_2);
}

#[tokio::test]
async fn over_tls_the_client_chooses_between_http_1_and_http_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let trusted = write_pair(folder.path());
    let server = Server::start(encrypted(folder.path())).await;
    let stream = encrypt(server.connect().await, &trusted, "http/1.1").await.expect("TLS");
    assert_eq!(Http1::on(stream).await.ask().await.version(), Version::HTTP_11);
    let stream = encrypt(server.connect().await, &trusted, "h2").await.expect("TLS");
    assert_eq!(Http2::on(stream).await.ask().await.version(), Version::HTTP_2);
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_is_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    write_pair(folder.path());
    let settings = config::Server { header_timeout: SOON, ..encrypted(folder.path()) };
    let server = Server::start(settings).await;
    closed(server.connect().await).await;
    let mut begun = server.connect().await;
    begun.write_all(&[22, 3, 1, 1, 0, 1]).await.expect("the head of a hello");
    closed(begun).await;
}

#[tokio::test]
async fn an_idle_http_1_connection_is_closed_in_time() {
    let server = Server::start(config::Server { keep_alive_timeout: SOON, ..settings() }).await;
    let mut idle = server.http1().await;
    assert!(!closes(&idle.ask().await));
    timeout(PATIENCE, idle.1).await.expect("closed").expect("no panic").expect("no error");
}

#[tokio::test]
async fn an_old_connection_is_asked_to_come_anew() {
    let server = Server::start(config::Server { max_connection_age: SOON, ..settings() }).await;
    let mut old = server.http1().await;
    // Every request is answered until then, and the one with which it is told.
    while !closes(&old.ask().await) {}
    let mut old = server.http2().await;
    old.ask().await;
    old.sent_away().await;
}

/// More than the kernel takes in for a client that reads nothing.
const LONG_ANSWER: usize = 64 << 20;

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let router = Router::new().route("/", get(async || vec![b'x'; LONG_ANSWER]));
    let settings = config::Server { write_stall_timeout: SOON, ..settings() };
    let server = Server::answering(settings, router).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.expect("sent");
    server.shutdown.drain.cancel();
    timeout(PATIENCE, server.task).await.expect("cut").expect("no panic");
    // What the kernel had taken in is there, the rest is not.
    let mut bytes = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("in time");
    assert!(bytes.len() < LONG_ANSWER, "{end:?}");
}

#[tokio::test]
async fn an_answer_that_is_read_slowly_is_sent_whole() {
    let router = Router::new().route("/", get(async || vec![b'x'; LONG_ANSWER]));
    let patience = SOON * 10;
    let settings = config::Server { write_stall_timeout: patience, ..settings() };
    let server = Server::answering(settings, router).await;
    let mut stream = server.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .await
        .expect("sent");
    let (begun, mut heard) = (tokio::time::Instant::now(), 0);
    let mut chunk = vec![0; LONG_ANSWER / 32];
    while heard < LONG_ANSWER {
        // Slower in all than the patience, never silent for so long.
        tokio::time::sleep(SOON).await;
        heard +=
            timeout(PATIENCE, stream.read_exact(&mut chunk)).await.expect("in time").expect("read");
    }
    assert!(begun.elapsed() > patience);
}

#[tokio::test]
async fn who_comes_while_the_process_leaves_is_served_once() {
    let server = Server::start(settings()).await;
    let (mut early1, mut early2) = (server.http1().await, server.http2().await);
    early1.ask().await;
    early2.ask().await;
    server.shutdown.leave.cancel();
    early2.sent_away().await;
    assert!(closes(&early1.ask().await));
    assert!(closes(&server.http1().await.ask().await));
    let mut late = server.http2().await;
    late.ask().await;
    late.sent_away().await;
}

#[tokio::test]
async fn a_drain_closes_what_is_idle_and_serves_who_has_only_just_connected() {
    let server = Server::start(settings()).await;
    let mut idle = server.http1().await;
    idle.ask().await;
    let _silent = server.connect().await;
    let mut late = server.connect().await;
    server.shutdown.drain.cancel();
    wait_for("the end of listening", PATIENCE, async || {
        TcpStream::connect(server.address).await.is_err()
    })
    .await;
    late.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    timeout(PATIENCE, late.read_to_string(&mut answer)).await.expect("in time").expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    timeout(PATIENCE, server.task).await.expect("in time").expect("no panic");
    timeout(PATIENCE, idle.1).await.expect("closed").expect("no panic").expect("no error");
}

#[tokio::test]
async fn a_drain_serves_whom_the_kernel_has_let_in_and_the_runtime_does_not_know() {
    let server = Server::start(settings()).await;
    server.http1().await.ask().await;
    server.shutdown.drain.cancel();
    // Blocking: the server, on this thread, hears of its end and of both connections at once.
    let connect = || std::net::TcpStream::connect(server.address).expect("connected");
    for stream in [connect(), connect()] {
        stream.set_nonblocking(true).expect("a socket");
        let mut late = TcpStream::from_std(stream).expect("a socket");
        late.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.expect("sent");
        let mut answer = String::new();
        timeout(PATIENCE, late.read_to_string(&mut answer)).await.expect("in time").expect("text");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn an_http_2_client_has_so_many_requests_open_and_the_rest_wait() {
    const ALL: usize = 200;
    static OPEN: AtomicUsize = AtomicUsize::new(0);
    let go_on = Arc::new(Semaphore::new(0));
    let hang = {
        let go_on = go_on.clone();
        async move || {
            OPEN.fetch_add(1, Ordering::Relaxed);
            drop(go_on.acquire_owned().await);
        }
    };
    let server = Server::answering(settings(), Router::new().route("/", get(hang))).await;
    let client = server.http2().await;
    let mut asked = JoinSet::new();
    for _ in 0..ALL {
        let mut client = client.0.clone();
        asked.spawn(async move {
            let request = Request::builder().uri("http://test/").body(Body::empty());
            client.send_request(request.expect("a request")).await.expect("an answer")
        });
    }
    let open = || OPEN.load(Ordering::Relaxed);
    wait_for("as many as may be", PATIENCE, async || open() >= 128).await;
    // Another connection's request is answered meanwhile: time enough for more to be let in.
    server.http1().await.ask_for("/elsewhere").await;
    assert_eq!(open(), 128);
    go_on.add_permits(ALL);
    assert_eq!(asked.join_all().await.len(), ALL);
}
