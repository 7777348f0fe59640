//! The warning that a mailbox is nearly full: a message in the mailbox itself, once each time that it comes to that, and once a day at most
//! (the ledger of the quota sees to both). It is no delivery of anybody's: if it cannot be written, there is none.

use maildir::{Body, Letter, Maildir};
use message::notice::Notice;
use std::fs::File;

/// What is said where control/quotawarningtext says nothing.
const TEXT: &str = "Your mailbox {address} is at {percent} % of its quota or above.\n\nWhen it is full, mail for you cannot be \
    delivered any more and goes back to its senders.\nPlease remove messages that you do not need.\n";

/// Whom to tell what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Warning<'a> {
    /// The user's address as the sender had it.
    pub(crate) recipient: &'a [u8],
    pub(crate) domain: &'a [u8],
    /// Empty: [`TEXT`].
    pub(crate) text: &'a [u8],
    pub(crate) percent: u32,
}

/// Puts the warning into the mailbox, if the last letter made it due.
pub(crate) fn put_if_due(maildir: &Maildir, host: &[u8], warning: Warning<'_>) {
    if !maildir.take_crossing() {
        return;
    }
    let Ok(random) = sys::random::bytes16() else { return };
    let text = if warning.text.is_empty() { TEXT } else { std::str::from_utf8(warning.text).unwrap_or(TEXT) };
    let percent = warning.percent.to_string();
    let address = wire::escape::visible(warning.recipient);
    let text = text.replace("{percent}", &percent).replace("{address}", &address);
    let from = [b"postmaster@", warning.domain].concat();
    let notice = Notice {
        from: &from,
        to: warning.recipient,
        subject: format!("Your mailbox is {percent} % full").as_bytes(),
        text: text.as_bytes(),
        now_s: sys::clock::unix_s(),
        unique: random.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)),
        kind: "quota",
    }
    .build();
    let Ok(body) = sys::memfd::sealed(&notice).and_then(|fd| Body::new(File::from(fd))) else { return };
    let _ = maildir.deliver_anyway(host, Letter { trace: b"Return-Path: <>\n", body: &body });
}
