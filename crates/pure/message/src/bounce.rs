//! Bounces: what becomes of a message that cannot be delivered, and the text that tells its sender.
//!
//! A bounce is a multipart/report (RFC 6522) of three parts: the text of qmail-send for people, the same as fields for programs
//! (RFC 3464), and the message or its header. It also is a QSBMF bounce (cr.yp.to/proto/qsbmf.txt): parsers of that format
//! want a body that begins with `Hi. This is the`, paragraphs split by blank lines, and a break paragraph that begins with `-`. The
//! preamble before the first MIME boundary, which MIME readers skip, is exactly that text, and the boundary line, which begins with
//! `--`, is the break. The first part repeats the text with the classic break line, for readers that decode MIME first.
//! A preamble longer than [`PREAMBLE_LEN_MAX`] is left out.
//!
//! Guarantees: whatever bytes a remote server or a recipient's address holds, they stay within their paragraph and their field
//! (no line of theirs ends it, opens a boundary or is longer than 998 bytes); text parts are valid UTF-8; no bare CR is added.
//! The original is not touched here: the caller streams [`Bounce::copy_len`] bytes of it between prologue and epilogue.
//! Used by qmail-send.

mod notice;
mod report;

use wire::civil::Civil;
use wire::{Address, Domain};

use crate::verp;
use wire::quote;

pub use notice::{Notice, notice};
pub use report::{Action, Failure};

/// A longer QSBMF text does not stand twice in the bounce.
pub const PREAMBLE_LEN_MAX: usize = 64 * 1024;

/// What to do about a message with failed recipients (qmail-send(8)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Tell the sender; the envelope sender is null.
    Bounce { to: Address },
    /// The message was a bounce itself: tell the postmaster; the envelope sender is `#@[]`.
    DoubleBounce { to: Address },
    /// The message was a bounce and nobody wants to know (`doublebounceto` with an empty first line).
    DiscardDouble,
    /// The message was a double bounce: nothing can be done (`triple bounce: discarding …`).
    DiscardTriple,
}

impl Decision {
    /// For a message from `sender`. `double_bounce_to` is `None` when double bounces are thrown away.
    #[must_use]
    pub fn of(sender: &Address, double_bounce_to: Option<&Address>) -> Self {
        if sender.as_bytes() == verp::DOUBLE_BOUNCE_SENDER {
            return Self::DiscardTriple;
        }
        let base = verp::base(sender);
        match double_bounce_to {
            _ if !base.is_null() => Self::Bounce { to: base },
            Some(to) => Self::DoubleBounce { to: to.clone() },
            None => Self::DiscardDouble,
        }
    }

    /// Envelope sender and recipient of the bounce to send, if there is one.
    #[must_use]
    pub fn envelope(&self) -> Option<(Address, &Address)> {
        match self {
            Self::Bounce { to } => Some((Address::null(), to)),
            Self::DoubleBounce { to } => Some((Address::new(verp::DOUBLE_BOUNCE_SENDER).unwrap_or_default(), to)),
            Self::DiscardDouble | Self::DiscardTriple => None,
        }
    }
}

/// The message that failed, as far as the bounce needs to know it.
#[derive(Debug, Clone, Copy)]
pub struct Original<'a> {
    /// Its envelope sender.
    pub sender: &'a Address,
    /// When qmail-send took it.
    pub arrival_s: u64,
    /// Its size in bytes.
    pub len: u64,
    /// How much of that is header ([`crate::header::Scanner::header_len`]).
    pub header_len: u64,
    /// It came with SMTPUTF8 (RFC 6531).
    pub is_smtputf8: bool,
    /// What MAIL gave as ENVID (RFC 3461 §4.4), decoded.
    pub envelope_id: Option<&'a [u8]>,
    /// The sender wants its header alone back (RET=HDRS, RFC 3461 §4.3).
    pub headers_only: bool,
    /// When it is given up, for reports of a delay.
    pub retry_until_s: Option<u64>,
}

/// Who sends the bounce.
#[derive(Debug, Clone, Copy)]
pub struct Sender<'a> {
    /// control/bouncefrom
    pub bounce_from: &'a [u8],
    /// control/bouncehost
    pub bounce_host: &'a Domain,
    /// control/bouncemaxbytes: of a longer message only the header is returned; `None` returns everything.
    pub copy_len_max: Option<u64>,
}

/// A bounce ready to be sent: prologue, `copy_len` bytes from the start of the original, epilogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounce {
    pub prologue: Vec<u8>,
    pub copy_len: u64,
    pub epilogue: Vec<u8>,
}

