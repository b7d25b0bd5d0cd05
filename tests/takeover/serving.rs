//! What the daemon says of itself, asked straight at its control socket: a run asks some thousand times,
//! and a program started for each would be a load of its own.
//!
//! Touches the control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

/// No answer takes longer; the socket is open while nobody serves.
const DEADLINE: Duration = Duration::from_secs(30);

/// The control socket of one mount.
pub struct Serving {
    socket: PathBuf,
}

/// Who serves, and what was handed over so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub pid: i32,
    pub restarts: u64,
    pub resent: u64,
}

impl Serving {
    pub fn of(mountpoint: &Path) -> Result<Serving, String> {
        let socket = flashside::config::socket::path_for(mountpoint);
        let socket = socket.map_err(|error| error.to_string())?;
        Ok(Serving { socket })
    }

    /// The whole status.
    pub fn status(&self) -> io::Result<Value> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: mount\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        if !head.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(format!("{head} {body}")));
        }
        serde_json::from_str(body).map_err(io::Error::other)
    }

    /// `None` while nobody answers: a server that is killed drops its connections.
    pub fn state(&self) -> Option<State> {
        let status = self.status().ok()?;
        let number = |name: &str| status[name].as_u64();
        Some(State {
            pid: i32::try_from(number("serving_pid")?).ok()?,
            restarts: number("restarts")?,
            resent: number("resent_requests")?,
        })
    }

    /// The handles on an image, by plane.
    pub fn planes(&self, image: &str) -> Value {
        let status = self.status().unwrap_or_default();
        let images = status["images"].as_array().cloned().unwrap_or_default();
        let found = images.into_iter().find(|entry| entry["name"] == image);
        found.map_or(Value::Null, |mut entry| entry["planes"].take())
    }
}
