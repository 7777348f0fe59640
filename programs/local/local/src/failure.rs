//! How a delivery fails: for ever or for now, and the text of the report.

use ipc::field::Verdict;
use std::io;

/// A delivery that did not succeed. In doubt it is temporary: mail may be late, never lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub is_permanent: bool,
    /// One line without its LF; empty when a program has said what there is to say.
    pub text: Vec<u8>,
}

impl Failure {
    #[must_use]
    pub fn temporary(text: impl Into<Vec<u8>>) -> Self {
        Self { is_permanent: false, text: text.into() }
    }

    #[must_use]
    pub fn permanent(text: impl Into<Vec<u8>>) -> Self {
        Self { is_permanent: true, text: text.into() }
    }

    /// `Unable to …: strerror. (#4.3.0)`
    #[must_use]
    pub fn system(what: &str, error: &io::Error) -> Self {
        Self::temporary(format!("{what}: {}. (#4.3.0)", maildir::errno_text(error)))
    }

    /// 100 or 111 (qmail-local(8)).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if self.is_permanent { dotqmail::exit::PERMANENT } else { dotqmail::exit::TEMPORARY }
    }

    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.is_permanent { Verdict::Failure } else { Verdict::Deferral }
    }

    /// The text as a line of a report.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        if self.text.is_empty() { Vec::new() } else { [&self.text[..], b"\n"].concat() }
    }
}

impl From<dotqmail::Refusal> for Failure {
    fn from(refusal: dotqmail::Refusal) -> Self {
        Self { is_permanent: !refusal.is_temporary(), text: refusal.to_string().into() }
    }
}

impl From<ipc::Refusal> for Failure {
    fn from(refusal: ipc::Refusal) -> Self {
        Self { is_permanent: refusal.is_permanent, text: refusal.text }
    }
}

impl From<maildir::Error> for Failure {
    fn from(error: maildir::Error) -> Self {
        Self { is_permanent: !error.is_temporary(), text: error.to_string().into() }
    }
}
