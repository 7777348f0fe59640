//! The texts that end up in logs and bounces, in qmail-remote's words: tools that read bounces know them by heart.
//!
//! A text is UTF-8 without control characters but LF and TAB, ends in LF and is at most [`REPORT_LEN_MAX`] bytes long.

use crate::reply::Reply;

/// Longest text of one recipient: a reply and what stands around it. The spool keeps its front, 4 KiB.
pub const REPORT_LEN_MAX: usize = 5500;

/// What became of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// `K`: the server has taken responsibility.
    Delivered(String),
    /// `Z`: try again later.
    Deferred(String),
    /// `D`: never.
    Failed(String),
    /// Not tried for want of room in this transaction: put it into the next one (RFC 5321 §4.5.3.1.10, RFC 9422).
    Next,
}

impl Outcome {
    /// By the class of a reply: 5xx fails, anything else that is no success defers.
    pub(super) fn refused(reply: &Reply, text: String) -> Self {
        if reply.is_permanent() { Self::Failed(text) } else { Self::Deferred(text) }
    }

    /// The report's letter; a recipient left for the next transaction counts as deferred.
    #[must_use]
    pub fn letter(&self) -> u8 {
        match self {
            Self::Delivered(_) => b'K',
            Self::Deferred(_) | Self::Next => b'Z',
            Self::Failed(_) => b'D',
        }
    }

    /// The report's text.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Delivered(text) | Self::Deferred(text) | Self::Failed(text) => text,
            Self::Next => "",
        }
    }
}

/// `STATEMENT` and what the remote host said; `after` follows in a line of its own.
pub(super) fn with_reply(statement: &str, reply: &Reply, after: Option<&str>) -> String {
    let after = after.map(|text| format!("{text}\n")).unwrap_or_default();
    let mut text = format!("{statement}\nRemote host said: {}", reply.text());
    text.truncate(text.floor_char_boundary(REPORT_LEN_MAX.saturating_sub(after.len() + 1)));
    text.push('\n');
    text.push_str(&after);
    text
}

/// A text that may be too long, cut so that it ends in LF.
pub(super) fn clipped(mut text: String) -> String {
    if text.len() > REPORT_LEN_MAX {
        text.truncate(text.floor_char_boundary(REPORT_LEN_MAX - 1));
        text.push('\n');
    }
    text
}
