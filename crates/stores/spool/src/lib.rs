//! The spool: the durable queue of messages between acceptance and delivery. It never loses mail.
//!
//! qmail-send holds a [`Spool`]; the requests are those of [`Log`], which [`model::Model`] answers too.
//! Nothing outside qmail-send touches the files.
#![forbid(unsafe_code)]

pub mod model;
mod side;
mod spool;
mod types;

pub use side::{SIDE_BACKLOG_MAX, SideBody};
pub use spool::{Options, Spool};
pub use types::*;
