//! The store's errors: one enum, one errno each.

use std::io;

/// What a store operation can end with besides success.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store's own answer.
    #[error(transparent)]
    Os(#[from] io::Error),
    /// No answer within the store deadline; the system call is abandoned (rule 12).
    #[error("the store did not answer within {0} s")]
    Deadline(u64),
    /// So many operations hang already that a further one is not begun (rule 12).
    #[error("too many store operations are waiting")]
    Overloaded,
}

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with this errno.
    pub fn from_errno(errno: i32) -> Error {
        Error::Os(io::Error::from_raw_os_error(errno))
    }

    /// True if the error tells that the store does not work, rather than that a request was wrong.
    pub fn tells_of_the_store(&self) -> bool {
        match self {
            Error::Os(error) => matches!(
                error.raw_os_error(),
                Some(
                    libc::EIO
                        | libc::EROFS
                        | libc::ENODEV
                        | libc::ENOTCONN
                        | libc::ESHUTDOWN
                        | libc::ECONNABORTED
                        | libc::ETIMEDOUT
                        | libc::EHOSTDOWN
                        | libc::ESTALE
                )
            ),
            Error::Deadline(_) | Error::Overloaded => true,
        }
    }

    /// The errno a guest sees.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Os(error) => error.raw_os_error().unwrap_or(libc::EIO),
            Error::Deadline(_) | Error::Overloaded => libc::EIO,
        }
    }
}
