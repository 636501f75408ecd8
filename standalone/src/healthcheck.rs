//! `pulsestream healthcheck`: asks `/readyz` without a client library, so that an image needs no curl.

use std::time::Duration;

use pulsestream_shared::config::Config;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

mod unchecked;

const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) async fn run(url: Option<String>, config: Config) -> Result<(), String> {
    let whom = match url {
        Some(url) => Whom::of(&url)?,
        None => Whom {
            encrypted: config.server.is_encrypted(),
            address: format!("{}:{}", reachable(&config.server.host), config.server.port),
        },
    };
    let address = &whom.address;
    let answer = timeout(PATIENCE, whom.ask())
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

/// Who is asked.
struct Whom {
    encrypted: bool,
    /// Host and port.
    address: String,
}

impl Whom {
    /// `http://host:port/…` or `https://…`.
    fn of(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (encrypted, port) = match scheme {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return Err(format!("{url}: give an http:// or https:// URL")),
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let has_port = !authority.ends_with(']') && authority.contains(':');
        let address = if has_port { authority.to_owned() } else { format!("{authority}:{port}") };
        Ok(Self { encrypted, address })
    }

    async fn ask(&self) -> std::io::Result<String> {
        let stream = TcpStream::connect(&self.address).await?;
        if !self.encrypted {
            return ask(stream, &self.address).await;
        }
        let host = self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
        ask(unchecked::encrypt(host.trim_matches(['[', ']']), stream).await?, &self.address).await
    }
}

async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    address: &str,
) -> std::io::Result<String> {
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(64 * 1_024).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// An address to listen on everywhere is no address to connect to.
fn reachable(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        "::" | "[::]" => "[::1]",
        host => host,
    }
}
