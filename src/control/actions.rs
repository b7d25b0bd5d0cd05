//! What images can be told to do: finds the image by its path, as the daemon itself, and starts the work
//! on a thread of its own. Waits for the store on the executor only.
//!
//! # Invariants
//! - [`JOBS_MAX`] pieces of work at once; past it callers are told to try again.
//! - Work ends when its caller hangs up or the mount ends, whichever is first.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::model::{Evicted, SetRequest, WarmRequest};
use super::request::{Reply, Request};
use crate::config::{Config, Rules};
use crate::image::Images;
use crate::image::immutable::{Immutability, NotSet};
use crate::store::executor::Executor;
use crate::store::walk::lookup_path;
use crate::store::{Attr, Caller, Error, Kind, Node, OpenMode, Store};

/// Pieces of work under way at most.
const JOBS_MAX: usize = 16;

/// The daemon's side of `POST /v1/images/NAME/VERB`.
#[derive(Clone)]
pub struct Actions {
    store: Arc<dyn Store>,
    executor: Arc<Executor>,
    images: Arc<Images>,
    who: Caller,
    has_cache: bool,
    rules: Rules,
    read_only: bool,
    jobs: Arc<AtomicUsize>,
}

/// What an image is told, with what came along.
enum Verb {
    Warm(WarmRequest),
    Evict,
    Set(SetRequest),
}

/// An image that was found.
struct Found {
    name: String,
    node: Node,
    attr: Attr,
}

/// A piece of work under way; ends when dropped.
struct Job(Arc<AtomicUsize>);

impl Drop for Job {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Verb {
    fn of(request: &Request) -> Result<Verb, (StatusCode, String)> {
        match request.verb.as_str() {
            "warm" => Ok(Verb::Warm(body(&request.body)?)),
            "evict" => Ok(Verb::Evict),
            "set" => Ok(Verb::Set(body(&request.body)?)),
            other => Err((
                StatusCode::NOT_FOUND,
                format!("an image cannot be told to {other}"),
            )),
        }
    }
}

fn body<T: DeserializeOwned>(body: &Value) -> Result<T, (StatusCode, String)> {
    serde_json::from_value(body.clone())
        .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))
}

impl Actions {
    pub fn new(
        config: &Config,
        store: Arc<dyn Store>,
        executor: Arc<Executor>,
        images: Arc<Images>,
    ) -> Actions {
        Actions {
            store,
            executor,
            images,
            who: Caller::daemon(config.store_user),
            has_cache: !config.caches.is_empty(),
            rules: config.rules.clone(),
            read_only: config.read_only,
            jobs: Arc::default(),
        }
    }

    /// Does what is asked, or says why not.
    pub fn act(&self, request: Request, reply: Reply) {
        let verb = match Verb::of(&request) {
            Ok(verb) => verb,
            Err((status, error)) => return reply.fail(status, error),
        };
        if !self.has_cache && !matches!(verb, Verb::Set(_)) {
            let error = "this mount has no cache: mount it with --cache";
            return reply.fail(StatusCode::CONFLICT, error);
        }
        let this = self.clone();
        self.find(request, reply, move |found, reply| match verb {
            Verb::Warm(wanted) => this.warm(found, wanted, reply),
            Verb::Evict => this.evict(found, reply),
            Verb::Set(wanted) => this.set(found, wanted, reply),
        });
    }

    /// Looks the image up in the store and hands it to `then`, on a thread that must not wait.
    fn find(
        &self,
        request: Request,
        reply: Reply,
        then: impl FnOnce(Found, Reply) + Send + 'static,
    ) {
        let (store, who, image) = (self.store.clone(), self.who.clone(), request.image);
        let name = image.to_string_lossy().into_owned();
        let look = move || lookup_path(store.as_ref(), &who, &image);
        self.executor
            .submit("lookup", look, move |looked| match looked {
                Ok((node, attr)) if attr.kind == Kind::File => {
                    then(Found { name, node, attr }, reply);
                }
                Ok((_, attr)) => reply.fail(StatusCode::BAD_REQUEST, no_file(&name, attr.kind)),
                Err(error) => refuse(reply, &name, &error),
            });
    }

