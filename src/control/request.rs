//! What an image is told to do over the control socket: `POST /v1/images/NAME/VERB`, and the two kinds of
//! answer: one JSON object, or one per line for as long as the work takes.
//!
//! # Invariants
//! A request is answered exactly once: one dropped unanswered is told so. Work whose caller has hung up
//! finds out by [`Lines::is_heard`] and stops.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, body::Bytes};
use hyper::body::Frame;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::model::Failure;

/// Lines on their way to a client at most. The last place is kept for the last line.
const LINES_MAX: usize = 16;

/// What an image is told to do.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path below the mount point.
    pub image: PathBuf,
    /// The last part of the resource: `warm`.
    pub verb: String,
    /// The JSON that came with it; an empty object where none did.
    pub body: Value,
}

/// The way to answer a request, from any thread.
pub struct Reply {
    answer: Option<oneshot::Sender<Answer>>,
}

pub(super) enum Answer {
    Failed(StatusCode, String),
    Done(Value),
    Lines(mpsc::Receiver<Bytes>),
}

/// An answer under way: one JSON object per line.
pub struct Lines {
    lines: mpsc::Sender<Bytes>,
}

impl Reply {
    pub(super) fn new() -> (Reply, oneshot::Receiver<Answer>) {
        let (answer, answered) = oneshot::channel();
        let reply = Reply {
            answer: Some(answer),
        };
        (reply, answered)
    }

    /// It is done; this came of it.
    pub fn done(self, value: &impl Serialize) {
        self.send(Answer::Done(to_json(value)));
    }

    /// It is not done; `error` is one sentence.
    pub fn fail(self, status: StatusCode, error: impl Into<String>) {
        self.send(Answer::Failed(status, error.into()));
    }

    /// It is begun, and will be told of line by line.
    pub fn lines(self) -> Lines {
        let (lines, told) = mpsc::channel(LINES_MAX);
        self.send(Answer::Lines(told));
        Lines { lines }
    }

    fn send(mut self, answer: Answer) {
        if let Some(sender) = self.answer.take() {
            let _ = sender.send(answer); // a caller that hung up needs none
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(sender) = self.answer.take() {
            let lost = "the daemon dropped the request; try again".to_owned();
            let _ = sender.send(Answer::Failed(StatusCode::INTERNAL_SERVER_ERROR, lost));
        }
    }
}

impl Lines {
    /// Tells how far the work is; left out where the client is slow to listen.
    pub fn tell(&self, line: &impl Serialize) {
        if self.lines.capacity() > 1 {
            let _ = self.lines.try_send(to_line(line));
        }
    }

    /// Tells what came of it.
    pub fn end(self, line: &impl Serialize) {
        let _ = self.lines.try_send(to_line(line));
    }

    /// False once the client has hung up.
    pub fn is_heard(&self) -> bool {
        !self.lines.is_closed()
    }
}

impl Answer {
    pub(super) fn into_response(self) -> Response {
        match self {
            Answer::Failed(status, error) => (status, Json(Failure { error })).into_response(),
            Answer::Done(value) => Json(value).into_response(),
            Answer::Lines(lines) => {
                let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
                (kind, Body::new(LinesBody(lines))).into_response()
            }
        }
    }
}

struct LinesBody(mpsc::Receiver<Bytes>);

impl hyper::body::Body for LinesBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(context)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

fn to_json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("numbers and texts become JSON")
}

fn to_line(value: &impl Serialize) -> Bytes {
    let mut text = to_json(value).to_string();
    text.push('\n');
    Bytes::from(text)
}
