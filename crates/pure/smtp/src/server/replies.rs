//! The server's reply lines. Every one but the greeting, HELO, EHLO and 354 has an enhanced status code (RFC 2034, RFC 3463).

use super::exchange::QueueAnswer;
use crate::reply::Enhanced;
use wire::Priority;

pub(super) const NOOP: &str = "250 2.0.0 ok";
pub(super) const RSET: &str = "250 2.0.0 flushed";
pub(super) const MAIL: &str = "250 2.1.0 ok";
pub(super) const RCPT: &str = "250 2.1.5 ok";
pub(super) const DATA: &str = "354 go ahead";
pub(super) const HELP: &str = "214 2.0.0 qmail-rs; commands as in RFC 5321, BDAT as in RFC 3030";
pub(super) const VRFY: &str = "252 2.0.0 send some mail, i'll try my best";
pub(super) const LOGGED_IN: &str = "235 2.7.0 welcome";

pub(super) const DELIVER_BY_TOO_SOON: &str = "554 5.4.7 that is less time to deliver by than I promise anything for";
pub(super) const DELIVER_BY_HELD: &str = "501 5.5.4 the message would be held beyond the time to deliver it by";

pub(super) const UNIMPLEMENTED: &str = "502 5.5.1 unimplemented";
pub(super) const LINE_TOO_LONG: &str = "500 5.5.2 command line too long";
pub(super) const NUL: &str = "500 5.5.2 a command cannot hold a NUL";
pub(super) const NO_ARGUMENT: &str = "501 5.5.4 no argument, please";
pub(super) const MAIL_FIRST: &str = "503 5.5.1 MAIL first";
pub(super) const RCPT_FIRST: &str = "503 5.5.1 RCPT first";
pub(super) const BDAT_OPEN: &str = "503 5.5.1 only BDAT or RSET until the last chunk is here";
pub(super) const BDAT_SIZE: &str = "501 5.5.4 no chunk size that can be read, so no telling where the next command starts";
pub(super) const PATH_FORM: &str = "555 5.5.4 syntax error";
pub(super) const PATH_TOO_LONG: &str = "555 5.5.4 syntax error: address too long";
pub(super) const PARAMETER: &str = "555 5.5.4 parameter not recognized";
pub(super) const VALUE: &str = "501 5.5.4 that parameter makes no sense";
pub(super) const SENDER_SYNTAX: &str = "501 5.1.7 no sender address that can be read";
pub(super) const RECIPIENT_SYNTAX: &str = "501 5.1.3 no recipient address that can be read";
pub(super) const NEEDS_UTF8: &str = "553 5.6.7 an address like that needs SMTPUTF8";
pub(super) const BAD_MAIL_FROM: &str = "553 5.7.1 sorry, your envelope sender is in my badmailfrom list";
pub(super) const BAD_RCPT_TO: &str = "553 5.7.1 sorry, your envelope recipient has been denied";
pub(super) const BAD_HELO: &str = "553 5.7.1 sorry, your HELO host name has been denied";
pub(super) const NULL_SENDER: &str = "450 4.7.1 null senders temporarily denied";
pub(super) const RELAY_TEST: &str = "553 5.7.1 sorry, no source routes: a local part with % ! or @ is not taken here";
/// [`super::Connection::listed`] has the words.
pub(super) const LISTED: &str = "553 5.7.1 sorry, your address is listed";
pub(super) const NOT_VALID: &str = "553 5.7.1 sorry, this recipient is not in my validrcptto list";
pub(super) const OVER_LIMIT: &str = "421 4.7.0 you have exceeded your messaging limits";
pub(super) const TOO_EARLY: &str = "554 5.5.1 you speak before my greeting, which no mail server does";
pub(super) const HOOK_FAILED: &str = "451 4.3.0 a program that has to be asked cannot tell now, try again later";
pub(super) const NO_MAILBOX: &str = "550 5.1.1 sorry, no mailbox here by that name";
pub(super) const NO_RELAY: &str = "553 5.7.1 sorry, that domain isn't in my list of allowed rcpthosts";
pub(super) const CANNOT_TELL: &str = "451 4.3.0 cannot check that recipient now, try again later";
pub(super) const FULL: &str = "552 5.2.2 sorry, the mailbox is full or has no room for a message of that size";
pub(super) const FULL_NOW: &str = "452 4.2.2 the mailbox is full or has no room for a message of that size, try again later";
pub(super) const TOO_MANY_RECIPIENTS: &str = "452 4.5.3 too many recipients, send the rest in another transaction";
pub(super) const TOO_LARGE: &str = "552 5.3.4 sorry, that message size exceeds my databytes limit";
pub(super) const TOO_MANY_HOPS: &str = "554 5.4.6 too many hops, this message is looping";
pub(super) const BARE_LF: &str = "550 5.6.11 a CR or LF that is not part of a CRLF; see https://cr.yp.to/docs/smtplf.html";
pub(super) const TEXT_LINE_TOO_LONG: &str = "554 5.6.0 a line of this message is too long";

