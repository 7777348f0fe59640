//! qmail-send: owns the spool, takes messages in, schedules and hands out deliveries, records their results, builds bounces, writes
//! the classic log (qmail-send(8), qmail-log(5)).
//!
//! Guarantees DESIGN §8 promises 1, 3, 6, 7 and 8 for its part: "accepted" is said only for what is durable, a result is written
//! before its slot is free, and whatever bytes come on any socket, it goes on. It never touches the network, a mailbox or, on its main
//! thread, a file of the spool.
//!
//! | module | what |
//! |---|---|
//! | [`start`] | the process: descriptors, sandbox, threads |
//! | [`service`] | the loop over all sockets |
//! | [`engine`] | every message from acceptance to its end, without I/O |
//! | [`submission`] | one message on its way in |
//! | [`directory`] | what qmail-auth and qmail-resolve said |
//! | [`bounce`] | the thread that writes bounces |
//! | [`log`] | the classic lines |
#![forbid(unsafe_code)]

pub mod active;
pub mod bounce;
pub mod directory;
pub mod engine;
pub mod log;
pub mod service;
pub mod settings;
pub mod start;
pub mod submission;

mod clients;
mod links;

pub use start::main;
