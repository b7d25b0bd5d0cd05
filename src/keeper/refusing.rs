//! A mount that no server can serve: every request gets EIO and every question at the control socket 503,
//! so that nobody hangs and everybody is told.
//!
//! What the kernel lets go of meanwhile (FORGET, RELEASE) is lost on the next server, which keeps a little
//! too much until the mount ends.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::mount::{notify, opcode};

/// Room for the largest request.
const REQUEST_BYTES_MAX: usize = (1 << 20) + 4096;
/// Requests answered before others are looked at.
const ROUND_MAX: usize = 64;
/// Who asks says so at once.
const QUESTION_PATIENCE: Duration = Duration::from_millis(200);

/// Where a request says what it is, and its number.
const OPCODE_AT: usize = 4;
const UNIQUE_AT: usize = 8;

/// The state, and why.
pub struct Refusing {
    why: String,
    request: Vec<u8>,
}

impl Refusing {
    /// Begins to refuse: what dead servers have taken comes again, to be refused.
    pub fn begin(why: String, device: BorrowedFd<'_>) -> Refusing {
        if let Err(error) = write(device, &head(notify::RESEND, 0)) {
            log::warn!("the kernel does not send again what was not answered: {error}");
        }
        Refusing {
            why,
            request: vec![0; REQUEST_BYTES_MAX],
        }
    }

    /// Answers what waits; false once the mount is gone.
    pub fn answer(&mut self, device: BorrowedFd<'_>) -> bool {
        for _ in 0..ROUND_MAX {
            let room = self.request.as_mut_ptr().cast();
            // SAFETY: the buffer is ours to fill, and as long as said.
            let got = unsafe { libc::read(device.as_raw_fd(), room, self.request.len()) };
            let Ok(got) = usize::try_from(got) else {
                match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR | libc::ENOENT) => continue,
                    Some(libc::EAGAIN) => return true,
                    _ => return false,
                }
            };
            refuse(device, &self.request[..got]);
        }
        true
    }

    /// Answers one who asks at the control socket.
    pub fn tell(&self, listener: &UnixListener) {
        if let Ok((stream, _)) = listener.accept()
            && let Err(error) = self.tell_one(stream)
        {
            log::debug!("who asked is not told: {error}");
        }
    }

    fn tell_one(&self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(QUESTION_PATIENCE))?;
        stream.set_write_timeout(Some(QUESTION_PATIENCE))?;
        let mut question = [0; 4096];
        let _ = stream.read(&mut question)?; // whatever it is
        let body = serde_json::json!({ "error": self.why }).to_string();
        write!(
            stream,
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }
}

fn refuse(device: BorrowedFd<'_>, request: &[u8]) {
    let word = |at: usize| {
        request
            .get(at..at + 4)
            .and_then(|word| word.try_into().ok())
    };
    let unique = request.get(UNIQUE_AT..UNIQUE_AT + 8);
    let unique = unique.and_then(|unique| unique.try_into().ok());
    let (Some(opcode), Some(unique)) = (word(OPCODE_AT), unique) else {
        return;
    };
    if matches!(
        u32::from_ne_bytes(opcode),
        opcode::FORGET | opcode::INTERRUPT | opcode::BATCH_FORGET
    ) {
        return;
    }
    if let Err(error) = write(device, &head(-libc::EIO, u64::from_ne_bytes(unique))) {
        log::debug!("the kernel does not take a refusal: {error}");
    }
}

/// A reply without a body.
fn head(error: i32, unique: u64) -> [u8; 16] {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&16u32.to_ne_bytes());
    head[4..8].copy_from_slice(&error.to_ne_bytes());
    head[8..].copy_from_slice(&unique.to_ne_bytes());
    head
}

fn write(device: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes are ours and as long as said.
    let sent = unsafe { libc::write(device.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    match sent {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