pub(super) const START_TLS: &str = "220 2.0.0 ready to start TLS";
pub(super) const STARTTLS_ARGUMENT: &str = "501 5.5.4 STARTTLS has no parameters";
pub(super) const TLS_AGAIN: &str = "503 5.5.1 this connection has TLS already";
pub(super) const NO_TLS_NOW: &str = "454 4.7.0 TLS is not available now, try again later";
pub(super) const BEHIND_STARTTLS: &str = "421 4.7.0 nothing may be sent behind STARTTLS before TLS has started";
pub(super) const TLS_FIRST: &str = "530 5.7.0 STARTTLS first, then log in";

pub(super) const LOGIN_FIRST: &str = "530 5.7.0 log in first";
pub(super) const NO_LOGIN_IN_CLEAR: &str = "538 5.7.11 a password may not be sent over this connection, it is not encrypted";
pub(super) const AUTH_AGAIN: &str = "503 5.5.1 you are logged in already";
pub(super) const AUTH_BEFORE_EHLO: &str = "503 5.5.1 EHLO first";
pub(super) const AUTH_IN_TRANSACTION: &str = "503 5.5.1 no AUTH within a transaction";
pub(super) const AUTH_SYNTAX: &str = "501 5.5.4 AUTH needs a mechanism and at most one response";
pub(super) const AUTH_MECHANISM: &str = "504 5.5.4 that mechanism is not known here";
pub(super) const AUTH_CANCELLED: &str = "501 5.7.0 cancelled";
pub(super) const AUTH_RESPONSE: &str = "501 5.5.2 no response that can be read";
pub(super) const AUTH_LINE_TOO_LONG: &str = "500 5.5.6 response too long";
pub(super) const WRONG_LOGIN: &str = "535 5.7.8 wrong name or password";
pub(super) const CANNOT_LOG_IN: &str = "454 4.7.0 cannot check that login now, try again later";

pub(super) const NOT_YOUR_SENDER: &str = "550 5.7.1 sorry, you may not send as that address";
pub(super) const CANNOT_TELL_SENDER: &str = "451 4.3.0 cannot check that sender now, try again later";
pub(super) const NOT_YOUR_HEADER: &str = "550 5.7.1 sorry, you may not send as an address that From or Sender names";
pub(super) const UNCLEAR_HEADER: &str = "550 5.7.1 sorry, it is not clear who wrote this: one From field with plain addresses of yours, please, and no line that is no field";
pub(super) const HEADER_TOO_LARGE: &str = "552 5.3.4 sorry, the header of this message is too large";
pub(super) const CANNOT_TELL_HEADER: &str = "451 4.3.0 cannot check that header now, try again later";
pub(super) const MESSAGES_PER_HOUR: &str = "450 4.7.1 your account has sent too many messages within an hour, try again later";
pub(super) const RECIPIENTS_PER_HOUR: &str =
    "450 4.7.1 your account has sent to too many recipients within an hour, try again later";
pub(super) const MESSAGES_PER_DAY: &str = "450 4.7.1 your account has sent too many messages within a day, try again later";
pub(super) const RECIPIENTS_PER_DAY: &str =
    "450 4.7.1 your account has sent to too many recipients within a day, try again later";
