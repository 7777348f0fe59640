//! Who gets a message: the files below `etc/qmail` that name users, domains, ids, listeners and networks, and the rule that
//! turns a recipient into a route.
//!
//! Guarantees: no I/O, no clock, no panic on any input; a value that exists is valid. Formats: qmail-users(5), qmail-control(5),
//! addresses(5). Used by qmail-send (routing), qmail-lspawn and qmail-auth (users), qmail-start (ids, listen), `qmail` (all).
#![forbid(unsafe_code)]

pub mod assign;
pub mod cidr;
pub mod domains;
#[doc(hidden)]
pub mod fuzz;
pub mod hosts;
pub mod ids;
pub mod listen;
pub mod name;
pub mod origin;
pub mod routing;
pub mod rules;

use std::fmt;

pub use assign::{Assign, Entry};
pub use cidr::{Cidr, Networks};
pub use domains::{VirtualDomain, VirtualDomains};
pub use hosts::HostSet;
pub use ids::{Id, Ids};
pub use listen::{Listener, Service};
pub use name::UserName;
pub use origin::Origin;
pub use routing::{Routed, Routing};

/// A line that does not say what its file must say. Temporary: mail waits until an administrator has repaired the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError {
    /// Counted from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong and what should stand there.
    pub problem: String,
}

impl LineError {
    pub(crate) fn new(line: usize, problem: impl Into<String>) -> Self {
        Self { line, problem: problem.into() }
    }

    /// Always: a file can be repaired, a bounce cannot be taken back.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        true
    }
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.problem),
            line => write!(f, "line {line}: {}", self.problem),
        }
    }
}

impl std::error::Error for LineError {}

/// Strips blanks, tabs and line ends from the end, as every control file is read. Classic: not the CR of an editor elsewhere, which
/// made a name that nothing equals.
#[must_use]
pub fn trim_end(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|b| !matches!(b, b' ' | b'\t' | b'\n' | b'\r')).map_or(0, |at| at.saturating_add(1));
    line.get(..end).unwrap_or_default()
}

/// The lines of a list file with their numbers, trailing blanks stripped, without `#` lines and empty ones.
pub fn list_lines(text: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let numbered = text.split(|b| *b == b'\n').zip(1..);
    numbered.map(|(line, number)| (number, trim_end(line))).filter(|(_, line)| !matches!(line.first(), None | Some(b'#')))
}

/// Digits and nothing else as a number that fits.
pub(crate) fn number(field: &[u8]) -> Option<u32> {
    if field.is_empty() || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_lines_are_read_as_control_files_are() {
        let text = b"a \t\n#no\n\n  b\n \t \nc#\nd\r\n\r\ne \r\nlast";
        let lines: Vec<_> = list_lines(text).collect();
        assert_eq!(lines, [(1, &b"a"[..]), (4, b"  b"), (6, b"c#"), (7, b"d"), (9, b"e"), (10, b"last")]);
    }

    #[test]
    fn a_number_is_digits_only() {
        for (field, expected) in [
            (&b"0"[..], Some(0)),
            (b"4294967295", Some(u32::MAX)),
            (b"4294967296", None),
            (b"+1", None),
            (b"", None),
            (b"1 ", None),
        ] {
            assert_eq!(number(field), expected, "{}", field.escape_ascii());
        }
    }
}
