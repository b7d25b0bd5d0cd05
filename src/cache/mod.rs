//! cache

pub mod status;
