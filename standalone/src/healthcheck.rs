//! `pulsestream healthcheck`: asks `/readyz` without a client library, so that an image needs no curl.

use std::time::Duration;

use pulsestream_shared::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) async fn run(url: Option<String>, config: Config) -> Result<(), String> {
    let address = match url {
        Some(url) => address_of(&url)?,
        None => format!("{}:{}", reachable(&config.server.host), config.server.port),
    };
    let answer = timeout(PATIENCE, ask(&address))
        .await
        .map_err(|_| format!("{address} did not answer within {PATIENCE:?}"))?
        .map_err(|error| format!("{address}: {error}"))?;
    match answer.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(format!(
            "{address} is not ready: {}",
            answer.rsplit("\r\n").next().unwrap_or_default()
        )),
    }
}

async fn ask(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(64 * 1_024).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// `http://host:port/…`.
fn address_of(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url}: give an http:// URL"))?;
    let authority = rest.split('/').next().unwrap_or_default();
    Ok(if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") })
}

/// An address to listen on everywhere is no address to connect to.
fn reachable(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        "::" | "[::]" => "[::1]",
        host => host,
    }
}
