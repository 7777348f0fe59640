//! qmail-newu(8): `users/assign` becomes `users/cdb`, by way of `users/cdb.tmp`.

use std::ffi::OsString;

use tool::replace::{self, Readers};
use tool::{End, Name, input};
use users::{Assign, LineError};

const ME: Name = Name("qmail-newu");

/// The program.
///
/// # Errors
/// A line that assigns nothing, or a file that cannot be read or written; temporary, and users/cdb is as it was.
pub fn main(_: &[OsString]) -> Result<u8, End> {
    let users = crate::root(ME)?.users();
    let text = input::file(&users.join("assign")).map_err(|error| {
        let what = if error.kind() == std::io::ErrorKind::NotFound { "open" } else { "read" };
        ME.note("info", sys::errno::text(&error));
        ME.temporary(format!("unable to {what} users/assign"))
    })?;
    let malformed = |error: &LineError| {
        ME.note("info", error.to_string());
        ME.temporary("bad format in users/assign")
    };
    let assign = Assign::parse(&text).map_err(|error| malformed(&error))?;
    if let Some(fault) = assign.faults().next() {
        return Err(malformed(fault));
    }
    let cdb = assign.to_cdb().ok_or_else(|| ME.temporary("unable to write users/cdb.tmp"))?;
    let (tmp, path) = (users.join("cdb.tmp"), users.join("cdb"));
    replace::file(ME, &cdb, (&tmp, &path), (b"users/cdb.tmp", b"users/cdb"), Readers::Everybody)?;
    Ok(0)
}
