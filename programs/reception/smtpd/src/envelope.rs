//! An envelope as items of the queue protocol.

use ipc::queue::{FLAG_EIGHT_BIT, FLAG_REQUIRETLS, FLAG_SMTPUTF8, Item};
use smtp::server::{Asked, Envelope};
use std::iter::once;

/// The items before the text, in order: the message, what is asked for of it, and each recipient with what is asked for of him.
pub(crate) fn items(envelope: Envelope) -> impl Iterator<Item = Item<'static>> {
    let Envelope { sender, recipients, eight_bit, utf8, requiretls, asked } = envelope;
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let flags = flag(eight_bit, FLAG_EIGHT_BIT) | flag(utf8, FLAG_SMTPUTF8) | flag(requiretls, FLAG_REQUIRETLS);
    let begin = Item::Begin { sender, flags };
    let Asked { ret, envid, hold_until_s, deliver_by, priority, recipients: parameters } = asked;
    let of_message = ret.map(Item::Ret).into_iter().chain(envid.map(Item::Envid)).chain(hold_until_s.map(Item::HoldUntil));
    let of_message = of_message.chain(deliver_by.map(Item::DeliverBy)).chain(priority.map(Item::Priority));
    let mut parameters = parameters.into_iter().peekable();
    let recipients = (0_u32..).zip(recipients).flat_map(move |(place, recipient)| {
        let asked = parameters.next_if(|(of, _)| *of == place).map(|(_, asked)| asked).unwrap_or_default();
        let (notify, orcpt) = (asked.notify.map(Item::Notify), asked.orcpt.map(Item::Orcpt));
        once(Item::Recipient(recipient)).chain(notify).chain(orcpt)
    });
    once(begin).chain(of_message).chain(recipients)
}

#[cfg(test)]
mod tests {
    use super::*;
    use smtp::command::RcptParameters;
    use wire::dsn::{Envid, Notify, Orcpt, Ret};
    use wire::{Address, DeliverBy, Priority};

    #[test]
    fn everything_stands_behind_what_it_is_about() {
        let address = |text: &[u8]| Address::new(text).unwrap();
        let asked = Asked {
            ret: Some(Ret::Full),
            envid: Envid::new(b"x"),
            hold_until_s: Some(9),
            deliver_by: DeliverBy::from_bits(10, 1),
            priority: Priority::new(3),
            recipients: vec![(1, RcptParameters { notify: Some(Notify::NEVER), orcpt: Orcpt::new(b"rfc822;b") })],
        };
        let recipients = vec![address(b"a"), address(b"b"), address(b"c")];
        let envelope = Envelope { sender: address(b"s"), recipients, eight_bit: true, utf8: true, requiretls: true, asked };
        let wanted = [
            Item::Begin { sender: address(b"s"), flags: 7 },
            Item::Ret(Ret::Full),
            Item::Envid(Envid::new(b"x").unwrap()),
            Item::HoldUntil(9),
            Item::DeliverBy(DeliverBy::from_bits(10, 1).unwrap()),
            Item::Priority(Priority::new(3).unwrap()),
            Item::Recipient(address(b"a")),
            Item::Recipient(address(b"b")),
            Item::Notify(Notify::NEVER),
            Item::Orcpt(Orcpt::new(b"rfc822;b").unwrap()),
            Item::Recipient(address(b"c")),
        ];
        assert_eq!(items(envelope).collect::<Vec<_>>(), wanted);
    }
}
