//! What a keeper holds for its servers: the connection's descriptors, the ledger, the control socket, and
//! the open files that a server has left with it. It looks into none of them.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use super::server::Server;
use super::systemd::{self, Left};
use super::{ControlSocket, Error};
use crate::config::Config;
use crate::handover::link::DESCRIPTORS_MAX;
use crate::handover::{Ledger, Message, Negotiated};
use crate::mount::{self, Connection};

/// A mount, as it is handed from server to server.
pub struct Holdings {
    devices: Vec<OwnedFd>,
    ledger: Ledger,
    files: HashMap<u64, OwnedFd>,
    negotiated: Negotiated,
    listener: UnixListener,
    /// A server was given the mount before.
    served: bool,
    /// systemd has what another keeper needs.
    stored: bool,
    socket: ControlSocket,
}

impl Holdings {
    /// Makes the control socket and the mount. What fails leaves nothing behind.
    pub fn make(config: &Config) -> Result<Holdings, Error> {
        let socket = ControlSocket::make(&config.control_socket)?;
        let failed = |error| Error::Mount {
            mountpoint: config.mountpoint.clone(),
            error,
        };
        let ledger = Ledger::new().map_err(Error::Start)?;
        let listener = socket.listener().map_err(Error::Start)?;
        let connection = Connection::new(config).map_err(failed)?;
        let devices = match config.server_clones {
            true => connection
                .device()
                .try_clone_to_owned()
                .map(|one| vec![one]),
            false => mount::devices(connection.device(), config.fuse_threads),
        };
        let devices = devices.inspect_err(|_| {
            let _ = mount::unmount(&config.mountpoint); // the first error is the one to tell
        });
        let devices = devices.map_err(failed)?;
        let passthrough = connection.negotiated.passthrough;
        Ok(Holdings {
            stored: systemd::store(&devices, ledger.memory(), listener.as_fd(), passthrough),
            devices,
            ledger,
            files: HashMap::new(),
            negotiated: connection.negotiated,
            listener,
            served: false,
            socket,
        })
    }

    /// Goes on with the mount that an earlier keeper has left with systemd.
    pub fn take_on(config: &Config, left: Left) -> Result<Holdings, Error> {
        let listener = left.listener.try_clone().map_err(Error::Start)?;
        Ok(Holdings {
            devices: left.devices,
            ledger: Ledger::open(left.ledger).map_err(Error::Left)?,
            files: HashMap::new(),
            negotiated: Negotiated {
                passthrough: left.passthrough,
                resend: true, // without it there is no keeper
            },
            listener,
            served: true,
            stored: true,
            socket: ControlSocket::take_on(&config.control_socket, left.listener),
        })
    }

    /// True where another keeper can go on with the mount.
    pub fn is_stored(&self) -> bool {
        self.stored
    }

    /// Ends without the mount ending.
    pub fn leave(self) {
        self.socket.leave();
    }

    /// Gives everything to a server, which then serves.
    pub fn hand_to(&mut self, server: &Server) {
        let devices: Vec<BorrowedFd<'_>> = self.devices.iter().map(AsFd::as_fd).collect();
        for part in devices.chunks(DESCRIPTORS_MAX) {
            server.tell(&Message::Devices, part);
        }
        let files: Vec<_> = self.files.iter().collect();
        for part in files.chunks(DESCRIPTORS_MAX) {
            let numbers = part.iter().map(|(number, _)| **number).collect();
            let descriptors: Vec<_> = part.iter().map(|(_, file)| file.as_fd()).collect();
            server.tell(&Message::Files { numbers }, &descriptors);
        }
        let take = Message::Take {
            passthrough: self.negotiated.passthrough,
            resend: self.negotiated.resend,
            succeeds: self.served,
        };
        server.tell(&take, &[self.ledger.memory(), self.listener.as_fd()]);
        self.served = true;
    }

    /// Holds a file until [`Holdings::let_go`].
    pub fn hold(&mut self, number: u64, file: OwnedFd) {
        self.files.insert(number, file);
    }

    pub fn let_go(&mut self, number: u64) {
        self.files.remove(&number);
    }

    /// A descriptor of the connection; there always is one.
    pub fn device(&self) -> Option<BorrowedFd<'_>> {
        self.devices.first().map(AsFd::as_fd)
    }

    /// Where status and commands come in.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// True once the kernel has given the mount up.
    pub fn is_over(&self) -> bool {
        self.device()
            .is_some_and(|device| is_over(device.as_raw_fd()))
    }
}

/// True once the kernel has given up the mount of this descriptor.
pub(super) fn is_over(device: RawFd) -> bool {
    events(device) & libc::POLLERR != 0
}

/// What a descriptor has to tell now.
fn events(descriptor: RawFd) -> i16 {
    let mut watched = libc::pollfd {
        fd: descriptor,
        events: 0,
        revents: 0,
    };
    // SAFETY: one pollfd, which lives through the call; it does not wait.
    match unsafe { libc::poll(&mut watched, 1, 0) } {
        1 => watched.revents,
        _ => 0,
    }
}
