//! The queue protocol on `queue.sock` (service roles) and `inject.sock` (anyone): how a message is handed to qmail-send.
//!
//! A datagram is the version byte and then one or more [`Item`]s; a small message fits in one datagram. One message at a time:
//! `Begin` · `Recipient`… · `Data`… · `Commit`, then exactly one [`Answer`]; the connection may then be used again. Where the text comes
//! before the envelope (QMTP, QMQP), `Begin` · `Data`… · `Recipient`… · `From` · `Commit`, so that nobody has to keep it. Closing
//! before `Commit` abandons the message; after it qmail-send owns the message, whether or not the answer is read. The body is
//! in qmail's LF form without the `Received: (qmail …)` line, which qmail-send prepends itself. Kept compatible for ever: what is new is a
//! new item with a new number, and who does not know it closes the connection, so that nothing asked for is silently left out.

use crate::field::{Bytes, Field, put_bytes, take_bytes};
use crate::import::Became;
use crate::{DATAGRAM_LEN_MAX, Malformed, VERSION};
use wire::dsn::{Envid, Notify, Orcpt, Ret};
use wire::{Address, DeliverBy, Priority};

/// Flags of `Begin`: the message holds bytes over 127 in its body (BODY=8BITMIME).
pub const FLAG_EIGHT_BIT: u32 = 1;
/// Flags of `Begin`: the message needs SMTPUTF8 (RFC 6531).
pub const FLAG_SMTPUTF8: u32 = 2;
/// Flags of `Begin`: the message travels by verified TLS and REQUIRETLS servers only (RFC 8689).
pub const FLAG_REQUIRETLS: u32 = 4;
/// Flags of `Begin`: the archive that `control/taps` names for the message has it already; this is a copy that its delivery forwards.
pub const FLAG_ARCHIVED: u32 = 8;
/// Flags of `Begin` that have a meaning; others are refused, so that they can get one later.
pub const FLAGS_KNOWN: u32 = FLAG_EIGHT_BIT | FLAG_SMTPUTF8 | FLAG_REQUIRETLS | FLAG_ARCHIVED;

/// Most bytes of `Data` that fit in a datagram beside the version byte and the item's head.
pub const DATA_LEN_MAX: usize = DATAGRAM_LEN_MAX - 6;

/// One step of a submission, borrowed from the datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item<'a> {
    /// Starts a message.
    Begin { sender: Address, flags: u32 },
    /// One more envelope recipient.
    Recipient(Address),
    /// How much comes back if the message fails (RFC 3461); behind `Begin`, once.
    Ret(Ret),
    /// The sender's own name for the message (RFC 3461); behind `Begin`, once.
    Envid(Envid),
    /// Nothing is delivered before, UNIX seconds (RFC 4865); behind `Begin`, once.
    HoldUntil(u64),
    /// When it is to be delivered by, and what happens if it is not (RFC 2852); behind `Begin`, once.
    DeliverBy(DeliverBy),
    /// How urgent it is (RFC 6710); behind `Begin`, once.
    Priority(Priority),
    /// Which reports are wanted about the recipient before (RFC 3461); once for each.
    Notify(Notify),
    /// The recipient before as the first sender named him (RFC 3461); once for each.
    Orcpt(Orcpt),
    /// The sender and the flags, in the place of those of `Begin`, which came before they were known; once.
    From { sender: Address, flags: u32 },
    /// What had become of the recipient before in the queue that the message is taken from; once for each. On the administrator's socket alone.
    Became(Became),
    /// The next bytes of the message.
    Data(&'a [u8]),
    /// The message is whole.
    Commit,
}

messages! {
    /// qmail-send's answer to `Commit`, or to the first item that it cannot take (the rest of that message is then ignored
    /// up to and with its `Commit`).
    pub enum Answer {
        /// On the disk: durable before this was sent. `id` is the message's number in the log, `pid` what `qp` shows.
        1 => Accepted { id: u64, pid: u32 },
        /// Not now; the text is for the client, without a reply code, and may start with an enhanced status code `4.x.x `.
        2 => Temporary { text: Bytes },
        /// Never; the text may start with `5.x.x `.
        3 => Permanent { text: Bytes },
    }
}

/// Collects items into datagrams: [`Packer::take`] hands out a datagram that is full or, at the end, the last one.
#[derive(Debug)]
pub struct Packer {
    datagram: Vec<u8>,
}

