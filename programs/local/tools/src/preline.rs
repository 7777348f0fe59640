//! preline(1): `preline [-frdFRD] COMMAND [ARG…]` runs a command with UFLINE, RPLINE and DTLINE before the message.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use tool::child::Fed;
use tool::options::{self, Letters, Opt};
use tool::{End, Name, PERMANENT, input};

/// The program; its exit code is the command's.
///
/// # Errors
/// The command cannot be run or crashed, or the message cannot be read.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("preline");
    let usage = || ME.usage("cmd [ arg ... ]");
    let mut lines = Vec::new();
    for (letter, name) in [(b'f', "UFLINE"), (b'r', "RPLINE"), (b'd', "DTLINE")] {
        lines.push((letter, input::variable(name).ok_or_else(usage)?, true));
    }
    let letters = Letters { flags: b"frdFRD", with_value: b"", with_glued_value: b"" };
    let (options, rest) = options::known(ME, args, letters).ok_or_else(usage)?;
    for option in options {
        let Opt::Flag(letter) = option else { continue };
        for line in lines.iter_mut().filter(|line| line.0 == letter.to_ascii_lowercase()) {
            line.2 = letter.is_ascii_uppercase();
        }
    }
    if rest.is_empty() {
        return Err(usage());
    }
    let mut message = input::stdin().map_err(|error| ME.system("unable to copy input", &error))?;
    let command: Vec<OsString> = rest.into_iter().map(OsString::from_vec).collect();
    let mut fed = Fed::start(ME, &command, PERMANENT)?;
    lines.iter().filter(|line| line.2).for_each(|line| fed.put(&line.1));
    fed.feed(ME, &mut message)
}
