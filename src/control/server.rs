//! The daemon's side of the control socket: a thread with a small runtime that sleeps until asked.
//!
//! The socket itself is made, and taken away, by whoever keeps the mount: it outlives the servers.

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use axum::extract::{Path as UrlPath, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::sync::oneshot;

use super::Source;
use super::metrics::render;
use super::model::{Failure, UpgradeRequest, Version};
use super::request::{Reply, Request};

/// A control socket being served. Dropping it stops the service.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Answers who comes to `listener`, which does not block, from `source`, in a thread of its own.
    pub fn start(listener: UnixListener, source: Arc<dyn Source>) -> io::Result<Server> {
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                if let Err(error) = serve(listener, source, stopped) {
                    log::error!("the control socket is not served any more: {error}");
                }
            })?;
        Ok(Server {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there was already logged
        }
    }
}

/// Serves until `stopped` fires or its sender is gone. Open connections are not waited for.
fn serve(
    listener: UnixListener,
    source: Arc<dyn Source>,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let listener = tokio::net::UnixListener::from_std(listener)?;
        tokio::select! {
            result = async { axum::serve(listener, router(source)).await } => result,
            _ = stopped => Ok(()),
        }
    })
}

fn router(source: Arc<dyn Source>) -> Router {
    Router::new()
        .route("/v1/version", get(|| async { Json(Version::own()) }))
        .route("/v1/status", get(status))
        .route("/v1/upgrade", get(upgraded).post(upgrade))
        .route("/metrics", get(metrics))
        .route("/v1/images/{*name}", get(image).post(act))
        .fallback(|| async { failure(StatusCode::NOT_FOUND, "there is no such resource".into()) })
        .with_state(source)
}

async fn status(State(source): State<Arc<dyn Source>>) -> Response {
    Json(source.status()).into_response()
}

/// What came of the last upgrade; null before the first.
async fn upgraded(State(source): State<Arc<dyn Source>>) -> Response {
    Json(source.upgraded()).into_response()
}

/// Answers once the new program is found good and the hand-over begins.
async fn upgrade(
    State(source): State<Arc<dyn Source>>,
    Json(wanted): Json<UpgradeRequest>,
) -> Response {
    let asked = tokio::task::spawn_blocking(move || source.upgrade(&wanted.program)).await;
    match asked {
        Ok(Ok(())) => StatusCode::ACCEPTED.into_response(),
        Ok(Err(why)) => failure(StatusCode::CONFLICT, why),
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// Prometheus' text.
pub(super) async fn metrics(State(source): State<Arc<dyn Source>>) -> Response {
    let kind = [(header::CONTENT_TYPE, render::CONTENT_TYPE)];
    (kind, render::render(source.facts())).into_response()
}

async fn image(State(source): State<Arc<dyn Source>>, UrlPath(name): UrlPath<String>) -> Response {
    match source.status().image(&name) {
        Some(image) => Json(image).into_response(),
        None => failure(
            StatusCode::NOT_FOUND,
            format!("{name} is not in use and nothing of it is cached"),
        ),
    }
}

/// `POST /v1/images/NAME/VERB`; the body is JSON or nothing.
async fn act(
    State(source): State<Arc<dyn Source>>,
    UrlPath(resource): UrlPath<String>,
    body: axum::body::Bytes,
) -> Response {
    let Some((image, verb)) = resource.rsplit_once('/') else {
        return failure(StatusCode::NOT_FOUND, "there is no such resource".into());
    };
    let body = match body.is_empty() {
        true => Ok(serde_json::Value::Object(serde_json::Map::new())),
        false => serde_json::from_slice(&body),
    };
    let body = match body {
        Ok(body) => body,
        Err(error) => {
            let error = format!("the body of {verb} is not JSON: {error}");
            return failure(StatusCode::BAD_REQUEST, error);
        }
    };
    let request = Request {
        image: image.into(),
        verb: verb.into(),
        body,
    };
    let (reply, answered) = Reply::new();
    source.act(request, reply);
    match answered.await {
        Ok(answer) => answer.into_response(),
        Err(_) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the daemon dropped the request; try again".into(),
        ),
    }
}

fn failure(status: StatusCode, error: String) -> Response {
    (status, Json(Failure { error })).into_response()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::control::client::{self, ClientError};
    use crate::control::metrics::Facts;
    use crate::control::model::MountStatus;
    use crate::handover::message::Outcome;
    use crate::image::status::ImageStatus;

    struct Fixed;

    impl Source for Fixed {
        fn status(&self) -> MountStatus {
            let image = ImageStatus {
                name: "dir/my disk%.img".into(),
                size_bytes: 7,
                ..ImageStatus::default()
            };
            MountStatus {
                mountpoint: "/srv/vms".into(),
                images: vec![image],
                ..MountStatus::default()
            }
        }

        fn upgrade(&self, program: &Path) -> Result<(), String> {
            Err(format!("no upgrade to {}", program.display()))
        }

        fn upgraded(&self) -> Option<Outcome> {
            None
        }

        fn facts(&self) -> Facts {
            Facts {
                status: self.status(),
                ..Facts::default()
            }
        }

        fn act(&self, request: Request, reply: Reply) {
            let said = json!({"image": request.image, "body": request.body});
            match request.verb.as_str() {
                "echo" => reply.done(&said),
                "count" => {
                    let lines = reply.lines();
                    std::thread::spawn(move || {
                        (0..3).for_each(|n| lines.tell(&json!({"n": n})));
                        lines.end(&said);
                    });
                }
                "drop" => drop(reply),
                _ => reply.fail(StatusCode::NOT_FOUND, "there is no such verb"),
            }
        }
    }

    const SOON: Duration = Duration::from_secs(5);

    fn start(path: &Path) -> Server {
        let listener = UnixListener::bind(path).expect("bound");
        listener.set_nonblocking(true).expect("a socket");
        Server::start(listener, Arc::new(Fixed)).expect("started")
    }

    #[test]
    fn the_client_gets_what_the_server_tells() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mount.sock");
        let server = start(&path);
        assert_eq!(
            client::status(&path, SOON).expect("answered"),
            Fixed.status()
        );
        let image = client::image(&path, "dir/my disk%.img", SOON).expect("answered");
        assert_eq!(image.map(|image| image.size_bytes), Some(7));
        assert_eq!(client::image(&path, "other", SOON).expect("answered"), None);
        drop(server);
        assert!(matches!(
            client::status(&path, SOON),
            Err(ClientError::NobodyListens(_))
        ));
    }

    #[test]
    fn an_image_is_told_what_to_do_and_answers_at_once_line_by_line_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mount.sock");
        let _server = start(&path);
        let act = |verb: &str| {
            let body = json!({"min": "2G"});
            let mut lines = Vec::new();
            let stop = AtomicBool::new(false);
            client::act(&path, "dir/my disk%.img", verb, &body, &stop, |line| {
                lines.push(line);
            })
            .map(|()| lines)
        };
        let said = json!({"image": "dir/my disk%.img", "body": {"min": "2G"}});
        assert_eq!(act("echo").expect("answered"), vec![said.clone()]);
        let lines = act("count").expect("answered");
        let numbers = [json!({"n": 0}), json!({"n": 1}), json!({"n": 2}), said];
        assert_eq!(lines, numbers);
        for (verb, words) in [("drop", "dropped the request"), ("fly", "no such verb")] {
            let error = act(verb).expect_err("refused").to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mount.sock");
        let _silent = UnixListener::bind(&path).expect("bound");
        let answer = client::status(&path, Duration::from_millis(100));
        assert!(matches!(answer, Err(ClientError::Deadline(_))));
    }
}
