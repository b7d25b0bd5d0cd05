//! What is asked of the kernel at INIT, the same for fuser's session and for ours; and a mount that does
//! nothing else, whose descriptors somebody else will serve.

use std::io;
use std::sync::{Arc, OnceLock};

use fuser::{Filesystem, InitFlags, KernelConfig, Request};

use crate::handover::Negotiated;

/// Largest request, in bytes.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Requests that may wait at once, of those the kernel counts (asynchronous direct I/O). Many,
/// because those stuck on a hanging store must not stop reads of what is resident.
const BACKGROUND_MAX: u16 = 16384;

/// Files for passthrough lie on a filesystem that is not stacked on another.
const STACK_DEPTH: u32 = 1;

/// What we ask the kernel for, each only where offered. Never FUSE_WRITEBACK_CACHE (writes must
/// reach us when they are made) nor FUSE_OVER_IO_URING (a dead ring's requests wait for ever).
const CAPABILITIES: [InitFlags; 6] = [
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_DONT_MASK,
];

/// Answers INIT and no other request.
pub struct Negotiator {
    passthrough: bool,
    agreed: Arc<OnceLock<Negotiated>>,
}

impl Negotiator {
    /// Asks for kernel passthrough if `passthrough`; `agreed` gets what came of it.
    pub fn new(passthrough: bool, agreed: Arc<OnceLock<Negotiated>>) -> Negotiator {
        Negotiator {
            passthrough,
            agreed,
        }
    }
}

impl Filesystem for Negotiator {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let agreed = ask(config, self.passthrough)?;
        let _ = self.agreed.set(agreed); // INIT comes once
        Ok(())
    }
}

/// Asks for what we want; fails where the kernel is too small for us.
pub fn ask(config: &mut KernelConfig, passthrough: bool) -> io::Result<Negotiated> {
    for capability in CAPABILITIES {
        if config.add_capabilities(capability).is_err() {
            log::debug!("the kernel does not offer {capability:?}");
        }
    }
    let small = |_| io::Error::from_raw_os_error(libc::EINVAL);
    config.set_max_write(REQUEST_BYTES_MAX).map_err(small)?;
    let small = |_| io::Error::from_raw_os_error(libc::EINVAL);
    config.set_max_background(BACKGROUND_MAX).map_err(small)?;
    config
        .set_congestion_threshold(BACKGROUND_MAX)
        .map_err(small)?;
    Ok(Negotiated {
        passthrough: passthrough && agrees_to_passthrough(config),
        resend: config.add_capabilities(InitFlags::FUSE_HAS_RESEND).is_ok(),
    })
}

fn agrees_to_passthrough(config: &mut KernelConfig) -> bool {
    config
        .add_capabilities(InitFlags::FUSE_PASSTHROUGH)
        .is_ok_and(|()| config.set_max_stack_depth(STACK_DEPTH).is_ok())
}
