//! What a sender asks for beside the envelope: reports (RFC 3461), a time before which nothing is delivered (RFC 4865), one by which it is
//! (RFC 2852), a priority (RFC 6710).
//!
//! [`Options`] go with a message from qmail-send's acceptance to its end: into the spool as opaque bytes ([`Options::store`]), and to
//! qmail-remote with the recipients they are about. Bounded by the envelope: one ORCPT for each recipient.

use crate::Malformed;
use crate::field::{Bytes, Field, take_bytes};
use crate::import::Import;
use wire::dsn::{Envid, Notify, Orcpt, Ret};
use wire::{DeliverBy, Priority};

/// The first byte of stored options.
const STORED: u8 = 2;
/// The same, of options without [`Options::deliver_by`] and [`Options::priority`].
const STORED_BEFORE: u8 = 1;

record! {
    /// Of a message and some of its recipients.
    pub struct Options {
        ret: Option<Ret>,
        envid: Option<Envid>,
        /// Nothing is delivered before, UNIX seconds.
        hold_until_s: Option<u64>,
        deliver_by: Option<DeliverBy>,
        priority: Option<Priority>,
        /// In the order of the recipients; those who have none are left out.
        recipients: Vec<RecipientOptions>,
    }
}

record! {
    /// Of one recipient.
    pub struct RecipientOptions {
        /// Its place among the recipients.
        recipient: u32,
        notify: Option<Notify>,
        orcpt: Option<Orcpt>,
    }
}

impl Options {
    /// Nothing asked for.
    #[must_use]
    pub fn none() -> Self {
        Self { ret: None, envid: None, hold_until_s: None, deliver_by: None, priority: None, recipients: Vec::new() }
    }

    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::none()
    }

    /// Those of a recipient.
    #[must_use]
    pub fn of(&self, recipient: u32) -> Option<&RecipientOptions> {
        let at = self.recipients.binary_search_by_key(&recipient, |options| options.recipient).ok()?;
        self.recipients.get(at)
    }

    /// The options as some of the recipients' transaction has them; the recipients are numbered by their place in `recipients`.
    #[must_use]
    pub fn for_recipients(&self, recipients: &[u32]) -> Self {
        let numbered = (0..).zip(recipients);
        let chosen =
            numbered.filter_map(|(place, recipient)| Some(RecipientOptions { recipient: place, ..self.of(*recipient)?.clone() }));
        Self { recipients: chosen.collect(), ..Self { recipients: Vec::new(), ..self.clone() } }
    }

    /// As bytes for the spool; none for no options.
    #[must_use]
    pub fn store(&self) -> Box<[u8]> {
        if self.is_none() {
            return Box::default();
        }
        let mut out = vec![STORED];
        self.put(&mut out);
        out.into()
    }

    /// Undoes [`Options::store`].
    ///
    /// # Errors
    /// Anything else; what was stored by a later version, too.
    pub fn stored(bytes: &[u8]) -> Result<Self, Malformed> {
        let Some((&version, mut rest)) = bytes.split_first() else { return Ok(Self::none()) };
        let options = match version {
            STORED => Self::take(&mut rest)?,
            STORED_BEFORE => Self::take_before(&mut rest)?,
            Import::STORED => {
                Import::pass(&mut rest)?;
                Self::take(&mut rest)?
            }
            _ => return Err(Malformed),
        };
        let is_sorted = options.recipients.is_sorted_by(|a, b| a.recipient < b.recipient);
        if rest.is_empty() && is_sorted { Ok(options) } else { Err(Malformed) }
    }
}

impl Options {
    fn take_before(input: &mut &[u8]) -> Result<Self, Malformed> {
        let (ret, envid, hold_until_s) = (Field::take(input)?, Field::take(input)?, Field::take(input)?);
        Ok(Self { ret, envid, hold_until_s, recipients: Field::take(input)?, ..Self::none() })
    }
}