pub(super) const XCLIENT_SYNTAX: &str = "501 5.5.4 no XCLIENT attributes that can be read";
pub(super) const XCLIENT_IN_TRANSACTION: &str = "503 5.5.1 no XCLIENT within a transaction";

pub(super) const TIMEOUT: &str = "421 4.4.2 timeout";
pub(super) const TOO_MANY_ERRORS: &str = "421 4.7.0 too many errors";
pub(super) const TOO_MANY_BAD_RECIPIENTS: &str = "421 4.7.0 too many unknown recipients";
pub(super) const TOO_MANY_FAILED_LOGINS: &str = "421 4.7.0 too many failed logins";
pub(super) const TOO_MUCH_HELD: &str = "421 4.7.0 too much input before my answer";
pub(super) const GOING_DOWN: &str = "421 4.3.2 going down, try again in a moment";

/// Too many connections; said by the driver instead of a greeting.
pub const TOO_MANY_CONNECTIONS: &str = "421 4.7.0 too many connections, try again later";
/// The control files cannot be read; said by the classic face instead of a greeting.
pub const NO_CONTROLS: &str = "421 4.3.0 unable to read controls";

/// Longest text of the queue or of a filter in a reply, so that the line stays below 512 bytes (RFC 5321 §4.5.3.1.5).
const TEXT_LEN_MAX: usize = 400;

/// To MAIL and to the end of a message whose priority was lowered (RFC 6710 §4.2).
pub(super) fn new_priority(priority: Priority) -> String {
    format!("250 2.3.6 {priority} is the new priority assigned to the message")
}

/// The reply to the end of the message.
pub(super) fn queued(answer: &QueueAnswer, unix_s: u64, new_priority: Option<Priority>) -> Vec<u8> {
    match answer {
        QueueAnswer::Accepted { qp, .. } if new_priority.is_some() => {
            let said = new_priority.map(self::new_priority).unwrap_or_default();
            format!("{said}, ok {unix_s} qp {qp}").into_bytes()
        }
        QueueAnswer::Accepted { qp, .. } => format!("250 2.0.0 ok {unix_s} qp {qp}").into_bytes(),
        QueueAnswer::Temporary(text) => with_text(b'4', text),
        QueueAnswer::Permanent(text) => with_text(b'5', text),
    }
}

/// The words of another program as one safe line of a reply.
pub(super) fn safe(text: &[u8]) -> Vec<u8> {
    text.iter().take(TEXT_LEN_MAX).map(|&b| if b.is_ascii_graphic() || b == b' ' { b } else { b'?' }).collect()
}

/// Is it a line of a reply behind which another comes (RFC 5321 §4.2.1)?
pub(super) fn continues(line: &[u8]) -> bool {
    matches!(line, [b'2'..=b'5', b, c, b'-', ..] if b.is_ascii_digit() && c.is_ascii_digit())
}

/// A program's refusal: `CODE text` with a code of refusal. Whatever else it says is temporary.
pub(super) fn refusal(text: &[u8]) -> Vec<u8> {
    let text = safe(text);
    match text.trim_ascii() {
        [b'4' | b'5', b, c, b' ', ..] if b.is_ascii_digit() && c.is_ascii_digit() => text.trim_ascii().to_vec(),
        code @ [class @ (b'4' | b'5'), b, c] if b.is_ascii_digit() && c.is_ascii_digit() => {
            [code, b" ", &[*class], b".7.1 refused"].concat()
        }
        text => [b"451 4.3.0 ", text].concat(),
    }
}

/// A line that refuses as a letter and a text with its code at the end, as QMTP and the qmail-queue interface have it.
pub(super) fn report(line: &[u8]) -> Vec<u8> {
    let class = if line.first() == Some(&b'5') { b'5' } else { b'4' };
    let text = safe(line.get(3..).unwrap_or_default());
    let (code, words) = take_code(class, &text).unwrap_or((None, text.trim_ascii()));
    let code = code.unwrap_or(if class == b'5' { b"5.0.0" } else { b"4.0.0" });
    let words = if words.is_empty() { &b"refused"[..] } else { words };
    [if class == b'5' { b"D" } else { b"Z" }, words, b" (#", code, b")"].concat()
}