impl Default for Packer {
    fn default() -> Self {
        Self::new()
    }
}

impl Packer {
    #[must_use]
    pub fn new() -> Self {
        Self { datagram: vec![VERSION] }
    }

    /// Appends an item other than data. Returns a finished datagram that must be sent first, if it did not fit.
    #[must_use = "the datagram returned must be sent"]
    pub fn push(&mut self, item: &Item<'_>) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        put_item(item, &mut bytes);
        let full = if self.datagram.len() + bytes.len() > DATAGRAM_LEN_MAX { self.take() } else { None };
        self.datagram.extend_from_slice(&bytes);
        full
    }

    /// Appends as much of `data` as fits and shortens it by that; returns a datagram when it is full. Call it until `data` is
    /// empty.
    #[must_use = "the datagram returned must be sent"]
    pub fn push_data(&mut self, data: &mut &[u8]) -> Option<Vec<u8>> {
        const HEAD: usize = 5;
        let room = DATAGRAM_LEN_MAX.saturating_sub(self.datagram.len() + HEAD);
        if data.is_empty() {
            return None;
        }
        if room < data.len().min(1024) {
            return self.take();
        }
        let (now, rest) = data.split_at(room.min(data.len()));
        put_item(&Item::Data(now), &mut self.datagram);
        *data = rest;
        if rest.is_empty() { None } else { self.take() }
    }

    /// The datagram under way, unless it is empty.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let datagram = std::mem::replace(&mut self.datagram, vec![VERSION]);
        (datagram.len() > 1).then_some(datagram)
    }
}

fn put_item(item: &Item<'_>, out: &mut Vec<u8>) {
    match item {
        Item::Begin { sender, flags } => {
            out.push(1);
            sender.put(out);
            flags.put(out);
        }
        Item::Recipient(address) => {
            out.push(2);
            address.put(out);
        }
        Item::Data(data) => {
            out.push(3);
            put_bytes(data, out);
        }
        Item::Commit => out.push(4),
        Item::Ret(ret) => put_numbered(5, ret, out),
        Item::Envid(envid) => put_numbered(6, envid, out),
        Item::HoldUntil(unix_s) => put_numbered(7, unix_s, out),
        Item::Notify(notify) => put_numbered(8, notify, out),
        Item::Orcpt(orcpt) => put_numbered(9, orcpt, out),
        Item::DeliverBy(by) => put_numbered(10, by, out),
        Item::Priority(priority) => put_numbered(11, priority, out),
        Item::From { sender, flags } => {
            put_numbered(12, sender, out);
            flags.put(out);
        }
        Item::Became(became) => put_numbered(20, became, out),
    }
}

fn put_numbered(number: u8, field: &impl Field, out: &mut Vec<u8>) {
    out.push(number);
    field.put(out);
}

