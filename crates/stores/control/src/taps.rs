//! `control/taps`: whose mail is archived, by a copy to an address (the taps patch).
//!
//! A line is `LETTER:PATTERN:ADDRESS`. LETTER is `F` (from: the sender fits), `T` (to: a recipient fits) or `A` (all: either). PATTERN is
//! one of [`wire::pattern`]: an address, `@domain`, a wildcard, or an extended regular expression, in any case; it may hold colons.
//! ADDRESS gets the copy. Without a letter, as in the first version of the patch, it is `A`. The first line that fits counts, so that
//! there is one copy of a message. Followed as it changes; a file with a mistake is not used at all.

use users::list_lines;
use wire::{Address, Patterns};

use crate::{ControlError, Root, Watched};

/// Lines of the file: each may be held against each recipient.
pub const LINES_MAX: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    From,
    To,
    All,
}

/// Lines that follow each other and say the same of different addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tap {
    side: Side,
    patterns: Patterns,
    archive: Address,
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taps(Vec<Tap>);

impl Taps {
    /// Reads the file as it is now; without one nothing is archived.
    ///
    /// # Errors
    /// Unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let text = root.text("taps")?.unwrap_or_default();
        Self::parse(&text).map_err(|problem| ControlError::new(&root.control_file("taps"), problem))
    }

    /// The file as it changes.
    #[must_use]
    pub fn watched(root: &Root) -> Watched<Self> {
        Watched::new(root.control_file("taps"), |text| Self::parse(text.unwrap_or_default()))
    }

    /// # Errors
    /// Which line is wrong, and what to write.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let mut taps: Vec<(Side, Address, Vec<&[u8]>)> = Vec::new();
        let mut count = 0usize;
        for (number, line) in list_lines(text) {
            let wrong = |problem: &str| format!("line {number}: `{}` {problem}", wire::escape::visible(line));
            count = count.saturating_add(1);
            if count > LINES_MAX {
                return Err(format!("has more than {LINES_MAX} lines"));
            }
            let (side, pattern, archive) = split(line).map_err(wrong)?;
            Patterns::parse([pattern]).map_err(|error| wrong(error.problem))?;
            match taps.last_mut().filter(|(of, to, _)| *of == side && *to == archive) {
                Some((_, _, patterns)) => patterns.push(pattern),
                None => taps.push((side, archive, vec![pattern])),
            }
        }
        let tap = |(side, archive, patterns)| {
            let patterns = Patterns::parse::<&[u8]>(patterns).map_err(|error| error.problem.to_owned())?;
            Ok(Tap { side, patterns, archive })
        };
        taps.into_iter().map(tap).collect::<Result<_, String>>().map(Self)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who gets a copy of a message. He may be one of its recipients.
    #[must_use]
    pub fn archive(&self, sender: &Address, recipients: &[Address]) -> Option<&Address> {
        let from = |tap: &Tap| tap.side != Side::To && tap.patterns.fit(sender.as_bytes());
        let to = |tap: &Tap| tap.side != Side::From && recipients.iter().any(|recipient| tap.patterns.fit(recipient.as_bytes()));
        self.0.iter().find(|tap| from(tap) || to(tap)).map(|tap| &tap.archive)
    }

    /// Does this address get copies?
    #[must_use]
    pub fn is_archive(&self, address: &Address) -> bool {
        self.0.iter().any(|tap| tap.archive.as_bytes().eq_ignore_ascii_case(address.as_bytes()))
    }
}

/// The address stands behind the last colon: an expression may hold some, too (`[[:alpha:]]`).
fn split(line: &[u8]) -> Result<(Side, &[u8], Address), &'static str> {
    let colon = line.iter().rposition(|b| *b == b':').ok_or("has no colon; write A:pattern:address")?;
    let (pattern, archive) = line.split_at_checked(colon).unwrap_or_default();
    let (side, pattern) = match pattern {
        [letter, b':', rest @ ..] if b"FTA".contains(&letter.to_ascii_uppercase()) => (side_of(*letter), rest),
        [b'F' | b'T' | b'A'] => return Err("has no pattern; write A:pattern:address"),
        all => (Side::All, all),
    };
    if pattern.is_empty() {
        return Err("has no pattern; write A:pattern:address");
    }
    let archive = archive.get(1..).unwrap_or_default();
    match Address::new(archive) {
        Ok(address) if address.domain().is_some_and(|domain| !domain.is_empty()) && !address.local().is_empty() => {
            Ok((side, pattern, address))
        }
        _ => Err("has no whole address behind its last colon; write A:pattern:address"),
    }
}

fn side_of(letter: u8) -> Side {
    match letter.to_ascii_uppercase() {
        b'F' => Side::From,
        b'T' => Side::To,
        _ => Side::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(text: &str) -> Address {
        Address::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_first_line_that_fits_says_who_gets_a_copy() {
        let text = "# the archive\nF:.*@from.test:f@arch.test\nT:.*@to.test:t@arch.test\nA:boss@all.test:boss@arch.test\n\
            A:*@all.test:all@arch.test\nold@form.test:o@arch.test\n.*@old.test:o@arch.test\n\
            T:^[[:digit:]]+@n.test$:n@arch.test\n";
        let taps = Taps::parse(text.as_bytes()).unwrap();
        for (sender, recipients, archive) in [
            ("x@FROM.test", "y@else.test", Some("f@arch.test")),
            ("x@else.test", "y@from.test", None),
            ("x@else.test", "y@else.test z@To.Test", Some("t@arch.test")),
            ("x@to.test", "y@else.test", None),
            ("x@from.test", "y@to.test", Some("f@arch.test")),
            ("boss@all.test", "y@else.test", Some("boss@arch.test")),
            ("x@all.test", "y@else.test", Some("all@arch.test")),
            ("", "y@all.test", Some("all@arch.test")),
            ("", "y@else.test", None),
            ("old@FORM.test", "y@else.test", Some("o@arch.test")),
            ("x@else.test", "y@old.test", Some("o@arch.test")),
            ("x@else.test", "123@n.test", Some("n@arch.test")),
            ("x@else.test", "a123@n.test", None),
        ] {
            let recipients: Vec<Address> = recipients.split(' ').map(a).collect();
            let got = taps.archive(&a(sender), &recipients).map(ToString::to_string);
            assert_eq!(got.as_deref(), archive, "{sender} to {recipients:?}");
        }
        assert!(taps.is_archive(&a("N@arch.test")) && !taps.is_archive(&a("x@arch.test")));
        assert_eq!(Taps::parse(b"").unwrap().archive(&a("x@y"), &[a("y@z")]), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("nothing\n", "line 1: `nothing` has no colon"),
            ("A:x@y.test\n", "has no pattern"),
            ("A::x@y.test\n", "has no pattern"),
            (":x@y.test\n", "has no pattern"),
            ("A:.*@x.test:\n", "no whole address"),
            ("A:.*@x.test:archive\n", "no whole address"),
            ("A:.*@x.test:@y.test\n", "no whole address"),
            ("# x\nA:(@x.test:a@y.test\n", "line 2: `A:(@x.test:a@y.test` "),
        ] {
            let problem = Taps::parse(text.as_bytes()).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
        let long = "A:x@y.test:a@y.test\n".repeat(LINES_MAX + 1);
        assert!(Taps::parse(long.as_bytes()).is_err());
    }
}
