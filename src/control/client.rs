//! The command line's side of the control socket: one request, one answer, one deadline.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::model::{Failure, MountStatus};
use crate::image::status::ImageStatus;

/// An answer longer than this is refused; some 100,000 images fit.
const ANSWER_BYTES_MAX: usize = 64 << 20;

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

fn get(
    socket: &Path,
    resource: &str,
    deadline: Duration,
) -> Result<(StatusCode, Bytes), ClientError> {
    let failed = |error| ClientError::Connection {
        path: socket.to_path_buf(),
        error,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    runtime.block_on(async {
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
    let failed = |error: hyper::Error| ClientError::Connection {
        path: socket.to_path_buf(),
        error: io::Error::other(error),
    };
    let stream = connect(socket).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(connection);
    let request = Request::get(resource)
        .header("host", "flashside")
        .body(Empty::<Bytes>::new())
        .map_err(|error| ClientError::Answer(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(failed)?;
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
    let message = match serde_json::from_slice::<Failure>(body) {
        Ok(failure) => failure.error,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    ClientError::Refused { status, message }
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
