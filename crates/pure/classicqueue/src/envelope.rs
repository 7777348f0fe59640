//! Envelopes: `Fsender\0` (info), `Taddress\0` and `Daddress\0` (local, remote), `uUID\0pPID\0Fsender\0Taddress\0…` (todo, intd).

use std::fmt;

use wire::{Address, AddressError};

/// Why a file is none of the queue's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The last record does not end: the file was cut off, or something else is in it.
    Unfinished,
    /// A record begins with a byte that none begins with, or at a place where none of its kind stands.
    Record(u8),
    /// No sender.
    NoSender,
    /// More than one sender.
    TwoSenders,
    /// An address that is none.
    Address(AddressError),
    /// uid or pid is no number.
    Number,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfinished => f.write_str("its last record does not end: it was cut off"),
            Self::Record(byte) => write!(f, "has a record that begins with `{}` where none such is known", byte.escape_ascii()),
            Self::NoSender => f.write_str("names no sender"),
            Self::TwoSenders => f.write_str("names two senders"),
            Self::Address(error) => write!(f, "holds an address that is none: {error}"),
            Self::Number => f.write_str("has a uid or pid that is no number"),
        }
    }
}

impl std::error::Error for Damage {}

/// A recipient's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// `T`: to be delivered to.
    Todo,
    /// `D`: delivered, or failed with a paragraph in the bounce.
    Done,
}

impl Mark {
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Todo => b'T',
            Self::Done => b'D',
        }
    }
}

/// A record of local or remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    pub mark: Mark,
    pub address: Address,
}

/// todo or intd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Todo {
    pub uid: u32,
    pub pid: u32,
    pub sender: Address,
    pub recipients: Vec<Address>,
}

/// The records: first byte and rest, without the NUL.
fn records(bytes: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8]), Damage>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(end) = rest.iter().position(|byte| *byte == 0) else {
            rest = &[];
            return Some(Err(Damage::Unfinished));
        };
        let (record, behind) = rest.split_at(end);
        rest = behind.get(1..).unwrap_or_default();
        Some(record.split_first().map(|(first, record)| (*first, record)).ok_or(Damage::Record(0)))
    })
}

fn address(bytes: &[u8]) -> Result<Address, Damage> {
    Address::new(bytes).map_err(Damage::Address)
}

/// info: the sender.
///
/// # Errors
/// It is something else.
pub fn info(bytes: &[u8]) -> Result<Address, Damage> {
    let mut sender = None;
    for record in records(bytes) {
        match record? {
            (b'F', _) if sender.is_some() => return Err(Damage::TwoSenders),
            (b'F', rest) => sender = Some(address(rest)?),
            (first, _) => return Err(Damage::Record(first)),
        }
    }
    sender.ok_or(Damage::NoSender)
}

/// As [`info`] reads it.
#[must_use]
pub fn info_bytes(sender: &Address) -> Vec<u8> {
    [b"F", sender.as_bytes(), &[0]].concat()
}

/// local or remote: recipients and how far they have come.
///
/// # Errors
/// It is something else.
pub fn marked(bytes: &[u8]) -> Result<Vec<Marked>, Damage> {
    records(bytes)
        .map(|record| {
            let (first, rest) = record?;
            let mark = match first {
                b'T' => Mark::Todo,
                b'D' => Mark::Done,
                _ => return Err(Damage::Record(first)),
            };
            Ok(Marked { mark, address: address(rest)? })
        })
        .collect()
}

/// As [`marked`] reads it.
#[must_use]
pub fn marked_bytes(recipients: &[Marked]) -> Vec<u8> {
    recipients.iter().flat_map(|to| [&[to.mark.byte()], to.address.as_bytes(), &[0]].concat()).collect()
}

/// todo or intd.
///
/// # Errors
/// It is something else, or not whole.
pub fn todo(bytes: &[u8]) -> Result<Todo, Damage> {
    let (mut uid, mut pid, mut sender, mut recipients) = (0, 0, None, Vec::new());
    for record in records(bytes) {
        match record? {
            (b'u', rest) => uid = number(rest)?,
            (b'p', rest) => pid = number(rest)?,
            (b'F', _) if sender.is_some() => return Err(Damage::TwoSenders),
            (b'F', rest) => sender = Some(address(rest)?),
            (b'T', _) if sender.is_none() => return Err(Damage::NoSender),
            (b'T', rest) => recipients.push(address(rest)?),
            (first, _) => return Err(Damage::Record(first)),
        }
    }
    Ok(Todo { uid, pid, sender: sender.ok_or(Damage::NoSender)?, recipients })
}

