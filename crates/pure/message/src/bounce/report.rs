//! The two texts of a bounce: paragraphs for people (QSBMF) and fields for programs (RFC 3464).

use wire::civil::Civil;
use wire::{Address, Domain};

use super::Original;
use crate::status::{self, Status};
use wire::quote;

/// Most bytes of one report that are shown (reports are at most this long on their way here, too).
pub(super) const REPORT_LEN_MAX: usize = 4096;
/// Most bytes of all reports together: with more failures each gets its share, but [`REPORT_LEN_MIN`].
const REPORTS_LEN_MAX: usize = 4 << 20;
const REPORT_LEN_MIN: usize = 256;
/// RFC 5322 §2.1.1: no line is longer, without its end.
const LINE_LEN_MAX: usize = 998;
/// Lines of reports are broken here, so that there is room for the name of a field or a fold.
const REPORT_LINE_LEN_MAX: usize = 900;

/// What became of a recipient (RFC 3464 §2.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Failed,
    Delayed,
    Delivered,
    /// Taken by a server that makes no reports.
    Relayed,
    /// Forwarded from his address.
    Expanded,
}

impl Action {
    fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Delayed => "delayed",
            Self::Delivered => "delivered",
            Self::Relayed => "relayed",
            Self::Expanded => "expanded",
        }
    }

    /// For people.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Failed => "It could not be delivered.",
            Self::Delayed => "It has not been delivered so far.",
            Self::Delivered => "It was delivered.",
            Self::Relayed => "It was handed to a mail server that does not report what becomes of it.",
            Self::Expanded => "It was forwarded from there; nobody reports what becomes of it.",
        }
    }

    fn status(self, report: &[u8]) -> String {
        match self {
            Self::Failed => Status::of_report(report).to_string(),
            // Whatever a report says, it is not over.
            Self::Delayed => Status::of_report(report).as_temporary().to_string(),
            Self::Delivered | Self::Relayed | Self::Expanded => "2.0.0".to_owned(),
        }
    }
}

/// One recipient that a report is about.
#[derive(Debug, Clone, Copy)]
pub struct Failure<'a> {
    pub action: Action,
    /// As the sender wrote it: without the prefix of a virtual domain.
    pub recipient: &'a Address,
    /// What RCPT gave as ORCPT (RFC 3461 §4.2), `TYPE;ADDRESS`, decoded.
    pub original_recipient: Option<&'a [u8]>,
    /// What the delivery said, for people.
    pub report: &'a [u8],
    /// Name of the server that refused it, if known; otherwise the report is searched for its address.
    pub remote_mta: Option<&'a [u8]>,
}

/// The paragraphs up to the break line, with the blank line before it.
pub(super) fn qsbmf(host: &Domain, is_double: bool, failures: &[Failure<'_>]) -> Vec<u8> {
    let mut out = b"Hi. This is the qmail-send program at ".to_vec();
    out.extend_from_slice(host.as_bytes());
    out.extend_from_slice(if is_double {
        b".\nI tried to deliver a bounce message to this address, but the bounce bounced!\n\n"
    } else {
        b".\nI'm afraid I wasn't able to deliver your message to the following addresses.\n\
          This is a permanent error; I've given up. Sorry it didn't work out.\n\n"
    });
    let len_max = report_len_max(failures.len());
    for failure in failures {
        paragraph(failure, len_max, &mut out);
    }
    out
}

pub(super) fn report_len_max(count: usize) -> usize {
    REPORTS_LEN_MAX.checked_div(count).unwrap_or(REPORT_LEN_MAX).clamp(REPORT_LEN_MIN, REPORT_LEN_MAX)
}

/// `<address>:`, the report, an empty line.
pub(super) fn paragraph(failure: &Failure<'_>, len_max: usize, out: &mut Vec<u8>) {
    out.push(b'<');
    for c in cut(&text_of(failure.recipient.as_bytes()), "<>:".len()).chars() {
        push_char(if c.is_control() { '_' } else { c }, out);
    }
    out.extend_from_slice(b">:\n");
    // An empty line would end the paragraph: as in the classic program it becomes a `/` before the next.
    let mut slashes = 0;
    for line in lines(clip(failure.report, len_max)) {
        if line.is_empty() && slashes < REPORT_LINE_LEN_MAX {
            slashes = slashes.saturating_add(1);
            continue;
        }
        out.extend(std::iter::repeat_n(b'/', slashes));
        if slashes.saturating_add(line.len()) > REPORT_LINE_LEN_MAX {
            out.push(b'\n');
            slashes = 0;
        }
        // A line like a break line is indented: there are parsers that look at lines, not at paragraphs.
        if slashes == 0 && line.starts_with("---") {
            out.push(b' ');
        }
        out.extend_from_slice(if line.is_empty() { b"/" } else { line.as_bytes() });
        out.push(b'\n');
        slashes = 0;
    }
    out.push(b'\n');
}

/// The lines of a report: valid UTF-8, no control bytes but TAB, none empty at the end, none over [`REPORT_LINE_LEN_MAX`] bytes.
fn lines(report: &[u8]) -> Vec<String> {
    let text = text_of(report);
    let mut out = Vec::new();
    for line in text.trim_end_matches(['\n', '\r']).split('\n') {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let mut part = String::new();
        for c in line.chars() {
            if part.len().saturating_add(c.len_utf8()) > REPORT_LINE_LEN_MAX {
                out.push(std::mem::take(&mut part));
            }
            part.push(if c.is_control() && c != '\t' { '?' } else { c });
        }
        out.push(part);
    }
    if text.is_empty() {
        out.clear();
    }
    out
}

/// Bytes as UTF-8; what is not becomes `?`.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace(char::REPLACEMENT_CHARACTER, "?")
}

