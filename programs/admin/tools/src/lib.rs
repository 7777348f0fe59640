//! Small programs of administrators: qmail-newu, qmail-newmrh, qmail-pw2u make tables; splogger writes to syslog.
//!
//! A table is replaced whole or not at all. (qmail-showctl, qmail-qread, qmail-qstat: package `qmail`, which knows the control files and
//! the sockets.)
#![forbid(unsafe_code)]

pub mod newmrh;
pub mod newu;
pub mod pw2u;
pub mod splogger;

use control::Root;
use tool::{End, Name};

fn root(me: Name) -> Result<Root, End> {
    Root::from_env().map_err(|error| me.temporary(error.to_string()))
}
