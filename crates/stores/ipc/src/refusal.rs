//! Why a message was not taken, in the wording of reports: the text ends with its code, `text (#5.7.1)`.
//!
//! qmail-send's answers and the texts of programs with the qmail-queue interface become the same thing here. Used by qmail-inject,
//! sendmail, qmail-queue, qmail-local and qmail-smtpd's classic face.

use std::fmt;

/// A message that was not taken. In doubt it is temporary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub is_permanent: bool,
    /// Not empty, without a line end.
    pub text: Vec<u8>,
}

impl Refusal {
    /// Again later. The text ends with its code, `(#4.3.0)`.
    #[must_use]
    pub fn temporary(text: &str) -> Self {
        Self { is_permanent: false, text: text.into() }
    }

    /// Never. The text ends with its code, `(#5.3.0)`.
    #[must_use]
    pub fn permanent(text: &str) -> Self {
        Self { is_permanent: true, text: text.into() }
    }

    /// From the texts of the qmail-queue interface: `D` or `Z` and more than one byte of text.
    #[must_use]
    pub fn of_report(report: &[u8]) -> Option<Self> {
        let (letter, text) = report.split_first()?;
        let text = text.trim_ascii_end();
        (matches!(letter, b'D' | b'Z') && text.len() > 1).then(|| Self { is_permanent: *letter == b'D', text: text.to_vec() })
    }

    /// From qmail-send's answer, whose text may begin with an enhanced status code; reports have it at the end.
    #[must_use]
    pub fn of_answer(is_permanent: bool, text: &[u8]) -> Self {
        let default: &[u8] = if is_permanent { b"5.3.0" } else { b"4.3.0" };
        let text = text.trim_ascii();
        let first = text.split(|b| *b == b' ').next().unwrap_or_default();
        let (code, words) = if is_code(first) {
            (first, text.get(first.len()..).unwrap_or_default().trim_ascii_start())
        } else {
            (default, text)
        };
        let words: &[u8] = if words.is_empty() { b"message refused" } else { words };
        Self { is_permanent, text: [words, b" (#", code, b")"].concat() }
    }

    /// Is it worth trying again?
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        !self.is_permanent
    }

    /// As the qmail-queue interface has it: `D…` or `Z…`.
    #[must_use]
    pub fn report(&self) -> Vec<u8> {
        [if self.is_permanent { b"D" } else { b"Z" }, self.text.as_slice()].concat()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&wire::escape::visible(&self.text))
    }
}

/// An enhanced status code of a failure (RFC 3463 §2).
fn is_code(word: &[u8]) -> bool {
    let mut numbers = word.split(|b| *b == b'.');
    let is_number = |number: &[u8]| (1..=3).contains(&number.len()) && number.iter().all(u8::is_ascii_digit);
    matches!(numbers.next(), Some(b"4" | b"5")) && numbers.clone().count() == 2 && numbers.all(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_in_both_forms() {
        for (permanent, text, report) in [
            (false, &b"4.3.1 spool is full"[..], &b"Zspool is full (#4.3.1)"[..]),
            (true, b"5.7.1 no\n", b"Dno (#5.7.1)"),
            (true, b"no", b"Dno (#5.3.0)"),
            (true, b"5.7 no", b"D5.7 no (#5.3.0)"),
            (true, b"5..7 no", b"D5..7 no (#5.3.0)"),
            (false, b"", b"Zmessage refused (#4.3.0)"),
            (false, b"4.3.1", b"Zmessage refused (#4.3.1)"),
            (false, b"1.2.3.4 said no", b"Z1.2.3.4 said no (#4.3.0)"),
        ] {
            assert_eq!(
                Refusal::of_answer(permanent, text).report().escape_ascii().to_string(),
                report.escape_ascii().to_string()
            );
        }
        assert_eq!(Refusal::of_report(b"Dno way (#5.7.1)\n"), Some(Refusal::permanent("no way (#5.7.1)")));
        assert_eq!(Refusal::of_report(b"Zlater"), Some(Refusal::temporary("later")));
        for short in [&b""[..], b"D", b"Dx", b"Xlong enough", b"Z \n"] {
            assert_eq!(Refusal::of_report(short), None);
        }
        assert_eq!(Refusal::temporary("a\x1b[0m").to_string(), "a\\x1b[0m");
    }
}
