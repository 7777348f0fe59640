//! What a sender asks for beside the envelope: reports (RFC 3461) and a time before which nothing is delivered (RFC 4865).
//!
//! [`Options`] go with a message from qmail-send's acceptance to its end: into the spool as opaque bytes ([`Options::store`]), and to
//! qmail-remote with the recipients they are about. Bounded by the envelope: one ORCPT for each recipient.

use crate::Malformed;
use crate::field::{Bytes, Field, take_bytes};
use wire::dsn::{Envid, Notify, Orcpt, Ret};

/// The first byte of stored options.
const STORED: u8 = 1;

record! {
    /// Of a message and some of its recipients.
    pub struct Options {
        ret: Option<Ret>,
        envid: Option<Envid>,
        /// Nothing is delivered before, UNIX seconds.
        hold_until_s: Option<u64>,
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
        Self { ret: None, envid: None, hold_until_s: None, recipients: Vec::new() }
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
        let options = if version == STORED { Self::take(&mut rest)? } else { return Err(Malformed) };
        let is_sorted = options.recipients.is_sorted_by(|a, b| a.recipient < b.recipient);
        if rest.is_empty() && is_sorted { Ok(options) } else { Err(Malformed) }
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
        Options { ret: Some(Ret::Headers), envid: Envid::new(b"id+20x"), hold_until_s: Some(7), recipients }
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

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes: Vec<u8>) {
            for bytes in [&bytes[..], &[&[STORED][..], &bytes].concat()] {
                if let Ok(options) = Options::stored(bytes) {
                    prop_assert!(options.is_none() || &*options.store() == bytes);
                }
            }
        }
    }
}
