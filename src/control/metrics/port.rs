//! `/metrics` on a TCP port of the loopback interface: read-only, nothing else is served there.
//!
//! May touch: the one address that is configured, with a thread of its own.
//!
//! # Invariants
//! The mount never depends on it: an address that cannot be had is one line in the log. Whoever connects
//! gets one answer; [`CONNECTIONS_MAX`] at a time, [`CONNECTION_TIME_MAX`] each, so that no local user can
//! use the daemon up.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};

use crate::control::Source;
use crate::control::server::metrics;

const CONNECTIONS_MAX: usize = 8;
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// A process that served before may still be ending: it is waited for so long, [`TRIES`] times.
const PAUSE: Duration = Duration::from_millis(250);
const TRIES: usize = 20;

/// A port being served. Dropping it ends the service.
pub struct Port {
    _stop: oneshot::Sender<()>,
}

impl Port {
    /// Serves the metrics of `source` on `place`, in a thread of its own. Never fails: what goes wrong is
    /// in the log.
    pub fn start(place: SocketAddr, source: Arc<dyn Source>) -> Port {
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            if let Err(error) = serve(place, source, stopped) {
                log::warn!(
                    "no metrics on {place}: {error}; the control socket has them, free the address or change \
                     metrics-listen and mount again"
                );
            }
        };
        let thread = thread::Builder::new().name("metrics".into());
        if let Err(error) = thread.spawn(run) {
            log::warn!("no metrics on {place}: {error}; the control socket has them");
        }
        Port { _stop: stop }
    }
}

/// Serves until `stopped` fires or its sender is gone.
fn serve(
    place: SocketAddr,
    source: Arc<dyn Source>,
    stopped: oneshot::Receiver<()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        tokio::select! {
            result = listen(place, source) => result,
            _ = stopped => Ok(()),
        }
    })
}

async fn listen(place: SocketAddr, source: Arc<dyn Source>) -> io::Result<()> {
    let listener = bind(place).await?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .with_state(source);
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = free.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    answer(stream, router).await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(PAUSE).await, // gone again, or no descriptor just now
        }
    }
}

/// Standard sockets take an address that a process has just left (SO_REUSEADDR).
async fn bind(place: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let mut tries = 1;
    let listener = loop {
        match TcpListener::bind(place) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(PAUSE).await;
            }
            bound => break bound?,
        }
    };
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

async fn answer(stream: TcpStream, router: Router) {
    let service = TowerToHyperService::new(router);
    let mut server = http1::Builder::new();
    let served = server
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Whoever hangs up or is too slow gets nothing, and nobody has to know.
    let _ = tokio::time::timeout(CONNECTION_TIME_MAX, served).await;
}
