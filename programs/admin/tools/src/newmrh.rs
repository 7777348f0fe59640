//! qmail-newmrh(8): `control/morercpthosts` becomes `control/morercpthosts.cdb`, by way of `control/morercpthosts.tmp`.
//!
//! The keys are the lines in lower case, without the blanks at their end; the data is empty. Comments and empty lines do not count.

use std::ffi::OsString;

use tool::replace::{self, Readers};
use tool::{End, Name, input};
use wire::cdb;

const ME: Name = Name("qmail-newmrh");

/// The program.
///
/// # Errors
/// A file cannot be read or written; temporary, and the database is as it was.
pub fn main(_: &[OsString]) -> Result<u8, End> {
    let control = crate::root(ME)?.control();
    let text = input::file(&control.join("morercpthosts"));
    let text = text.map_err(|error| ME.system("unable to read control/morercpthosts", &error))?;
    let mut writer = cdb::Writer::new();
    control::read::lines_of(&text).iter().for_each(|line| writer.add(&line.to_ascii_lowercase(), b""));
    let file = writer.finish().ok_or_else(|| ME.temporary("unable to write to control/morercpthosts.tmp: file too big"))?;
    let (tmp, path) = (control.join("morercpthosts.tmp"), control.join("morercpthosts.cdb"));
    replace::file(ME, &file, (&tmp, &path), (b"control/morercpthosts.tmp", b"control/morercpthosts.cdb"), Readers::Everybody)?;
    Ok(0)
}