/// Calls `each` for every item of a datagram.
///
/// # Errors
/// [`Malformed`]; items before the malformed one have been seen by then.
pub fn items<'a>(datagram: &'a [u8], mut each: impl FnMut(Item<'a>)) -> Result<(), Malformed> {
    let mut rest = datagram;
    if datagram.len() > DATAGRAM_LEN_MAX || u8::take(&mut rest)? != VERSION || rest.is_empty() {
        return Err(Malformed);
    }
    while !rest.is_empty() {
        each(match u8::take(&mut rest)? {
            1 => Item::Begin { sender: Address::take(&mut rest)?, flags: u32::take(&mut rest)? },
            2 => Item::Recipient(Address::take(&mut rest)?),
            3 => Item::Data(take_bytes(&mut rest)?),
            4 => Item::Commit,
            5 => Item::Ret(Ret::take(&mut rest)?),
            6 => Item::Envid(Envid::take(&mut rest)?),
            7 => Item::HoldUntil(u64::take(&mut rest)?),
            8 => Item::Notify(Notify::take(&mut rest)?),
            9 => Item::Orcpt(Orcpt::take(&mut rest)?),
            10 => Item::DeliverBy(DeliverBy::take(&mut rest)?),
            11 => Item::Priority(Priority::take(&mut rest)?),
            12 => Item::From { sender: Address::take(&mut rest)?, flags: u32::take(&mut rest)? },
            20 => Item::Became(Became::take(&mut rest)?),
            _ => return Err(Malformed),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unpack(datagrams: &[Vec<u8>]) -> (Vec<Address>, Vec<u8>, u32) {
        let (mut recipients, mut body, mut commits) = (Vec::new(), Vec::new(), 0);
        for datagram in datagrams {
            assert!(datagram.len() <= DATAGRAM_LEN_MAX);
            items(datagram, |item| match item {
                Item::Begin { sender, flags } => assert_eq!((sender.as_bytes(), flags), (&b"s@x"[..], 3)),
                Item::Recipient(address) => recipients.push(address),
                Item::Data(data) => body.extend_from_slice(data),
                Item::Commit => commits += 1,
                _ => panic!("{item:?}"),
            })
            .unwrap();
        }
        (recipients, body, commits)
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(count in 0usize..100, rcpt_len in 1usize..1000, body in 0usize..100_000) {
            let mut packer = Packer::new();
            let mut out = Vec::new();
            out.extend(packer.push(&Item::Begin { sender: Address::new(b"s@x").unwrap(), flags: 3 }));
            let recipient = Address::new(&vec![b'r'; rcpt_len]).unwrap();
            for _ in 0..count {
                out.extend(packer.push(&Item::Recipient(recipient.clone())));
            }
            let body: Vec<u8> = (0..body).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let mut rest = &body[..];
            while !rest.is_empty() {
                out.extend(packer.push_data(&mut rest));
            }
            out.extend(packer.push(&Item::Commit));
            out.extend(packer.take());
            prop_assert_eq!(unpack(&out), (vec![recipient; count], body, 1));
        }

        #[test]
        fn any_bytes_are_items_or_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = items(&bytes, |_| ());
        }
    }

    #[test]
    fn what_is_asked_for_beside_the_envelope() {
        let items_in = [
            Item::Begin { sender: Address::null(), flags: 0 },
            Item::Ret(Ret::Headers),
            Item::Envid(Envid::new(b"a+20b").unwrap()),
            Item::HoldUntil(1 << 40),
            Item::DeliverBy(DeliverBy::from_bits(1 << 41, 3).unwrap()),
            Item::Priority(Priority::new(-2).unwrap()),
            Item::Recipient(Address::new(b"a@b").unwrap()),
            Item::Notify(Notify::NEVER),
            Item::Orcpt(Orcpt::new(b"rfc822;x").unwrap()),
            Item::From { sender: Address::new(b"s").unwrap(), flags: 1 },
            Item::Commit,
        ];
        let mut packer = Packer::new();
        assert!(items_in.iter().all(|item| packer.push(item).is_none()));
        let datagram = packer.take().unwrap();
        let mut seen = Vec::new();
        items(&datagram, |item| seen.push(format!("{item:?}"))).unwrap();
        assert_eq!(seen, items_in.map(|item| format!("{item:?}")));
        // Numbers that are fixed for ever.
        assert_eq!(datagram, b"\x01\x01\0\0\0\0\0\0\0\0\x05\0\x06\x05\0\0\0a+20b\x07\0\0\0\0\0\x01\0\0\x0a\0\0\0\0\0\x02\0\0\x03\x0b\xfe\x02\x03\0\0\0a@b\x08\0\x09\x08\0\0\0rfc822;x\x0c\x01\0\0\0s\x01\0\0\0\x04");
        for bad in [
            &b"\x01\x05\x02"[..],
            b"\x01\x06\x03\0\0\0+0A",
            b"\x01\x08\x08",
            b"\x01\x09\x01\0\0\0x",
            b"\x01\x0a",
            b"\x01\x0b\x0a",
            b"\x01\x0c",
            b"\x01\x0d",
        ] {
            assert_eq!(items(bad, |_| ()), Err(Malformed), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn a_small_message_is_one_datagram() {
        let mut packer = Packer::new();
        assert!(packer.push(&Item::Begin { sender: Address::null(), flags: 0 }).is_none());
        assert!(packer.push(&Item::Recipient(Address::new(b"a@b").unwrap())).is_none());
        let mut body = &[b'x'; 4096][..];
        assert!(packer.push_data(&mut body).is_none() && body.is_empty());
        assert!(packer.push(&Item::Commit).is_none());
        assert!(packer.take().is_some() && packer.take().is_none());
    }
}
