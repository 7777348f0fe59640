//! The system calls that the programs need and that rustix does not give safely: the only crate with `unsafe`.
//!
//! Guarantees: every descriptor made here is close-on-exec; every function reports its errno; nothing here knows what mail is.
//! Each unsafe block is a few lines with its reason. Used by every program.
#![allow(unsafe_code)]

pub mod clock;
pub mod confine;
pub mod crypt;
pub mod errno;
pub mod fs;
pub mod heap;
pub mod inherited;
pub mod interfaces;
mod library;
pub mod memfd;
pub mod names;
pub mod numbered;
pub mod pam;
pub mod passwd;
pub mod random;
pub mod seqpacket;
pub mod shutdown;
pub mod signal;
pub mod spawn;
pub mod standard;
pub mod vital;
pub mod wake;
pub mod writeback;

pub use seqpacket::{Peer, Received, Seqpacket};
pub use vital::vital;
