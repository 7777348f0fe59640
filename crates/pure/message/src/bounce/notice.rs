//! Reports that the sender asked for and that are no bounces: a message went where it should, or it takes longer (RFC 3461 §6.1).
//!
//! Their text for people is none of QSBMF, so that nobody who reads bounces by that takes a recipient off his list. Only the header of the
//! message comes back (RFC 3461 §4.3).

use wire::Address;
use wire::civil::Civil;

use super::report::{self, Failure};
use super::{Bounce, Original, Sender, close_copy, copy_type, header, part, status_type, text_type};

/// What a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The actions of the recipients tell how.
    Success,
    /// Nobody has to do anything.
    Delay,
}

/// Builds a report about these recipients to `to`, with the null sender. `random` as in [`super::build`].
#[must_use]
pub fn notice(
    about: Notice,
    to: &Address,
    from: Sender<'_>,
    original: Original<'_>,
    recipients: &[Failure<'_>],
    now_s: u64,
    random: u128,
) -> Bounce {
    let boundary = format!("qmail-{random:032x}");
    let text = text(about, from.bounce_host.as_bytes(), original, recipients);
    let subject = match about {
        Notice::Success => "delivery report",
        Notice::Delay => "delayed, still trying",
    };
    let mut out = header(from, to, subject, now_s, random, &boundary);
    part(&mut out, &boundary, &text_type(&text));
    out.extend_from_slice(&text);
    part(&mut out, &boundary, &format!("Content-Type: {}\n", status_type(original.is_smtputf8)));
    out.extend_from_slice(&report::delivery_status(from.bounce_host.as_bytes(), original, recipients));
    part(&mut out, &boundary, &copy_type(false, original.is_smtputf8));
    Bounce { epilogue: close_copy(&mut out, &boundary, original.sender), prologue: out, copy_len: original.header_len }
}

fn text(about: Notice, host: &[u8], original: Original<'_>, recipients: &[Failure<'_>]) -> Vec<u8> {
    let mut out = [b"Hello, this is the qmail-send program at ", host, b".\n"].concat();
    match about {
        Notice::Success => {
            out.extend_from_slice(b"You asked to be told what became of your message to the following addresses.\n\n")
        }
        Notice::Delay => {
            let until = original.retry_until_s.map(|s| format!(" until {}", Civil::from_unix(s).rfc5322())).unwrap_or_default();
            let text = "Your message has not been delivered to the following addresses so far.\nYou need not send it again: I go on trying";
            out.extend_from_slice(format!("{text}{until}.\n\n").as_bytes());
        }
    }
    let len_max = report::report_len_max(recipients.len());
    for recipient in recipients {
        let said: &[u8] = match about {
            Notice::Success => recipient.action.words().as_bytes(),
            Notice::Delay => recipient.report,
        };
        report::paragraph(&Failure { report: said, ..*recipient }, len_max, &mut out);
    }
    out
}