/// Does the refusal of a recipient say something about the client? Temporary ones say something about us or about the size of a list; so does
/// a full mailbox.
pub(super) fn is_clients_fault(line: &[u8]) -> bool {
    line.starts_with(b"5") && line != FULL.as_bytes()
}

/// One safe line of another program's text, with the enhanced code it brought along if that has the right class.
fn with_text(class: u8, text: &[u8]) -> Vec<u8> {
    let printable = safe(text);
    let (code, words) = take_code(class, &printable).unwrap_or((None, &printable));
    let code = code.unwrap_or(if class == b'4' { b"4.3.0" } else { b"5.3.0" });
    let basic: &[u8] = match (class, code) {
        // A full system is 452 by RFC 5321 §4.2.3, whatever it is full of.
        (b'4', b"4.3.1") => b"452",
        (b'4', _) => b"451",
        _ => b"554",
    };
    let words = if words.is_empty() { &b"the queue refused this message"[..] } else { words };
    [basic, b" ", code, b" ", words].concat()
}

type Coded<'a> = (Option<&'a [u8]>, &'a [u8]);

/// `4.3.1 words` or `words (#4.3.1)`, as code and words; `None` if there is no code.
fn take_code(class: u8, text: &[u8]) -> Option<Coded<'_>> {
    let (code, words) = match text.trim_ascii().strip_suffix(b")") {
        Some(open) if memchr::memmem::rfind(open, b"(#").is_some() => {
            let at = memchr::memmem::rfind(open, b"(#")?;
            (open.get(at.checked_add(2)?..)?, open.get(..at)?.trim_ascii_end())
        }
        _ => {
            let text = text.trim_ascii();
            text.split_at(text.iter().position(|b| *b == b' ').unwrap_or(text.len()))
        }
    };
    // The code and nothing else.
    Enhanced::parse(code).filter(|found| found.to_string().as_bytes() == code)?;
    Some(((code.first() == Some(&class)).then_some(code), words.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_queue_become_one_safe_line() {
        for (class, text, line) in [
            (b'4', &b"qq temporary problem (#4.3.0)"[..], "451 4.3.0 qq temporary problem"),
            (b'4', b"4.3.1 disk full", "452 4.3.1 disk full"),
            (b'4', b"disk full (#4.3.1)", "452 4.3.1 disk full"),
            (b'5', b"spam (#5.7.1)", "554 5.7.1 spam"),
            (b'5', b"spam", "554 5.3.0 spam"),
            (b'5', b"", "554 5.3.0 the queue refused this message"),
            (b'5', b"5.7.2", "554 5.7.2 the queue refused this message"),
            (b'5', b"5.7.2 ", "554 5.7.2 the queue refused this message"),
            (b'4', b"5.7.1 wrong class", "451 4.3.0 wrong class"),
            (b'4', b"4.3.1\r\n250 ok", "451 4.3.0 4.3.1??250 ok"),
            (b'5', b"a (#5.7.1) b", "554 5.3.0 a (#5.7.1) b"),
            (b'5', b"a (#5.7.1 b)", "554 5.3.0 a (#5.7.1 b)"),
            (b'5', b"(#)", "554 5.3.0 (#)"),
            (b'5', b"5..1 x", "554 5.3.0 5..1 x"),
            (b'5', b"5.07.1 x", "554 5.3.0 5.07.1 x"),
            (b'5', b"5.7.1.1 x", "554 5.3.0 5.7.1.1 x"),
        ] {
            assert_eq!(String::from_utf8(with_text(class, text)).unwrap(), line, "{}", text.escape_ascii());
        }
        assert!(with_text(b'4', &[b'x'; 5000]).len() < 510);
        assert_eq!(queued(&QueueAnswer::Accepted { id: None, qp: 7 }, 9, None), b"250 2.0.0 ok 9 qp 7");
    }
}
