//! A message taken over from another queue: how far it had come there, kept beside its options until it goes on here.
//!
//! Such a message is first only kept: qmail-send tries nothing of it before it is confirmed ([`crate::admin::QueueRequest::Confirm`]). Who
//! takes a queue over notes between the two, in the other queue, that the message is here. So a message that is noted there is never taken
//! again, and one that is not noted has not been tried here and is found by its key: whatever is killed when, it is delivered once.

use crate::Malformed;
use crate::field::{Bytes, Field};
use crate::options::Options;

/// Longest [`Import::key`], in bytes: room for a hash in hexadecimal digits.
pub const KEY_LEN_MAX: usize = 64;

messages! {
    /// What had become of a recipient.
    pub enum Became {
        /// To be tried (again) at `due_s`, UNIX seconds; 0: now.
        1 => Waits { due_s: u64 },
        /// Delivered.
        2 => Done {},
        /// Failed for good; the text is for the bounce.
        3 => Failed { text: Bytes },
    }
}

record! {
    pub struct Earlier {
        /// Its place among the recipients.
        recipient: u32,
        became: Became,
    }
}

record! {
    /// See the module.
    pub struct Import {
        /// Names the message in the other queue; at most [`KEY_LEN_MAX`] bytes.
        key: Bytes,
        /// In the order of the recipients; those left out are due now.
        recipients: Vec<Earlier>,
    }
}

impl Import {
    /// The first byte of what is stored.
    pub(crate) const STORED: u8 = 3;

    /// With the options, as bytes for the spool.
    #[must_use]
    pub fn store(&self, options: &Options) -> Box<[u8]> {
        let mut out = vec![Self::STORED];
        self.put(&mut out);
        options.put(&mut out);
        out.into()
    }

    /// `None`: the message was not taken over from another queue.
    #[must_use]
    pub fn stored(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&[Self::STORED])?;
        Self::take(&mut rest).ok()
    }

    /// The options behind it.
    pub(crate) fn pass(input: &mut &[u8]) -> Result<(), Malformed> {
        Self::take(input).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Priority;

    #[test]
    fn it_is_stored_with_the_options_and_both_come_back() {
        let recipients = vec![
            Earlier { recipient: 0, became: Became::Done {} },
            Earlier { recipient: 2, became: Became::Failed { text: "No. (#5.1.1)\n".into() } },
            Earlier { recipient: 3, became: Became::Waits { due_s: 9 } },
        ];
        let import = Import { key: "key".into(), recipients };
        for options in [Options::none(), Options { priority: Priority::new(2), ..Options::none() }] {
            let stored = import.store(&options);
            assert_eq!(Import::stored(&stored), Some(import.clone()));
            assert_eq!(Options::stored(&stored), Ok(options.clone()));
            assert_eq!(Import::stored(&options.store()), None);
            for cut in 1..stored.len() {
                assert_eq!(Options::stored(&stored[..cut]), Err(Malformed));
            }
        }
    }
}
