//! What a program in the place of qmail-remote printed, read as the classic qmail-rspawn reads it (qmail-remote(8), RESULTS).
//!
//! A report about one recipient (`r` accepted, `h` refused for good, `s` for now), then one about the message (`K`, `Z`, `D`), each with a
//! NUL behind it. The message's letter counts; `s` and `h` override it. Unlike there, what is no report is temporary, as are all exit codes but
//! 100 and 112, which no shell has for troubles of its own (1, 2, 126, 127): our own mistake bounces no mail. Total, and no longer than what
//! it read.

use ipc::field::Verdict;
use sys::spawn::Ended;

pub const CRASHED: &[u8] = b"qmail-remote crashed.\n";
pub const NOT_RUN: &[u8] = b"Unable to run qmail-remote.\n";
pub const NO_OUTPUT: &[u8] = b"qmail-remote produced no output.\n";
pub const MANGLED: &[u8] = b"The report of the program in the place of qmail-remote is mangled. (#4.3.0)\n";

/// The verdict on the one recipient, and its text.
#[must_use]
pub fn read(ended: Ended, output: &[u8]) -> (Verdict, Vec<u8>) {
    match ended {
        Ended::Signal(_) | Ended::Unknown => return (Verdict::Deferral, CRASHED.to_vec()),
        Ended::Code(0) => {}
        Ended::Code(100 | 112) => return (Verdict::Failure, NOT_RUN.to_vec()),
        Ended::Code(_) => return (Verdict::Deferral, NOT_RUN.to_vec()),
    }
    if output.is_empty() {
        return (Verdict::Deferral, NO_OUTPUT.to_vec());
    }
    parse(output).unwrap_or_else(|| (Verdict::Deferral, MANGLED.to_vec()))
}

fn parse(output: &[u8]) -> Option<(Verdict, Vec<u8>)> {
    // What follows the last NUL is no report: it was cut off.
    let end = output.iter().rposition(|b| *b == 0)?;
    let reports = || output.get(..end).unwrap_or_default().split(|b| *b == 0);
    let (first, about_recipient) = reports().next().and_then(<[u8]>::split_first)?;
    let (message, about_message) = reports().find_map(|report| Some((verdict(*report.first()?)?, report.get(1..)?)))?;
    let result = match first {
        b's' => Verdict::Deferral,
        b'h' => Verdict::Failure,
        b'r' | b'K' | b'Z' | b'D' => message,
        _ => return None,
    };
    let mut text = about_recipient.to_vec();
    // The report about the message is of interest where it is no better than the one about the recipient.
    if verdict(*first).is_none() && rank(message) <= rank(result) {
        text.extend_from_slice(about_message);
    }
    Some((result, text))
}

fn verdict(letter: u8) -> Option<Verdict> {
    match letter {
        b'K' => Some(Verdict::Success),
        b'Z' => Some(Verdict::Deferral),
        b'D' => Some(Verdict::Failure),
        _ => None,
    }
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Failure => 0,
        Verdict::Deferral => 1,
        Verdict::Success => 2,
    }
}

/// Any output has a verdict, and success only where the program said so.
#[doc(hidden)]
pub fn fuzz(output: &[u8]) {
    let (verdict, text) = read(Ended::Code(0), output);
    let fixed = [NO_OUTPUT, MANGLED].contains(&text.as_slice());
    assert!(fixed || text.len() <= output.len());
    assert!(verdict != Verdict::Success || output.contains(&b'K'));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reports_of_one_recipient() {
        use Verdict::{Deferral, Failure, Success};
        for (output, verdict, text) in [
            (&b"r\0Ktaken\n\0"[..], Success, &b"taken\n"[..]),
            (b"rsaid\n\0Ktaken\n\0", Success, b"said\ntaken\n"),
            (b"hno such\n\0DGiving up\n\0", Failure, b"no such\nGiving up\n"),
            (b"snot now\n\0DGiving up\n\0", Deferral, b"not now\nGiving up\n"),
            (b"snot now\n\0ZGiving up\n\0", Deferral, b"not now\nGiving up\n"),
            // Others of the transaction were accepted.
            (b"hno such\n\0Ktaken\n\0", Failure, b"no such\n"),
            (b"hno such\n\0Zdied\n\0", Failure, b"no such\n"),
            (b"snot now\n\0Ktaken\n\0", Deferral, b"not now\n"),
            (b"r\0Zdied\n\0", Deferral, b"died\n"),
            (b"r\0Dno\n\0", Failure, b"no\n"),
            (b"Zno connection\n\0", Deferral, b"no connection\n"),
            (b"Dno host\n\0", Failure, b"no host\n"),
            (b"K\0", Success, b""),
            (b"K\0rest of a report", Success, b""),
        ] {
            assert_eq!(read(Ended::Code(0), output), (verdict, text.to_vec()), "{}", output.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_report_is_temporary() {
        for output in [&b"Ktaken"[..], b"hello\n", b"hello\n\0", b"x\0K\0", b"r\0", b"hno\0", b"\0", b"\0K\0", b"k\0"] {
            assert_eq!(read(Ended::Code(0), output), (Verdict::Deferral, MANGLED.to_vec()), "{}", output.escape_ascii());
        }
        assert_eq!(read(Ended::Code(0), b""), (Verdict::Deferral, NO_OUTPUT.to_vec()));
    }

    #[test]
    fn exit_codes_count_before_what_was_said() {
        for (ended, verdict, text) in [
            (Ended::Signal(11), Verdict::Deferral, CRASHED),
            (Ended::Code(111), Verdict::Deferral, NOT_RUN),
            (Ended::Unknown, Verdict::Deferral, CRASHED),
            (Ended::Code(127), Verdict::Deferral, NOT_RUN),
            (Ended::Code(1), Verdict::Deferral, NOT_RUN),
            (Ended::Code(2), Verdict::Deferral, NOT_RUN),
            (Ended::Code(255), Verdict::Deferral, NOT_RUN),
            (Ended::Code(100), Verdict::Failure, NOT_RUN),
            (Ended::Code(112), Verdict::Failure, NOT_RUN),
        ] {
            assert_eq!(read(ended, b"r\0K\0"), (verdict, text.to_vec()), "{ended:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_verdict_and_success_only_where_one_is_said(output in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&output);
        }
    }
}
