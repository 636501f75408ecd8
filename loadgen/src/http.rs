//! The leanest HTTP/1.1 client that keeps its promises: request bytes in, one answer out, keep-alive.
//!
//! It shares two cores with the system under test, so it copies and allocates as little as it can.
//! Deliberately absent: TLS, pipelining, redirects, pools. One request is in flight per connection; a
//! connection on which anything went wrong, or which was dropped in the middle of an exchange, must not
//! be used again.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

/// Longest answer we take, head and body, in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// How much of a refusal's body is kept, in bytes.
const EXCERPT_BYTES: usize = 300;
/// A connection idle for longer is looked at before it is used again.
const IDLE: Duration = Duration::from_secs(1);

/// Where to connect and what to put into `host`.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `host` or `host:port`, as it goes into the header.
    pub(crate) authority: String,
    /// The URL's path without a trailing slash; empty for a bare origin.
    pub(crate) path: String,
}

impl Origin {
    /// Takes an `http://` URL apart.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let url = Url::parse(text).with_context(|| format!("{text:?} is not a URL"))?;
        if url.scheme() != "http" {
            bail!("{text:?}: only http:// URLs, TLS ends at a proxy");
        }
        let host = url.host_str().with_context(|| format!("{text:?} names no host"))?;
        let port = url.port_or_known_default().unwrap_or(80);
        Ok(Self {
            // A connect wants an IPv6 address bare, the header wants it in brackets.
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port,
            authority: url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")),
            path: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Connects with Nagle's delay off.
    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// What the server said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `Retry-After` in its form of seconds; the date form is ignored.
    pub(crate) retry_after: Option<Duration>,
    /// `Idempotency-Replayed: true`.
    pub(crate) replayed: bool,
    /// The connection ends with this answer.
    pub(crate) close: bool,
    /// The start of the body; empty for a 2xx, which nobody reads.
    pub(crate) excerpt: String,
}

/// A connection that is opened when a request needs it, and kept for the next one.
#[derive(Debug)]
pub(crate) struct Line {
    origin: Origin,
    open: Option<Connection>,
}

impl Line {
    pub(crate) fn to(origin: Origin) -> Self {
        Self { origin, open: None }
    }

    /// Writes one request and reads its answer. The connection is put back only when it may be used again:
    /// on every other way out, a timeout included, it is dropped.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => Connection::open(&self.origin).await?,
        };
        let answer = open.exchange(request).await?;
        self.open = Some(open).filter(|_| !answer.close);
        Ok(answer)
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buf: Vec<u8>,
    used: Instant,
}

impl Connection {
    pub(crate) async fn open(origin: &Origin) -> io::Result<Self> {
        let stream = origin.connect().await?;
        Ok(Self { stream, buf: Vec::with_capacity(4096), used: Instant::now() })
    }

    /// The server closed it while it was idle. Looked up only after a second of idleness: under load the
    /// extra system call would cost more than the rare failure it saves.
    pub(crate) fn is_stale(&self) -> bool {
        let quiet = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.used.elapsed() > IDLE
            && !self.stream.try_read(&mut [0; 1]).is_err_and(|error| quiet(&error))
    }