/// Builds the bounce that `decision` asks for; `None` if it asks for none. `random` makes boundary and Message-ID: 128 bits from
/// the system's generator, so that no message can hold the boundary.
#[must_use]
pub fn build(
    decision: &Decision,
    from: Sender<'_>,
    original: Original<'_>,
    failures: &[Failure<'_>],
    now_s: u64,
    random: u128,
) -> Option<Bounce> {
    let (_, to) = decision.envelope()?;
    let is_double = matches!(decision, Decision::DoubleBounce { .. });
    let boundary = format!("qmail-{random:032x}");
    let text = report::qsbmf(from.bounce_host, is_double, failures);
    let host = from.bounce_host.as_bytes();

    let mut out = header(from, to, "failure notice", now_s, random, &boundary);
    out.push(b'\n');
    if text.len() <= PREAMBLE_LEN_MAX {
        out.extend_from_slice(&text);
    }
    part(&mut out, &boundary, &text_type(&text));
    out.extend_from_slice(&text);
    out.extend_from_slice(break_line(is_double));
    part(&mut out, &boundary, &format!("Content-Type: {}\n", status_type(original.is_smtputf8)));
    out.extend_from_slice(&report::delivery_status(host, original, failures));

    let whole = !original.headers_only && from.copy_len_max.is_none_or(|max| original.len <= max);
    let copy_len = if whole { original.len } else { original.header_len.min(from.copy_len_max.unwrap_or(u64::MAX)) };
    part(&mut out, &boundary, &copy_type(whole, original.is_smtputf8));
    Some(Bounce { epilogue: close_copy(&mut out, &boundary, original.sender), prologue: out, copy_len })
}

fn status_type(is_smtputf8: bool) -> &'static str {
    if is_smtputf8 { "message/global-delivery-status" } else { "message/delivery-status" }
}

/// What stands before the copy of the original and, returned, what follows it.
fn close_copy(out: &mut Vec<u8>, boundary: &str, sender: &Address) -> Vec<u8> {
    out.extend_from_slice(b"Return-Path: <");
    // The mark of VERP is no part of the address that a reader is told.
    out.extend_from_slice(&quote::address(verp::base(sender).as_bytes()));
    out.extend_from_slice(b">\n");
    format!("\n--{boundary}--\n").into_bytes()
}

/// The classic fields in the classic order, then those of MIME.
fn header(from: Sender<'_>, to: &Address, subject: &str, now_s: u64, random: u128, boundary: &str) -> Vec<u8> {
    let date = Civil::from_unix(now_s);
    let Civil { year, month, day, hour, minute, second, .. } = date;
    let mut out = format!("Date: {}\nFrom: ", date.rfc5322()).into_bytes();
    out.extend_from_slice(&quote::local_part(from.bounce_from));
    out.push(b'@');
    out.extend_from_slice(from.bounce_host.as_bytes());
    out.extend_from_slice(b"\nTo: ");
    out.extend_from_slice(&quote::address(to.as_bytes()));
    out.extend_from_slice(format!("\nSubject: {subject}\n").as_bytes());
    let id = random >> 64;
    let id = format!("Message-ID: <{year}{month:02}{day:02}{hour:02}{minute:02}{second:02}.{id:016x}.qmail@");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(from.bounce_host.as_bytes());
    // RFC 3834 §5: programs must not answer this.
    out.extend_from_slice(b">\nAuto-Submitted: auto-replied\nMIME-Version: 1.0\n");
    let report_type = "Content-Type: multipart/report; report-type=delivery-status;\n boundary=";
    out.extend_from_slice(format!("{report_type}\"{boundary}\"\nContent-Transfer-Encoding: 8bit\n").as_bytes());
    out
}

/// Opens a part: the line end that belongs to the boundary (RFC 2046 §5.1.1), the boundary, its header, an empty line.
fn part(out: &mut Vec<u8>, boundary: &str, header: &str) {
    out.extend_from_slice(format!("\n--{boundary}\n{header}\n").as_bytes());
}

fn text_type(text: &[u8]) -> String {
    let charset = if text.is_ascii() { "us-ascii" } else { "utf-8" };
    let encoding = if text.is_ascii() { "7bit" } else { "8bit" };
    format!("Content-Type: text/plain; charset={charset}\nContent-Transfer-Encoding: {encoding}\n")
}

/// RFC 6522 §3: the whole message or its header; RFC 6533 §6.3 for SMTPUTF8. 8bit, since nobody has looked at its bytes.
fn copy_type(whole: bool, is_smtputf8: bool) -> String {
    let kind = match (whole, is_smtputf8) {
        (true, false) => "message/rfc822",
        (true, true) => "message/global",
        (false, false) => "text/rfc822-headers",
        (false, true) => "message/global-headers",
    };
    format!("Content-Type: {kind}\nContent-Transfer-Encoding: 8bit\n")
}

fn break_line(is_double: bool) -> &'static [u8] {
    if is_double {
        b"--- Below this line is the original bounce.\n\n"
    } else {
        b"--- Below this line is a copy of the message.\n\n"
    }
}

#[cfg(test)]
mod tests;