impl Field for DeliverBy {
    fn put(&self, out: &mut Vec<u8>) {
        self.at_s.put(out);
        self.bits().put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        let at_s = u64::take(input)?;
        Self::from_bits(at_s, u8::take(input)?).ok_or(Malformed)
    }
}

impl Field for Priority {
    fn put(&self, out: &mut Vec<u8>) {
        self.byte().put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Self::from_byte(u8::take(input)?).ok_or(Malformed)
    }
}

impl Field for Ret {
    fn put(&self, out: &mut Vec<u8>) {
        (*self == Self::Full).put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(if bool::take(input)? { Self::Full } else { Self::Headers })
    }
}

impl Field for Notify {
    fn put(&self, out: &mut Vec<u8>) {
        self.bits().put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Self::from_bits(u8::take(input)?).ok_or(Malformed)
    }
}

impl Field for Envid {
    fn put(&self, out: &mut Vec<u8>) {
        Bytes::from(self.as_bytes()).put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Self::new(take_bytes(input)?).ok_or(Malformed)
    }
}

impl Field for Orcpt {
    fn put(&self, out: &mut Vec<u8>) {
        Bytes::from(self.as_bytes()).put(out);
    }
    fn take(input: &mut &[u8]) -> Result<Self, Malformed> {
        Self::new(take_bytes(input)?).ok_or(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options() -> Options {
        let of = |recipient, notify: Option<&[u8]>, orcpt: Option<&[u8]>| RecipientOptions {
            recipient,
            notify: notify.and_then(Notify::parse),
            orcpt: orcpt.and_then(Orcpt::new),
        };
        let recipients =
            vec![of(0, Some(b"NEVER"), None), of(3, None, Some(b"rfc822;a+2Bb@x")), of(9, Some(b"SUCCESS,DELAY"), None)];
        let (deliver_by, priority) = (DeliverBy::from_bits(99, 7), Priority::new(-9));
        Options { ret: Some(Ret::Headers), envid: Envid::new(b"id+20x"), hold_until_s: Some(7), deliver_by, priority, recipients }
    }

    #[test]
    fn options_are_stored_and_chosen() {
        let all = options();
        assert_eq!(Options::stored(&all.store()), Ok(all.clone()));
        assert_eq!((Options::none().store().len(), Options::stored(b"")), (0, Ok(Options::none())));
        let some = all.for_recipients(&[9, 4, 3]);
        assert_eq!(some.recipients.iter().map(|o| o.recipient).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(
            (some.of(0).unwrap().notify, some.of(1), &some.of(2).unwrap().orcpt),
            (all.recipients[2].notify, None, &all.recipients[1].orcpt)
        );
        assert_eq!((some.ret, &some.envid), (all.ret, &all.envid));
        for cut in 1..all.store().len() {
            assert_eq!(Options::stored(&all.store()[..cut]), Err(Malformed));
        }
        let unsorted = Options { recipients: all.recipients.iter().rev().cloned().collect(), ..all };
        assert_eq!(Options::stored(&unsorted.store()), Err(Malformed));
    }

    #[test]
    fn what_was_stored_before_is_read() {
        let was = b"\x01\x01\0\x01\x06\0\0\0id+20x\x01\x07\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0";
        let read = Options { deliver_by: None, priority: None, ..options().for_recipients(&[0]) };
        assert_eq!(Options::stored(was), Ok(read));
        for cut in 1..was.len() {
            assert_eq!(Options::stored(&was[..cut]), Err(Malformed));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            for bytes in [&bytes[..], &[&[STORED][..], &bytes].concat(), &[&[STORED_BEFORE][..], &bytes].concat()] {
                if let Ok(options) = Options::stored(bytes) {
                    let is_before = bytes.first() != Some(&STORED);
                    prop_assert!(options.is_none() || is_before || &*options.store() == bytes);
                }
            }
        }
    }
}
