//! The typed messages of `ipc` on tokio's current-thread runtime: for qmail-smtpd, qmail-popup, qmail-remote and qmail-resolve.
//!
//! Guarantees: every question has a deadline and ends in an answer or [`Gone`]; a server that restarts is found again by the next
//! question; nothing here opens a file. Not `Send`: one runtime, one thread.
#![forbid(unsafe_code)]

pub mod client;
pub mod packets;
pub mod proxy;
pub mod service;

pub use client::{Client, Gone};
pub use packets::{Listener, Packets};