    /// Writes one request and reads its answer. Not cancel safe: dropped in the middle, the connection
    /// is lost and the server may or may not have acted.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.buf.clear();
        self.stream.write_all(request).await?;
        loop {
            match parse(&self.buf)? {
                Parsed::Complete(answer, used_bytes) => {
                    self.used = Instant::now();
                    let close = answer.close || used_bytes != self.buf.len();
                    return Ok(Answer { close, ..answer });
                }
                Parsed::UntilClose(answer, body_start) => {
                    while self.read_more().await? {}
                    let body = self.buf.get(body_start..).unwrap_or_default();
                    return Ok(Answer { close: true, ..with_excerpt(answer, body) });
                }
                Parsed::Partial => {
                    if !self.read_more().await? {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }

    /// False at the end of the stream.
    async fn read_more(&mut self) -> io::Result<bool> {
        if self.buf.len() > MAX_ANSWER_BYTES {
            return Err(invalid("answer too long"));
        }
        self.buf.reserve(1024);
        Ok(self.stream.read_buf(&mut self.buf).await? > 0)
    }
}

enum Parsed {
    /// The answer and how many bytes it took.
    Complete(Answer, usize),
    /// Neither length nor chunks: the body begins here and ends with the connection.
    UntilClose(Answer, usize),
    Partial,
}

enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

/// Parses from the start each time it is called: answers are short and almost always come whole.
fn parse(bytes: &[u8]) -> io::Result<Parsed> {
    let mut headers = [httparse::EMPTY_HEADER; 48];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = head.parse(bytes).map_err(invalid)? else {
        return Ok(Parsed::Partial);
    };
    let status = head.code.unwrap_or_default();
    let rest = bytes.get(head_bytes..).unwrap_or_default();
    if (100..200).contains(&status) {
        // An interim answer; the real one follows.
        return Ok(match parse(rest)? {
            Parsed::Complete(answer, used) => Parsed::Complete(answer, head_bytes + used),
            Parsed::UntilClose(answer, start) => Parsed::UntilClose(answer, head_bytes + start),
            Parsed::Partial => Parsed::Partial,
        });
    }
    let (answer, framing) = read_headers(status, head.version, head.headers)?;
    Ok(match framing {
        Framing::UntilClose => Parsed::UntilClose(answer, head_bytes),
        Framing::Length(length) => match rest.get(..length) {
            Some(body) => Parsed::Complete(with_excerpt(answer, body), head_bytes + length),
            None => Parsed::Partial,
        },
        Framing::Chunked => match join_chunks(rest)? {
            Some((body, used)) => Parsed::Complete(with_excerpt(answer, &body), head_bytes + used),
            None => Parsed::Partial,
        },
    })
}

fn read_headers(
    status: u16,
    version: Option<u8>,
    headers: &[httparse::Header<'_>],
) -> io::Result<(Answer, Framing)> {
    let mut answer = Answer { status, close: version == Some(0), ..Answer::default() };
    let mut framing =
        if matches!(status, 204 | 304) { Framing::Length(0) } else { Framing::UntilClose };
    for header in headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if is("content-length") {
            framing = Framing::Length(value.parse().map_err(invalid)?);
        } else if is("transfer-encoding") {
            framing = Framing::Chunked;
        } else if is("connection") {
            answer.close |= value.eq_ignore_ascii_case("close");
        } else if is("retry-after") {
            answer.retry_after = value.parse().ok().map(Duration::from_secs);
        } else if is("idempotency-replayed") {
            answer.replayed = value.eq_ignore_ascii_case("true");
        }
    }
    Ok((answer, framing))
}

/// The joined body and the bytes it took with its trailers; `None` while the end has not come.
fn join_chunks(bytes: &[u8]) -> io::Result<Option<(Vec<u8>, usize)>> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let size = httparse::parse_chunk_size(rest).map_err(|_| invalid("bad chunk size"))?;
        let httparse::Status::Complete((line_bytes, length)) = size else { return Ok(None) };
        let length = usize::try_from(length).map_err(invalid)?;
        if length > MAX_ANSWER_BYTES {
            return Err(invalid("chunk too long"));
        }
        at += line_bytes;
        if length == 0 {
            return Ok(trailers_end(bytes, at).map(|end| (body, end)));
        }
        let Some(chunk) = bytes.get(at..at + length) else { return Ok(None) };
        body.extend_from_slice(chunk);
        at += length + 2; // the chunk's own CR LF
    }
}

/// The place after the empty line that ends the trailers beginning at `at`.
fn trailers_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let rest = bytes.get(at..)?;
        let line_bytes = rest.windows(2).position(|pair| pair == b"\r\n")?;
        at += line_bytes + 2;
        if line_bytes == 0 {
            return Some(at);
        }
    }
}

fn with_excerpt(answer: Answer, body: &[u8]) -> Answer {
    if (200..300).contains(&answer.status) {
        return answer;
    }
    let start = body.get(..EXCERPT_BYTES).unwrap_or(body);
    Answer { excerpt: String::from_utf8_lossy(start).into_owned(), ..answer }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(bytes: &[u8]) -> (Answer, usize) {
        for cut in 0..bytes.len() {
            assert!(matches!(parse(&bytes[..cut]), Ok(Parsed::Partial)), "cut at {cut}");
        }
        match parse(bytes).unwrap() {
            Parsed::Complete(answer, used) => (answer, used),
            _ => panic!("not complete"),
        }
    }

    #[test]
    fn an_answer_with_a_length_is_complete_at_its_last_byte_and_not_before() {
        let bytes = b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: 4\r\n\r\nbusy";
        let (answer, used) = complete(bytes);
        assert_eq!(used, bytes.len());
        assert_eq!((answer.status, answer.excerpt.as_str()), (503, "busy"));
        assert_eq!(answer.retry_after, Some(Duration::from_secs(2)));
    }

    #[test]
    fn chunks_are_joined_and_their_trailers_skipped() {
        let bytes = b"HTTP/1.1 400 Bad\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
            3\r\nabc\r\n2;x=y\r\nde\r\n0\r\ntrailer: 1\r\n\r\n";
        let (answer, used) = complete(bytes);
        assert_eq!(used, bytes.len());
        assert_eq!(answer.excerpt, "abcde");
        assert!(answer.close);
    }

    #[test]
    fn an_interim_answer_is_not_the_answer() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\n\
            idempotency-replayed: true\r\ncontent-length: 2\r\n\r\n{}";
        let (answer, used) = complete(bytes);
        assert_eq!((answer.status, answer.replayed, used), (202, true, bytes.len()));
    }

    #[test]
    fn a_chunk_size_near_overflow_is_an_error_not_a_panic() {
        let bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nabc";
        assert!(parse(bytes).is_err());
    }

    #[test]
    fn the_origin_of_an_ipv6_url_has_brackets_only_in_the_header() {
        let origin = Origin::parse("http://[::1]:3000/api/").unwrap();
        assert_eq!((origin.host.as_str(), origin.port), ("::1", 3000));
        assert_eq!((origin.authority.as_str(), origin.path.as_str()), ("[::1]:3000", "/api"));
    }
}
