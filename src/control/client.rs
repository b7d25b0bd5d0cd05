//! The command line's side of the control socket: one request, one answer, one deadline; or an answer
//! line by line, where each line has its deadline and the caller may stop listening.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;

use super::model::{Failure, MountStatus};
use crate::handover::message::Outcome;
use crate::image::status::ImageStatus;

/// An answer longer than this is refused; some 100,000 images fit.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The first line of an answer waits for the store, whose deadline is 10 min unless configured.
const FIRST_LINE_DEADLINE: Duration = Duration::from_secs(3600);
/// Between two lines: the daemon tells how far it is several times a second.
const LINE_DEADLINE: Duration = Duration::from_secs(30);
/// A new program is found good or bad within this.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(40);
/// How often a caller who wants to stop is looked for.
const STOP_INTERVAL: Duration = Duration::from_millis(50);
/// How long a daemon that drops connections is given to end.
const ENDING_TRIES: usize = 20;
const ENDING_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no daemon listens at {}", .0.display())]
    NobodyListens(PathBuf),
    #[error("the daemon did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("cannot talk to the daemon at {}: {error}", path.display())]
    Connection { path: PathBuf, error: io::Error },
    #[error("the daemon answered {status}: {message}")]
    Refused { status: StatusCode, message: String },
    #[error("{0}")]
    NotDone(String),
    #[error("interrupted")]
    Stopped,
    #[error("the daemon's answer is not understood: {0}; is it of another version?")]
    Answer(String),
}

/// The state of the mount whose control socket is `socket`.
pub fn status(socket: &Path, deadline: Duration) -> Result<MountStatus, ClientError> {
    let (status, body) = get(socket, "/v1/status", deadline)?;
    match status {
        StatusCode::OK => parse(&body),
        _ => Err(refused(status, &body)),
    }
}

/// The image at this path below the mount point; `None` where the daemon does not know it.
pub fn image(
    socket: &Path,
    name: &str,
    deadline: Duration,
) -> Result<Option<ImageStatus>, ClientError> {
    let resource = format!("/v1/images/{}", percent_encoded(name));
    let (status, body) = get(socket, &resource, deadline)?;
    match status {
        StatusCode::OK => parse(&body).map(Some),
        StatusCode::NOT_FOUND => Ok(None),
        _ => Err(refused(status, &body)),
    }
}

/// Has the mount handed over to `program`; returns once that has begun, which may end the process that
/// was about to say so.
pub fn upgrade(socket: &Path, program: &Path) -> Result<(), ClientError> {
    let body = serde_json::json!({ "program": program }).to_string();
    let asking = async {
        let asked = match send(socket, Method::POST, "/v1/upgrade", body).await {
            Ok(response) => whole(response).await,
            Err(error) => Err(error),
        };
        let (status, body) = match asked {
            Err(ClientError::Connection { .. } | ClientError::Answer(_)) => return Ok(()),
            asked => asked?,
        };
        match status {
            StatusCode::ACCEPTED => Ok(()),
            _ => Err(ClientError::NotDone(message_of(status, &body))),
        }
    };
    runtime(socket)?.block_on(async {
        match tokio::time::timeout(UPGRADE_DEADLINE, asking).await {
            Ok(asked) => asked,
            Err(_) => Err(ClientError::Deadline(UPGRADE_DEADLINE)),
        }
    })
}

/// What came of the last upgrade of the mount.
pub fn upgraded(socket: &Path, deadline: Duration) -> Result<Option<Outcome>, ClientError> {
    let (status, body) = get(socket, "/v1/upgrade", deadline)?;
    match status {
        StatusCode::OK => parse(&body),
        _ => Err(refused(status, &body)),
    }
}

/// Tells the image at this path below the mount point to do something, and gives every JSON object of the
/// answer to `line` as it comes. Hangs up when `stop` is set: the daemon then stops as well.
pub fn act(
    socket: &Path,
    name: &str,
    verb: &str,
    body: &Value,
    stop: &AtomicBool,
    line: impl FnMut(Value),
) -> Result<(), ClientError> {
    let resource = format!("/v1/images/{}/{verb}", percent_encoded(name));
    let acting = async {
        let response = send(socket, Method::POST, &resource, body.to_string());
        let response = until(response, FIRST_LINE_DEADLINE, stop).await??;
        if response.status() != StatusCode::OK {
            let (status, body) = whole(response).await?;
            return Err(ClientError::NotDone(message_of(status, &body)));
        }
        each_line(response.into_body(), stop, line).await
    };
    runtime(socket)?.block_on(acting)
}

