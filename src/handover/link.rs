//! The socket between keeper and server: whole messages, each with the descriptors that belong to it.
//!
//! *Invariants*: nobody else has an end, so that the end of a process is the end of its link; what it
//! said before is still there to be read. A send waits at most [`SEND_PATIENCE`].

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use super::message::Message;

/// A process that does not read for so long is given up.
const SEND_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a message at most.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Descriptors with one message at most; the kernel takes 253.
pub const DESCRIPTORS_MAX: usize = 200;

/// One end.
pub struct Link {
    socket: OwnedFd,
}

/// What came.
#[derive(Debug)]
pub enum Came {
    Message(Message, Vec<OwnedFd>),
    /// Nothing within the time given.
    Nothing,
    /// The other end is closed, and all it said was read.
    End,
}

impl Link {
    /// Two ends, which no started program gets by itself.
    pub fn pair() -> io::Result<(Link, Link)> {
        let mut ends: [RawFd; 2] = [-1; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: the array has room for two descriptors.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us these descriptors; nobody else owns them.
        let [one, other] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        Ok((Link::new(one)?, Link::new(other)?))
    }

    /// An end that was handed to this process.
    pub fn new(socket: OwnedFd) -> io::Result<Link> {
        let patience = libc::timeval {
            tv_sec: SEND_PATIENCE.as_secs() as libc::time_t,
            tv_usec: 0,
        };
        // SAFETY: the option reads one timeval, which lives through the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDTIMEO,
                (&raw const patience).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        match set {
            0 => Ok(Link { socket }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Sends a message with at most [`DESCRIPTORS_MAX`] descriptors. Any thread may; each message goes
    /// whole. TimedOut where the other does not read.
    pub fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut text = serde_json::to_vec(message)?;
        if text.len() > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut piece = libc::iovec {
            iov_base: text.as_mut_ptr().cast(),
            iov_len: text.len(),
        };
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let mut control = Control::new();
        let mut head = control.head(&mut piece);
        control.put(&mut head, &raw);
        loop {
            // SAFETY: `head` points to `piece` and `control`, which live through the call.
            let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &head, libc::MSG_NOSIGNAL) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
                _ => return Err(error),
            }
        }
    }

    /// The next message; waits at most `patience`, for ever without.
    pub fn receive(&self, patience: Option<Duration>) -> io::Result<Came> {
        if !readable(self.as_fd(), patience)? {
            return Ok(Came::Nothing);
        }
        let mut text = vec![0u8; MESSAGE_BYTES_MAX];
        let mut piece = libc::iovec {
            iov_base: text.as_mut_ptr().cast(),
            iov_len: text.len(),
        };
        let mut control = Control::new();
        let mut head = control.head(&mut piece);
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: `head` points to `piece` and `control`, which live through the call.
        let got = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &mut head, flags) };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Came::Nothing),
                io::ErrorKind::ConnectionReset => Ok(Came::End),
                _ => Err(error),
            };
        };
        let descriptors = control.taken(&head);
        if got == 0 {
            return Ok(Came::End);
        }
        let message = serde_json::from_slice(&text[..got])?;
        Ok(Came::Message(message, descriptors))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Room for what travels beside the bytes, aligned as the kernel wants it.
struct Control {
    room: [u64; 128],
}

impl Control {
    fn new() -> Control {
        Control { room: [0; 128] }
    }

    fn head(&mut self, piece: &mut libc::iovec) -> libc::msghdr {
        // SAFETY: msghdr is plain numbers and pointers, for which zero is a value.
        let mut head: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        head.msg_iov = piece;
        head.msg_iovlen = 1;
        head.msg_control = self.room.as_mut_ptr().cast();
        head.msg_controllen = size_of_val(&self.room);
        head
    }

    /// Puts descriptors in, of which there are at most [`DESCRIPTORS_MAX`].
    fn put(&mut self, head: &mut libc::msghdr, raw: &[RawFd]) {
        if raw.is_empty() {
            head.msg_control = std::ptr::null_mut();
            head.msg_controllen = 0;
            return;
        }
        let bytes = size_of_val(raw) as u32;
        // SAFETY: the room has 1024 bytes, more than the largest number of descriptors takes, and
        // `head` says where it is.
        unsafe {
            head.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
            let first = libc::CMSG_FIRSTHDR(head);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(bytes) as usize;
            let data = libc::CMSG_DATA(first).cast::<RawFd>();
            std::ptr::copy_nonoverlapping(raw.as_ptr(), data, raw.len());
        }
    }

    /// Takes descriptors out of what the kernel filled in.
    fn taken(&self, head: &libc::msghdr) -> Vec<OwnedFd> {
        let mut taken = Vec::new();
        // SAFETY: the kernel has filled the room and said how far; the macros stay within.
        unsafe {
            let mut each = libc::CMSG_FIRSTHDR(head);
            while !each.is_null() {
                if (*each).cmsg_level == libc::SOL_SOCKET && (*each).cmsg_type == libc::SCM_RIGHTS {
                    let bytes = (*each).cmsg_len - libc::CMSG_LEN(0) as usize;
                    let data = libc::CMSG_DATA(each).cast::<RawFd>();
                    for at in 0..bytes / mem::size_of::<RawFd>() {
                        let raw = data.add(at).read_unaligned();
                        taken.push(OwnedFd::from_raw_fd(raw));
                    }
                }
                each = libc::CMSG_NXTHDR(head, each);
            }
        }
        taken
    }
}

/// Waits until there is something to read, or the end; false when `patience` is over.
fn readable(socket: BorrowedFd<'_>, patience: Option<Duration>) -> io::Result<bool> {
    let mut watched = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let patience = patience.map_or(-1, |span| {
        i32::try_from(span.as_millis()).unwrap_or(i32::MAX)
    });
    // SAFETY: one pollfd, which lives through the call.
    match unsafe { libc::poll(&mut watched, 1, patience) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn messages_arrive_whole_in_their_order_and_with_their_descriptors() {
        let (one, other) = Link::pair().expect("a pair");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"held").expect("written");
        let hold = Message::Hold { number: 7 };
        one.send(&hold, &[file.as_fd()]).expect("sent");
        one.send(&Message::Serving, &[]).expect("sent");
        drop(one);
        let Came::Message(said, mut files) = other.receive(NOW).expect("read") else {
            panic!("nothing came");
        };
        assert_eq!((said, files.len()), (hold, 1));
        let mut held = File::from(files.remove(0));
        let mut text = String::new();
        held.rewind().expect("a file");
        held.read_to_string(&mut text).expect("text");
        assert_eq!(text, "held");
        let second = other.receive(NOW).expect("read");
        assert!(matches!(second, Came::Message(Message::Serving, _)));
        assert!(matches!(other.receive(NOW), Ok(Came::End)));
    }

    #[test]
    fn the_largest_number_of_descriptors_goes_at_once() {
        let (one, other) = Link::pair().expect("a pair");
        let file = tempfile::tempfile().expect("a file");
        let many = vec![file.as_fd(); DESCRIPTORS_MAX];
        one.send(&Message::Devices, &many).expect("sent");
        let Came::Message(_, got) = other.receive(NOW).expect("read") else {
            panic!("nothing came");
        };
        assert_eq!(got.len(), DESCRIPTORS_MAX);
        assert!(matches!(other.receive(NOW), Ok(Came::Nothing)));
    }

    #[test]
    fn a_word_of_another_build_is_passed_over() {
        let said: Message = serde_json::from_str(r#"{"say":"sing","loud":true}"#).expect("read");
        assert_eq!(said, Message::Unknown);
    }
}
