//! The spool: the durable queue of messages between acceptance and delivery. It never loses mail.
//!
//! qmail-send holds a [`Spool`]; the requests are those of [`Log`], which [`model::Model`] answers too.
//! Nothing outside qmail-send touches the files.
#![forbid(unsafe_code)]

mod bytes;
#[cfg(test)]
mod conformance;
mod engine;
mod envelope;
#[cfg(test)]
mod faults;
mod house;
#[cfg(test)]
mod inline;
pub mod model;
mod op;
#[cfg(test)]
mod powercut;
mod prepare;
mod reader;
mod record;
mod replay;
mod segment;
mod shared;
mod side;
mod spool;
mod state;
mod table;
mod types;

pub use side::{SIDE_BACKLOG_MAX, SideBody};
pub use spool::{Options, Spool};
pub use types::*;
