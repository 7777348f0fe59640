//! How a small program ends: an exit code and, if there is something to say, a line on standard error.
//!
//! The form of the line (`NAME: fatal: TEXT`, `NAME: usage: …`) is part of the interface: it becomes the text of a bounce.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use crate::{PERMANENT, TEMPORARY};

/// The end of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub code: u8,
    /// The line for standard error, without its line end; empty: nothing is said.
    pub text: Vec<u8>,
}

impl End {
    /// Ends without a word.
    #[must_use]
    pub fn silent(code: u8) -> Self {
        Self { code, text: Vec::new() }
    }

    /// Ends with this text and nothing before it.
    #[must_use]
    pub fn with(code: u8, text: impl Into<Vec<u8>>) -> Self {
        Self { code, text: text.into() }
    }
}

/// The name of a program, as it stands before what it says.
#[derive(Debug, Clone, Copy)]
pub struct Name(pub &'static str);

impl Name {
    /// `NAME: usage: NAME ARGUMENTS`, permanent.
    #[must_use]
    pub fn usage(self, arguments: &str) -> End {
        let blank = if arguments.is_empty() { "" } else { " " };
        End::with(PERMANENT, format!("{0}: usage: {0}{blank}{arguments}", self.0))
    }

    /// `NAME: fatal: TEXT`
    #[must_use]
    pub fn fatal(self, code: u8, text: impl AsRef<[u8]>) -> End {
        End::with(code, [self.0.as_bytes(), b": fatal: ", text.as_ref()].concat())
    }

    /// Worth another try.
    #[must_use]
    pub fn temporary(self, text: impl AsRef<[u8]>) -> End {
        self.fatal(TEMPORARY, text)
    }

    /// Not worth another try.
    #[must_use]
    pub fn permanent(self, text: impl AsRef<[u8]>) -> End {
        self.fatal(PERMANENT, text)
    }

    /// `NAME: fatal: WHAT: the system's text`, temporary.
    #[must_use]
    pub fn system(self, what: impl AsRef<[u8]>, error: &io::Error) -> End {
        self.temporary([what.as_ref(), b": ", sys::errno::text(error).as_bytes()].concat())
    }

    /// Writes what the program was asked for to standard output.
    ///
    /// # Errors
    /// `unable to write output: …`, also where it was closed; temporary.
    pub fn print(self, text: &[u8]) -> Result<(), End> {
        let written = sys::standard::output().and_then(|mut out| out.write_all(text));
        written.map_err(|error| self.system("unable to write output", &error))
    }

    /// Says something without ending: `NAME: KIND: TEXT`.
    pub fn note(self, kind: &str, text: impl AsRef<[u8]>) {
        say(&[self.0.as_bytes(), b": ", kind.as_bytes(), b": ", text.as_ref()].concat());
    }
}

/// Runs a program with its arguments (without its own name). What it starts finds closed the descriptors that were closed for it.
#[must_use]
pub fn run(program: impl FnOnce(&[OsString]) -> Result<u8, End>) -> ExitCode {
    sys::standard::leave_closed();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let end = program(&args).map_or_else(|end| end, End::silent);
    if !end.text.is_empty() {
        say(&end.text);
    }
    ExitCode::from(end.code)
}

/// A line on standard error. That nobody reads it changes nothing: the exit code says it, too.
pub fn say(text: &[u8]) {
    let _ = io::stderr().write_all(&line(text));
}

/// The text as a line. Control bytes but tabs and line ends are `?`: it may hold an address, and goes into bounces and onto terminals.
fn line(text: &[u8]) -> Vec<u8> {
    let is_harmless = |b: u8| matches!(b, b'\t' | b'\n') || (b >= 32 && b != 127);
    text.iter().map(|b| if is_harmless(*b) { *b } else { b'?' }).chain([b'\n']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_classic_form() {
        let me = Name("forward");
        assert_eq!(me.usage("addr …").text, "forward: usage: forward addr …".as_bytes());
        assert_eq!(me.usage("").text, b"forward: usage: forward");
        assert_eq!(me.permanent("no").text, b"forward: fatal: no");
        let gone = io::Error::from_raw_os_error(2);
        assert_eq!(me.system("unable to read x", &gone).text, b"forward: fatal: unable to read x: file does not exist");
        assert_eq!((me.usage("").code, me.system("", &gone).code), (100, 111));
        assert_eq!(line(b"a\x1b[0m\tb\0"), b"a?[0m\tb?\n");
    }
}
