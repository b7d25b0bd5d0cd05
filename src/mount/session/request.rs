//! One request, taken apart piece by piece. What comes from the kernel is trusted to be well-meant, not
//! to be well-formed: every piece is looked for and may be missing.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::wire::InHeader;

/// A request as received.
#[derive(Clone)]
pub struct Request<'a> {
    pub header: InHeader,
    rest: &'a [u8],
}

impl<'a> Request<'a> {
    /// The request in `bytes`; `None` when that is not a whole one.
    pub fn parse(bytes: &'a [u8]) -> Option<Request<'a>> {
        let (header, rest) = InHeader::read_from_prefix(bytes).ok()?;
        (header.len as usize == bytes.len()).then_some(Request { header, rest })
    }

    /// The next piece.
    pub fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Option<T> {
        let (piece, rest) = T::read_from_prefix(self.rest).ok()?;
        self.rest = rest;
        Some(piece)
    }

    /// The next name, up to its NUL.
    pub fn name(&mut self) -> Option<OsString> {
        let end = self.rest.iter().position(|&byte| byte == 0)?;
        let name = OsStr::from_bytes(&self.rest[..end]).to_owned();
        self.rest = &self.rest[end + 1..];
        Some(name)
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::SetxattrIn;
    use super::*;

    fn request(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<InHeader>()];
        bytes.extend_from_slice(body);
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes
    }

    #[test]
    fn pieces_come_in_their_order() {
        let bytes = request(b"\x03\0\0\0\x01\0\0\0user.a\0xyz");
        let mut request = Request::parse(&bytes).expect("whole");
        let head: SetxattrIn = request.take().expect("head");
        assert_eq!((head.size, head.flags), (3, 1));
        assert_eq!(request.name().expect("name"), "user.a");
        assert_eq!(request.bytes(3), Some(&b"xyz"[..]));
        assert_eq!(request.bytes(1), None);
    }

    #[test]
    fn what_is_cut_off_is_not_taken_for_whole() {
        let bytes = request(b"name without an end");
        assert!(Request::parse(&bytes[..bytes.len() - 1]).is_none());
        assert!(Request::parse(&bytes[..10]).is_none());
        assert!(Request::parse(&bytes).expect("whole").name().is_none());
    }
}
