//! mailsubj(1): `mailsubj SUBJECT ADDRESS…` sends what comes on standard input to the addresses, under this subject.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use tool::child::{self, Fed};
use tool::{End, Name, TEMPORARY, input};

/// The program; its exit code is qmail-inject's.
///
/// # Errors
/// qmail-inject cannot be run or crashed, or the text cannot be read.
pub fn main(args: &[OsString]) -> Result<u8, End> {
    const ME: Name = Name("mailsubj");
    let mut text = input::stdin().map_err(|error| ME.system("unable to read message", &error))?;
    let (subject, to) = args.split_first().map_or((&[][..], args), |(subject, to)| (subject.as_bytes(), to));
    let to: Vec<Vec<u8>> = to.iter().map(|address| one_line(address.as_bytes())).collect();
    let mut inject = Fed::start(ME, &[child::of_release("qmail-inject")], TEMPORARY)?;
    for part in [b"Subject: ", &one_line(subject)[..], b"\nTo: ", &to.join(&b' '), b"\n\n"] {
        inject.put(part);
    }
    inject.feed(ME, &mut text)
}

/// A line end in an argument would begin another field, which nobody wrote.
fn one_line(text: &[u8]) -> Vec<u8> {
    text.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }).collect()
}
