//! maildirwatch(1): shows the new messages of the Maildir in MAILDIR on a terminal, again every 30 seconds, until it is stopped.

use std::ffi::OsString;
use std::io::Write as _;
use std::time::Duration;

use maildir::{Entry, Mailbox};
use message::header::fields;
use tool::{End, Name, TEMPORARY, input};

const ME: Name = Name("maildirwatch");
const PAUSE: Duration = Duration::from_secs(30);
/// Longest text of a message that is shown.
const TEXT_LEN_MAX: usize = 158;
/// Most messages on the screen.
const MESSAGES_MAX: usize = 1000;

/// The program; it ends when its output does.
///
/// # Errors
/// The Maildir cannot be read; temporary.
pub fn main(_: &[OsString]) -> Result<u8, End> {
    loop {
        // Opened anew each time: it may be another one by now.
        let mailbox = crate::open(ME)?;
        let entries = mailbox.list().map_err(|error| ME.temporary(error.to_string()))?;
        let mut screen = b"\x1b[;H\x1b[;J".to_vec();
        for entry in entries.iter().filter(|entry| entry.is_new()).take(MESSAGES_MAX) {
            screen.extend(lines(&mailbox, entry));
        }
        if sys::standard::output().and_then(|mut out| out.write_all(&screen)).is_err() {
            return Err(End::silent(TEMPORARY));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Nothing for a message that has gone meanwhile.
fn lines(mailbox: &Mailbox, entry: &Entry) -> Vec<u8> {
    let head = mailbox.open_message(entry).and_then(|mut message| input::head(&mut message));
    head.map_or_else(|_| Vec::new(), |head| shown(&head))
}

fn shown(head: &[u8]) -> Vec<u8> {
    let (mut sender, mut recipient, mut from, mut text) = (b"?".to_vec(), b"?".to_vec(), Vec::new(), Vec::new());
    let mut header_len = 0usize;
    for field in fields(head).take_while(|field| field.name().is_some()) {
        header_len = header_len.saturating_add(field.raw().len());
        if field.is(b"return-path") {
            sender = field.value();
        } else if field.is(b"delivered-to") {
            recipient = field.value();
        } else if field.is(b"from") {
            from = field.raw().trim_ascii_end().to_vec();
        } else if field.is(b"subject") {
            text.extend([&field.value()[..], b"/"].concat());
        }
    }
    text.extend_from_slice(head.get(header_len..).unwrap_or_default());
    text.truncate(TEXT_LEN_MAX);
    let safe =
        |bytes: &[u8], other: u8| -> Vec<u8> { bytes.iter().map(|b| if (32..=126).contains(b) { *b } else { other }).collect() };
    let mut out = [b"FROM ", &safe(&sender, b'?')[..], b" TO <", &safe(&recipient, b'?'), b">\n"].concat();
    if !from.is_empty() {
        out.extend([b"\x1b[1m", &safe(&from, b'/')[..], b"\x1b[0m\n"].concat());
    }
    out.extend([&safe(&text, b'/')[..], b"\n\n"].concat());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_shows() {
        let head = b"Return-Path: <s\x1b@x>\nDelivered-To: joe@h\nFrom: Me <s@x>\nSubject: hi\n\nbody\n";
        assert_eq!(shown(head), b"FROM <s?@x> TO <joe@h>\n\x1b[1mFrom: Me <s@x>\x1b[0m\nhi//body/\n\n");
        assert_eq!(shown(b""), b"FROM ? TO <?>\n\n\n");
    }
}