fn push_char(c: char, out: &mut Vec<u8>) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

fn clip(report: &[u8], len_max: usize) -> &[u8] {
    report.get(..len_max).unwrap_or(report)
}

/// The body of the second part: one block for the message, one for each recipient (RFC 3464 §2.1).
pub(super) fn delivery_status(host: &[u8], original: Original<'_>, failures: &[Failure<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(id) = original.envelope_id {
        field(&mut out, "Original-Envelope-Id: ", &ascii_unless(original.is_smtputf8, id));
    }
    field(&mut out, "Reporting-MTA: dns; ", &ascii_unless(original.is_smtputf8, host));
    field(&mut out, "Arrival-Date: ", &Civil::from_unix(original.arrival_s).rfc5322());
    let len_max = report_len_max(failures.len());
    for failure in failures {
        out.push(b'\n');
        recipient_block(failure, len_max, original, &mut out);
    }
    out
}

fn recipient_block(failure: &Failure<'_>, len_max: usize, original: Original<'_>, out: &mut Vec<u8>) {
    let is_smtputf8 = original.is_smtputf8;
    let report = clip(failure.report, len_max);
    if let Some(given) = failure.original_recipient {
        field(out, "Original-Recipient: ", &ascii_unless(is_smtputf8, given));
    }
    let kind = if failure.recipient.is_utf8_only() { "utf-8" } else { "rfc822" };
    let address = quote::address(failure.recipient.as_bytes());
    field(out, &format!("Final-Recipient: {kind}; "), &ascii_unless(is_smtputf8, &address));
    field(out, "Action: ", failure.action.name());
    field(out, "Status: ", &failure.action.status(report));
    if !matches!(failure.action, Action::Failed | Action::Delayed) {
        return;
    }
    if let Some(name) = failure.remote_mta {
        field(out, "Remote-MTA: dns; ", &ascii_unless(is_smtputf8, name));
    } else if let Some(address) = status::remote_address(report) {
        field(out, "Remote-MTA: dns; ", &format!("[{address}]"));
    }
    let (kind, said) = match status::remote_reply(report) {
        Some(reply) => ("Diagnostic-Code: smtp; ", reply),
        None => ("Diagnostic-Code: x-qmail; ", report),
    };
    diagnostic(out, kind, said, is_smtputf8);
    if let Some(until_s) = original.retry_until_s.filter(|_| failure.action == Action::Delayed) {
        field(out, "Will-Retry-Until: ", &Civil::from_unix(until_s).rfc5322());
    }
}

/// The lines of a report as one folded field (RFC 3464 §2.3.6).
fn diagnostic(out: &mut Vec<u8>, name: &str, report: &[u8], is_smtputf8: bool) {
    let lines: Vec<String> = lines(report).into_iter().filter(|line| !line.trim().is_empty()).collect();
    let Some((first, rest)) = lines.split_first() else { return };
    field(out, name, &ascii_unless(is_smtputf8, first.trim().as_bytes()));
    for line in rest {
        field(out, " ", &ascii_unless(is_smtputf8, line.trim().as_bytes()));
    }
}

/// One line of a field, cut where it is too long; control characters become `?`.
fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    for c in cut(value, name.len()).chars() {
        push_char(if c.is_control() { '?' } else { c }, out);
    }
    out.push(b'\n');
}

/// As much of `text` as fits into a line with `taken` other bytes.
fn cut(text: &str, taken: usize) -> &str {
    text.get(..text.floor_char_boundary(LINE_LEN_MAX.saturating_sub(taken))).unwrap_or_default()
}

/// A message/delivery-status is ASCII: other characters are written `\x{HEX}` (RFC 6533 §3, utf-8-addr-xtext), bytes that are no
/// UTF-8 as `?`. A message/global-delivery-status keeps them.
fn ascii_unless(is_smtputf8: bool, value: &[u8]) -> String {
    let text = text_of(value);
    if is_smtputf8 || text.is_ascii() {
        return text;
    }
    let mut out = String::new();
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            out.push_str(&format!("\\x{{{:X}}}", u32::from(c)));
        }
    }
    out
}
