//! flashside: a FUSE filesystem that puts the flash of a hypervisor host between its VMs and their
//! shared storage.
//!
//! The rooms, top to bottom; a room uses only rooms below it (`tests/rooms.rs` checks this):
//! `cli` → `keeper`, `control` → `mount` → `image` → `cache` → `module`, `io`; `mount` and `image` also
//! use `store`; `keeper`, `control` and `mount` use `handover`; every room
//! may read `config` and speak through `logs`.

pub mod cache;
pub mod cli;
pub mod config;
pub mod control;
pub mod handover;
pub mod image;
pub mod io;
pub mod keeper;
pub mod logs;
pub mod module;
pub mod mount;
pub mod store;
