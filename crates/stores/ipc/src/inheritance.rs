//! What a copy that a delivery forwards has of the message it is a copy of.
//!
//! It travels with the job and the worker's request as plain bytes, which qmail-lspawn does not read. A forward keeps its sender: reports
//! about the copy go where those about the message would (RFC 3461 §5.2.7.2), and what was asked for of the transfer holds for it. Where
//! the sender is replaced by that of a list, the copy is a message of its own (RFC 3461 §5.2.7.3), which owes the first one
//! nothing but its protection and its priority.

use crate::Malformed;
use crate::field::{Bytes, Field as _};
use crate::options::{Options, RecipientOptions};
use crate::queue::{FLAG_ARCHIVED, FLAG_REQUIRETLS, FLAG_SMTPUTF8, Item};
use wire::dsn::Notify;

record! {
    /// Of one recipient of a message.
    pub struct Inheritance {
        /// Those of [`FLAGS`] that the message has.
        flags: u32,
        options: Options,
    }
}

/// Flags that hold for every copy (RFC 8689 §5, RFC 6531 §3.5); what is archived is so once.
pub const FLAGS: u32 = FLAG_REQUIRETLS | FLAG_SMTPUTF8 | FLAG_ARCHIVED;

impl Inheritance {
    #[must_use]
    pub fn nothing() -> Self {
        Self { flags: 0, options: Options::none() }
    }

    /// What copies for `recipient` have of a message with these flags and options. Whoever forwards tells that the message was expanded,
    /// so nobody tells the sender of a success again (RFC 3461 §5.2.7.4).
    #[must_use]
    pub fn of(flags: u32, options: Option<&Options>, recipient: u32) -> Self {
        let options = options.map_or_else(Options::none, |options| options.for_recipients(&[recipient]));
        let mut options = Options { hold_until_s: None, ..options };
        for asked in &mut options.recipients {
            asked.notify = asked.notify.map(Notify::without_success);
        }
        Self { flags: flags & FLAGS, options }
    }

    /// As a message has it; empty for nothing.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::new();
        if *self != Self::nothing() {
            self.put(&mut out);
        }
        out.into()
    }

    /// Undoes [`Inheritance::to_bytes`].
    ///
    /// # Errors
    /// Anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.is_empty() {
            return Ok(Self::nothing());
        }
        let mut rest = bytes;
        let inherited = Self::take(&mut rest)?;
        if rest.is_empty() { Ok(inherited) } else { Err(Malformed) }
    }

    /// For a copy whose sender is the one of a list.
    #[must_use]
    pub fn for_list(self) -> Self {
        Self { options: Options { priority: self.options.priority, ..Options::none() }, ..self }
    }

    /// For an answer to the message: as well protected.
    #[must_use]
    pub fn for_reply(&self) -> Self {
        Self { flags: self.flags & FLAG_REQUIRETLS, options: Options::none() }
    }

    /// What is asked for of the copy, behind `Begin`.
    pub fn of_message(&self) -> impl Iterator<Item = Item<'static>> {
        let Options { ret, envid, deliver_by, priority, .. } = &self.options;
        let reports = ret.map(Item::Ret).into_iter().chain(envid.clone().map(Item::Envid));
        reports.chain(deliver_by.map(Item::DeliverBy)).chain(priority.map(Item::Priority))
    }

    /// What is asked for of each of its recipients, behind him.
    pub fn of_recipient(&self) -> impl Iterator<Item = Item<'static>> {
        let asked = self.options.recipients.first().cloned();
        let RecipientOptions { notify, orcpt, .. } =
            asked.unwrap_or(RecipientOptions { recipient: 0, notify: None, orcpt: None });
        notify.map(Item::Notify).into_iter().chain(orcpt.map(Item::Orcpt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::FLAG_EIGHT_BIT;
    use proptest::prelude::*;
    use wire::dsn::{Envid, Orcpt, Ret};
    use wire::{DeliverBy, Priority};

    fn options(notify: &[u8]) -> Options {
        let of = |recipient, notify| RecipientOptions { recipient, notify, orcpt: Orcpt::new(b"rfc822;a@x") };
        Options {
            ret: Some(Ret::Headers),
            envid: Envid::new(b"id"),
            hold_until_s: Some(7),
            deliver_by: DeliverBy::from_bits(9, 1),
            priority: Priority::new(4),
            recipients: vec![of(2, Notify::parse(notify)), of(3, None)],
        }
    }

    #[test]
    fn a_forward_has_what_its_recipient_has_and_a_list_its_protection() {
        let flags = FLAG_EIGHT_BIT | FLAG_REQUIRETLS;
        let inherited = Inheritance::of(flags, Some(&options(b"SUCCESS,DELAY")), 2);
        assert_eq!((Inheritance::from_bytes(&inherited.to_bytes()), inherited.flags), (Ok(inherited.clone()), FLAG_REQUIRETLS));
        let (envid, by) = (Envid::new(b"id").unwrap(), DeliverBy::from_bits(9, 1).unwrap());
        let priority = Item::Priority(Priority::new(4).unwrap());
        let of_message = [Item::Ret(Ret::Headers), Item::Envid(envid), Item::DeliverBy(by), priority.clone()];
        assert_eq!(inherited.of_message().collect::<Vec<_>>(), of_message);
        let orcpt = Item::Orcpt(Orcpt::new(b"rfc822;a@x").unwrap());
        let delay = Item::Notify(Notify::parse(b"DELAY").unwrap());
        assert_eq!(inherited.of_recipient().collect::<Vec<_>>(), [delay, orcpt.clone()]);
        let success = Inheritance::of(flags, Some(&options(b"SUCCESS")), 2);
        assert_eq!(success.of_recipient().collect::<Vec<_>>(), [Item::Notify(Notify::NEVER), orcpt.clone()]);
        assert_eq!(Inheritance::of(flags, Some(&options(b"SUCCESS")), 3).of_recipient().collect::<Vec<_>>(), [orcpt]);
        let list = inherited.for_list();
        assert_eq!((list.flags, list.of_message().collect::<Vec<_>>()), (FLAG_REQUIRETLS, vec![priority]));
        assert_eq!(list.of_recipient().count(), 0);
        assert!(Inheritance::of(FLAG_EIGHT_BIT, None, 0).to_bytes().is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            if let Ok(inherited) = Inheritance::from_bytes(&bytes) {
                prop_assert!(inherited == Inheritance::nothing() || *inherited.to_bytes() == bytes[..]);
            }
        }
    }
}
