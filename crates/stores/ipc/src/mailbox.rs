//! What an account says of deliveries into its mailbox: from qmail-auth, which has the accounts, to the recipient's own qmail-local.
//!
//! It travels as bytes in the route, the job and the request to the worker; qmail-send and qmail-lspawn hand it on unread. So nothing
//! that runs as root reads what users may write (the text of a reply), and a user's settings are carried out with the user's rights.

use crate::field::Bytes;
use crate::{Malformed, Message as _};
use wire::Address;

messages! {
    /// One kind, with a version before it.
    pub enum Mailbox {
        1 => Settings { settings: Settings },
    }
}

record! {
    /// Everything unset is the default: an empty mailbox message.
    #[derive(Default)]
    pub struct Settings {
        /// Bytes and messages that the mailbox holds; 0: no bound.
        quota_bytes: u64,
        quota_messages: u64,
        /// A message for a full mailbox waits instead of going back.
        defers: bool,
        /// Where mail goes that no `.qmail` file speaks for.
        forward: Vec<Address>,
        keeps_copy: bool,
        vacation: Option<Vacation>,
        /// A message that takes the mailbox over so many percent of its quota brings the owner a warning; 0: none.
        warns_at: u32,
        /// Its text; empty: qmail-local's own.
        warning: Bytes,
    }
}

record! {
    /// The reply to those who write while the user is away.
    pub struct Vacation {
        /// The user's own address.
        address: Address,
        /// Aliases that lead to the user and to nobody else.
        others: Vec<Address>,
        /// Empty: made from the message's.
        subject: Bytes,
        text: Bytes,
        /// UNIX seconds; 0: no bound.
        from_s: u64,
        until_s: u64,
        /// Between two replies to the same sender.
        days: u32,
    }
}

impl Settings {
    /// As it travels; nothing set is no bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        if *self == Self::default() {
            return Bytes::default();
        }
        Mailbox::Settings { settings: self.clone() }.encode().into()
    }

    /// # Errors
    /// The bytes are of another version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let Mailbox::Settings { settings } = Mailbox::decode(bytes)?;
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_set_is_no_bytes_and_everything_comes_back() {
        assert!(Settings::default().to_bytes().is_empty());
        assert_eq!(Settings::from_bytes(b""), Ok(Settings::default()));
        let settings = Settings { quota_bytes: 5, forward: vec![Address::new(b"a@b").unwrap()], ..Settings::default() };
        let bytes = settings.to_bytes();
        assert_eq!(Settings::from_bytes(&bytes), Ok(settings));
        assert_eq!(Settings::from_bytes(&bytes[1..]), Err(Malformed));
    }
}
