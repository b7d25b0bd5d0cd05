//! The file of the control socket.
//!
//! # Invariants
//! The socket's directory is 0700 and the socket 0600: only the user who mounted (and root) gets in.
//! A socket file belongs to a living daemon or is replaced.
//!
//! # Order of steps
//! Directory, then the stale socket goes, then bind, then 0600. It is made once for a mount and outlives its
//! servers: who comes while none is there waits in its queue.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::Error;

/// A control socket that can be connected to. Dropping it removes the file.
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ControlSocket {
    /// Makes the socket at `path`; refuses where a living daemon has it.
    pub fn make(path: &Path) -> Result<ControlSocket, Error> {
        remove_stale(path)?;
        let failed = |error| Error::Socket {
            path: path.to_path_buf(),
            error,
        };
        Ok(ControlSocket {
            path: path.to_path_buf(),
            listener: listen(path).map_err(failed)?,
        })
    }

    /// The socket that another keeper has made.
    pub fn take_on(path: &Path, listener: UnixListener) -> ControlSocket {
        ControlSocket {
            path: path.to_path_buf(),
            listener,
        }
    }

    /// Leaves the file to another keeper.
    pub fn leave(mut self) {
        self.path.clear();
    }

    /// Another descriptor of it, which does not block.
    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            remove_socket(&self.path);
        }
    }
}

/// Takes the file of a control socket away.
pub fn remove_socket(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        log::warn!("cannot remove {}: {error}", path.display());
    }
}

/// Removes the socket of a daemon that is gone; one that still answers is left alone.
fn remove_stale(path: &Path) -> Result<(), Error> {
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::InUse(path.to_path_buf())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => fs::remove_file(path).map_err(|error| Error::Socket {
            path: path.to_path_buf(),
            error,
        }),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_gets_in_and_nothing_stays_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/mount.sock");
        let socket = ControlSocket::make(&path).expect("made");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a parent")), 0o700);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mount.sock");
        drop(UnixListener::bind(&path).expect("bound"));
        let _socket = ControlSocket::make(&path).expect("replaced");
        let second = ControlSocket::make(&path);
        assert!(matches!(second, Err(Error::InUse(_))));
        assert!(UnixStream::connect(&path).is_ok());
    }
}
