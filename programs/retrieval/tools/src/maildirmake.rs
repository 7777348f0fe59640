//! maildirmake(1): `maildirmake DIR` makes a Maildir, for its owner alone.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use tool::{End, Name};

/// The program.
///
/// # Errors
/// A directory is there already or cannot be made; temporary, as ever.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("maildirmake");
    let dir = args.first().ok_or_else(|| ME.usage("name"))?;
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    for part in ["", "/tmp", "/new", "/cur"] {
        let path = Path::new(dir).join(part.trim_start_matches('/'));
        let what = [b"unable to mkdir ", dir.as_bytes(), part.as_bytes()].concat();
        builder.create(path).map_err(|error| ME.system(what, &error))?;
    }
    Ok(0)
}