/// As [`todo`] reads it.
#[must_use]
pub fn todo_bytes(todo: &Todo) -> Vec<u8> {
    let mut out = format!("u{}\0p{}\0", todo.uid, todo.pid).into_bytes();
    out.extend(info_bytes(&todo.sender));
    for recipient in &todo.recipients {
        out.extend([b"T", recipient.as_bytes(), &[0]].concat());
    }
    out
}

fn number(digits: &[u8]) -> Result<u32, Damage> {
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| is_number);
    text.and_then(|text| text.parse().ok()).ok_or(Damage::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a(text: &str) -> Address {
        Address::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_files_of_the_reference() {
        assert_eq!(info(b"Fjoe@here.example\0"), Ok(a("joe@here.example")));
        assert_eq!(info(b"F\0"), Ok(Address::null()));
        let of = |mark, text: &str| Marked { mark, address: a(text) };
        assert_eq!(marked(b"Tann@a\0Dbob@b\0"), Ok(vec![of(Mark::Todo, "ann@a"), of(Mark::Done, "bob@b")]));
        assert_eq!(marked(b""), Ok(Vec::new()));
        let whole = Todo { uid: 1000, pid: 77, sender: a("joe@x"), recipients: vec![a("ann@a"), a("bob@b")] };
        assert_eq!(todo(b"u1000\0p77\0Fjoe@x\0Tann@a\0Tbob@b\0"), Ok(whole));
    }

    #[test]
    fn what_is_damaged_is_said() {
        for (bytes, damage) in [
            (&b""[..], Damage::NoSender),
            (b"Fjoe@x", Damage::Unfinished),
            (b"Fjoe@x\0Fjim@x\0", Damage::TwoSenders),
            (b"\0", Damage::Record(0)),
            (b"Xjoe@x\0", Damage::Record(b'X')),
            (b"Fa\nb\0", Damage::Address(AddressError::ControlByte)),
        ] {
            assert_eq!(info(bytes), Err(damage), "{}", bytes.escape_ascii());
        }
        for (bytes, damage) in
            [(&b"Tann@a\0T"[..], Damage::Unfinished), (b"tann@a\0", Damage::Record(b't')), (b"Tann@a\0\0", Damage::Record(0))]
        {
            assert_eq!(marked(bytes), Err(damage), "{}", bytes.escape_ascii());
        }
        for (bytes, damage) in [
            (&b"u1\0p2\0"[..], Damage::NoSender),
            (b"u1\0p2\0Ta\0Fb\0", Damage::NoSender),
            (b"ux\0p2\0Fb\0", Damage::Number),
            (b"u\0p2\0Fb\0", Damage::Number),
            (b"u+1\0p2\0Fb\0", Damage::Number),
            (b"u99999999999\0p2\0Fb\0", Damage::Number),
            (b"u1\0p2\0Fb\0Da\0", Damage::Record(b'D')),
            (b"u1\0p2\0Fb\0Ta", Damage::Unfinished),
        ] {
            assert_eq!(todo(bytes), Err(damage), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(uid: u32, pid: u32, names in proptest::collection::vec("[a-zA-Z0-9@. <>\"-]{0,20}", 1..9), done: bool) {
            let addresses: Vec<Address> = names.iter().map(|name| a(name)).collect();
            let whole = Todo { uid, pid, sender: addresses[0].clone(), recipients: addresses.clone() };
            prop_assert_eq!(todo(&todo_bytes(&whole)), Ok(whole));
            prop_assert_eq!(info(&info_bytes(&addresses[0])), Ok(addresses[0].clone()));
            let mark = if done { Mark::Done } else { Mark::Todo };
            let all: Vec<Marked> = addresses.into_iter().map(|address| Marked { mark, address }).collect();
            prop_assert_eq!(marked(&marked_bytes(&all)), Ok(all));
        }
    }
}