async fn each_line(
    mut body: Incoming,
    stop: &AtomicBool,
    mut line: impl FnMut(Value),
) -> Result<(), ClientError> {
    let broken = |error: hyper::Error| ClientError::Answer(error.to_string());
    let mut text: Vec<u8> = Vec::new();
    while let Some(frame) = until(body.frame(), LINE_DEADLINE, stop).await? {
        let frame = frame.map_err(broken)?;
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            line(parse(&text[..end])?);
            text.drain(..=end);
        }
        if text.len() > ANSWER_BYTES_MAX {
            return Err(ClientError::Answer("a line does not end".into()));
        }
    }
    match text.is_empty() {
        true => Ok(()),
        false => parse(&text).map(line),
    }
}

/// Waits for `coming`, at most `deadline` and only until `stop` is set.
async fn until<T>(
    coming: impl Future<Output = T>,
    deadline: Duration,
    stop: &AtomicBool,
) -> Result<T, ClientError> {
    let mut coming = std::pin::pin!(coming);
    let begun = tokio::time::Instant::now();
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(ClientError::Stopped);
        }
        match tokio::time::timeout(STOP_INTERVAL, &mut coming).await {
            Ok(came) => return Ok(came),
            Err(_) if begun.elapsed() >= deadline => return Err(ClientError::Deadline(deadline)),
            Err(_) => {}
        }
    }
}

fn get(
    socket: &Path,
    resource: &str,
    deadline: Duration,
) -> Result<(StatusCode, Bytes), ClientError> {
    runtime(socket)?.block_on(async {
        match tokio::time::timeout(deadline, exchange_or_nobody(socket, resource)).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Deadline(deadline)),
        }
    })
}

/// One exchange. A daemon that is just ending may still take the connection and then drops it: asked
/// again, nobody is there.
async fn exchange_or_nobody(
    socket: &Path,
    resource: &str,
) -> Result<(StatusCode, Bytes), ClientError> {
    let dropped = match exchange(socket, resource).await {
        Err(error @ ClientError::Connection { .. }) => error,
        other => return other,
    };
    for _ in 0..ENDING_TRIES {
        tokio::time::sleep(ENDING_PAUSE).await;
        match exchange(socket, resource).await {
            Err(ClientError::Connection { .. }) => {}
            other => return other,
        }
    }
    Err(dropped)
}

async fn exchange(socket: &Path, resource: &str) -> Result<(StatusCode, Bytes), ClientError> {
    whole(send(socket, Method::GET, resource, String::new()).await?).await
}

fn runtime(socket: &Path) -> Result<tokio::runtime::Runtime, ClientError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ClientError::Connection {
            path: socket.to_path_buf(),
            error,
        })
}

/// Sends a request; the answer's head.
async fn send(
    socket: &Path,
    method: Method,
    resource: &str,
    body: String,
) -> Result<Response<Incoming>, ClientError> {
    let failed = |error: hyper::Error| ClientError::Connection {
        path: socket.to_path_buf(),
        error: io::Error::other(error),
    };
    let stream = connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(resource)
        .header("host", "flashside")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| ClientError::Answer(error.to_string()))?;
    sender.send_request(request).await.map_err(failed)
}

/// The whole of an answer.
async fn whole(response: Response<Incoming>) -> Result<(StatusCode, Bytes), ClientError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
    let body = body
        .await
        .map_err(|error| ClientError::Answer(error.to_string()))?;
    Ok((status, body.to_bytes()))
}

async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    let path = socket.to_path_buf();
    UnixStream::connect(socket)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NobodyListens(path)
            }
            _ => ClientError::Connection { path, error },
        })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Answer(error.to_string()))
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let message = message_of(status, body);
    ClientError::Refused { status, message }
}

/// What the daemon says of a request it did not do.
fn message_of(status: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<Failure>(body) {
        Ok(failure) => failure.error,
        Err(_) if body.is_empty() => status.to_string(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    }
}

/// For a URL path: everything but letters, digits, `-._~` and `/` becomes `%XX`.
fn percent_encoded(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' | b'/' => encoded.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