    /// Opens the image as any open does (rule 7), then warms it.
    fn warm(self, found: Found, wanted: WarmRequest, reply: Reply) {
        let (store, who, node) = (self.store.clone(), self.who.clone(), found.node);
        let mode = OpenMode {
            read: true,
            write: false,
            sync: false,
        };
        let open = move || {
            let file = store.open(&who, &node, mode)?;
            let attr = file.attr()?;
            Ok((file, attr))
        };
        let executor = self.executor.clone();
        executor.submit("open", open, move |opened| match opened {
            Ok((file, attr)) => self.start("warm", reply, move |this, reply| {
                let image = match this.images.open_for_daemon(&found.name, file, &attr) {
                    Ok(image) => image,
                    Err(error) => return refuse(reply, &found.name, &error),
                };
                let lines = reply.lines();
                let bytes = wanted.from_bytes..wanted.to_bytes.unwrap_or(u64::MAX);
                let tell = |progress: &_| {
                    lines.tell(progress);
                    lines.is_heard()
                };
                let warmed = image.warm(bytes, tell);
                drop(image);
                lines.end(&warmed);
            }),
            Err(error) => refuse(reply, &found.name, &error),
        });
    }

    fn evict(self, found: Found, reply: Reply) {
        self.start("evict", reply, move |this, reply| {
            let (evicted_bytes, left_bytes) = this.images.evict(found.attr.id);
            reply.done(&Evicted {
                evicted_bytes,
                left_bytes,
            });
        });
    }

    fn set(self, found: Found, wanted: SetRequest, reply: Reply) {
        let name = found.name.clone();
        let executor = self.executor.clone();
        let set = move || {
            let immutability = Immutability {
                store: self.store.as_ref(),
                own: self.who.clone(),
                rules: &self.rules,
                read_only: self.read_only,
            };
            let path = Path::new(&found.name);
            Ok(match wanted.immutable {
                Some(immutable) => {
                    immutability.set(&self.images, found.attr.id, path, Some(immutable))
                }
                None => Ok(()),
            })
        };
        executor.submit("set", set, move |done| match done {
            Ok(Ok(())) => reply.done(&Value::Object(Map::new())),
            Ok(Err(NotSet::Store(error))) => refuse(reply, &name, &error),
            Ok(Err(why)) => reply.fail(StatusCode::CONFLICT, why.to_string()),
            Err(error) => refuse(reply, &name, &error),
        });
    }

    /// Runs `work` on a thread of its own, if not too much is under way.
    fn start(
        self,
        name: &'static str,
        reply: Reply,
        work: impl FnOnce(&Actions, Reply) + Send + 'static,
    ) {
        let under_way = self.jobs.fetch_add(1, Ordering::AcqRel);
        let job = Job(self.jobs.clone());
        if under_way >= JOBS_MAX {
            let error = format!("{JOBS_MAX} images are being worked on already; try again later");
            return reply.fail(StatusCode::SERVICE_UNAVAILABLE, error);
        }
        let begun = thread::Builder::new().name(name.into()).spawn(move || {
            work(&self, reply);
            drop(job);
        });
        if let Err(error) = begun {
            log::warn!("cannot start a {name} thread: {error}");
        }
    }
}

/// What is at a path that leads to no image.
fn no_file(name: &str, kind: Kind) -> String {
    match kind {
        Kind::Dir => format!("{name} is a directory: name the images in it"),
        Kind::Symlink => format!("{name} is a symbolic link: name the image it leads to"),
        _ => format!("{name} is no image"),
    }
}

fn refuse(reply: Reply, name: &str, error: &Error) {
    let (status, error) = match error.errno() {
        libc::ENOENT | libc::ENOTDIR => (StatusCode::NOT_FOUND, format!("no such image: {name}")),
        _ => (
            StatusCode::BAD_GATEWAY,
            format!("the store: {name}: {error}"),
        ),
    };
    reply.fail(status, error);
}
