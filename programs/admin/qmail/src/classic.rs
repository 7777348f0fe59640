//! The classic programs that show what an administrator asks about: qmail-showctl, qmail-qread, qmail-qstat, qmail-tcpto, qmail-tcpok.
//!
//! They ask the running qmail-send where `qmail queue` does, or the running qmail-remote; none opens the spool. Their output keeps its old form for scripts; for
//! people and new programs there is `qmail`.

pub mod queue;
pub mod showctl;
pub mod tcpto;

use std::io::Write as _;
use std::process::ExitCode;

use control::Root;

use crate::Failure;

/// Runs one of them: what it prints goes out whole, or `NAME: fatal: TEXT` to standard error.
#[must_use]
pub fn run(name: &str, program: impl FnOnce(&Root) -> Result<Vec<u8>, Failure>) -> ExitCode {
    let root = Root::from_env().map_err(|error| Failure::temporary(error.to_string()));
    let printed = root.and_then(|root| program(&root)).and_then(|text| {
        let written = sys::standard::output().and_then(|mut out| out.write_all(&text));
        written.map_err(|error| Failure::temporary(format!("unable to write output: {}", sys::errno::text(&error))))
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{name}: fatal: {}", failure.text);
            ExitCode::from(failure.code())
        }
    }
}
