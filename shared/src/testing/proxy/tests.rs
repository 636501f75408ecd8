use std::future::Future;
use std::io::ErrorKind;

use tokio::time::{Instant, timeout};

use super::*;

const SOON: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(10);

struct Echo {
    proxy: TcpProxy,
    _server: AbortOnDropHandle<()>,
}

/// An echo server that goes on sending after its client's half is closed, behind a proxy.
async fn echo() -> Echo {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let proxy = TcpProxy::start(target).await.unwrap();
    Echo { proxy, _server: AbortOnDropHandle::new(server) }
}

async fn connect(echo: &Echo) -> TcpStream {
    TcpStream::connect(echo.proxy.addr()).await.unwrap()
}

async fn says_back(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    hears(stream, text).await;
}

async fn hears(stream: &mut TcpStream, text: &[u8]) {
    let mut heard = vec![0; text.len()];
    within(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(heard, text);
}

async fn within<F: Future>(future: F) -> F::Output {
    timeout(LONG, future).await.expect("took too long")
}

#[tokio::test]
async fn many_connections_pass_through_untouched() {
    let echo = echo().await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(connect(&echo).await);
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        says_back(stream, number.to_string().repeat(1_000).as_bytes()).await;
    }
}

#[tokio::test]
async fn refused_means_connection_refused_and_restore_opens_the_same_port() {
    let echo = echo().await;
    let mut before = connect(&echo).await;
    says_back(&mut before, b"before").await;
    echo.proxy.set(Traffic::Refuse);
    let refused = async || {
        TcpStream::connect(echo.proxy.addr())
            .await
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    crate::testing::wait_for("refusal", LONG, refused).await;
    says_back(&mut before, b"still here").await;
    echo.proxy.restore();
    let open = async || TcpStream::connect(echo.proxy.addr()).await.is_ok();
    crate::testing::wait_for("an open port", LONG, open).await;
    says_back(&mut connect(&echo).await, b"after").await;
}

#[tokio::test]
async fn a_cut_resets_what_exists_and_spares_what_comes() {
    let echo = echo().await;
    let mut old = connect(&echo).await;
    says_back(&mut old, b"old").await;
    echo.proxy.cut();
    let error = within(old.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    says_back(&mut connect(&echo).await, b"new").await;
}

#[tokio::test]
async fn a_pause_holds_everything_and_loses_nothing() {
    let echo = echo().await;
    let mut old = connect(&echo).await;
    says_back(&mut old, b"old").await;
    echo.proxy.set(Traffic::Pause);
    let mut new = connect(&echo).await;
    old.write_all(b"held").await.unwrap();
    new.write_all(b"held").await.unwrap();
    assert!(timeout(SOON, old.read_u8()).await.is_err());
    assert!(timeout(SOON, new.read_u8()).await.is_err());
    echo.proxy.restore();
    hears(&mut old, b"held").await;
    hears(&mut new, b"held").await;
}

#[tokio::test]
async fn a_delay_waits_in_each_direction() {
    let echo = echo().await;
    let mut stream = connect(&echo).await;
    echo.proxy.set(Traffic::Delay(SOON));
    let start = Instant::now();
    says_back(&mut stream, b"slow").await;
    assert!(start.elapsed() >= SOON * 2);
}

#[tokio::test]
async fn a_trickle_lets_so_many_bytes_pass_a_second() {
    let echo = echo().await;
    let mut stream = connect(&echo).await;
    echo.proxy.set(Traffic::Trickle(1_000));
    let start = Instant::now();
    says_back(&mut stream, &[7; 500]).await;
    assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
}

#[tokio::test]
async fn half_closed_the_client_reads_the_end_and_may_still_write() {
    let echo = echo().await;
    let mut stream = connect(&echo).await;
    says_back(&mut stream, b"both").await;
    echo.proxy.half_close();
    assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap(), 0);
    stream.write_all(b"one way").await.unwrap();
    says_back(&mut connect(&echo).await, b"new ones are whole").await;
}

#[tokio::test]
async fn a_client_that_closes_its_half_still_hears_the_rest() {
    let echo = echo().await;
    let mut stream = connect(&echo).await;
    stream.write_all(b"last words").await.unwrap();
    stream.shutdown().await.unwrap();
    hears(&mut stream, b"last words").await;
    assert_eq!(within(stream.read(&mut [0; 1])).await.unwrap(), 0);
}
