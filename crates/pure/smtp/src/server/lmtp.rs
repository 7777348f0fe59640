//! What is different when the client speaks LMTP (RFC 2033): the machine is the same, the differences stand here.
//!
//! - LHLO in the place of HELO and EHLO, which are refused (§4.1).
//! - Behind the text stands one reply for each recipient that was accepted, in the order of the RCPTs, also of one that was given twice
//!   (§4.2); behind BDAT LAST too (§4.3). The queue takes a message whole, so they are alike: all 250 means durable for all.
//! - Only recipients that this system delivers for pass, whoever the client is: LMTP is the last hop (§3), relaying is SMTP's. So neither
//!   rcpthosts nor a relay client's network counts, and there is no login to be had.

use super::Session;
use super::exchange::Actions;
use crate::command::Command;

/// RFC 2033 §4.1 wants a 500 for HELO and EHLO.
pub(super) const NOT_SMTP: &str = "500 5.5.1 this is LMTP: say LHLO; there is no login";
/// A domain that is none of ours.
pub(super) const NOT_DELIVERED_HERE: &str = "550 5.1.2 sorry, mail for that domain is not delivered here";

impl Session {
    /// Does the command belong to the protocol of this connection?
    pub(super) fn speaks(&self, command: &Command<'_>) -> bool {
        match command {
            Command::Helo(_) | Command::Ehlo(_) | Command::Auth(_) => !self.peer.is_lmtp,
            Command::Lhlo(_) => self.peer.is_lmtp,
            _ => true,
        }
    }

    /// The replies behind the first one, to the other recipients of a message.
    pub(super) fn repeat_for_each(&self, recipients: u64, reply: &[u8], out: &mut Actions) {
        if self.peer.is_lmtp {
            (1..recipients).for_each(|_| out.reply(reply));
        }
    }
}

/// The `with` of the Received field (RFC 3848, RFC 6531 §4.3).
pub(super) fn protocol(is_protected: bool, is_utf8: bool) -> &'static str {
    match (is_protected, is_utf8) {
        (false, false) => "LMTP",
        (true, false) => "LMTPS",
        (false, true) => "UTF8LMTP",
        (true, true) => "UTF8LMTPS",
    }
}
