//! The reports that a caller asks for (RFC 3461): QMAILNOTIFY, QMAILRET and QMAILENVID, which `sendmail -N`, `-R` and `-V` set.
//!
//! A value that makes no sense is an error and nothing is sent. A program in QMAILQUEUE is not told, since its interface has no word
//! for it.

use std::io;

use ipc::queue::Item;
use ipc::submission::Submission;
use wire::Address;
use wire::dsn::{Envid, Notify, Ret};

use crate::env::Env;

/// Of the message and of each recipient.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    notify: Option<Notify>,
    ret: Option<Ret>,
    envid: Option<Envid>,
}

impl Asked {
    /// # Errors
    /// A variable with a value that makes no sense; permanent.
    pub fn read(env: &Env) -> Result<Self, &'static str> {
        let set = |name| env.get(name).filter(|value: &Vec<u8>| !value.is_empty());
        let notify = set("QMAILNOTIFY").map(|value| {
            Notify::parse(&value).ok_or("QMAILNOTIFY (-N) has to be never, or a list of success, failure and delay with commas")
        });
        let ret = set("QMAILRET").map(|value| Ret::parse(&value).ok_or("QMAILRET (-R) has to be full or hdrs"));
        let envid = set("QMAILENVID")
            .map(|value| Envid::new(&value).ok_or("QMAILENVID (-V) has to be at most 100 characters of xtext (RFC 3461)"));
        Ok(Self { notify: notify.transpose()?, ret: ret.transpose()?, envid: envid.transpose()? })
    }

    /// The envelope with what is asked for.
    ///
    /// # Errors
    /// The connection broke; temporary.
    pub fn put(self, submission: &mut Submission, recipients: Vec<Address>) -> io::Result<()> {
        let Self { notify, ret, envid } = self;
        for item in ret.map(Item::Ret).into_iter().chain(envid.map(Item::Envid)) {
            submission.item(&item)?;
        }
        for recipient in recipients {
            submission.recipient(recipient)?;
            if let Some(notify) = notify {
                submission.item(&Item::Notify(notify))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let read = |name, value: &str| {
            let mut env = Env::default();
            env.set(name, value.as_bytes());
            Asked::read(&env)
        };
        let nothing = Asked::default();
        assert_eq!(read("QMAILNOTIFY", "never"), Ok(Asked { notify: Some(Notify::NEVER), ..nothing.clone() }));
        assert_eq!(read("QMAILRET", "hdrs"), Ok(Asked { ret: Some(Ret::Headers), ..nothing.clone() }));
        assert_eq!(read("QMAILENVID", "a+20b"), Ok(Asked { envid: Envid::new(b"a+20b"), ..nothing.clone() }));
        for name in ["QMAILNOTIFY", "QMAILRET", "QMAILENVID"] {
            assert!(read(name, "no such=value").unwrap_err().starts_with(name));
            assert_eq!(read(name, ""), Ok(nothing.clone()));
        }
        assert!(read("QMAILNOTIFY", "never,success").is_err() && read("QMAILENVID", &"x".repeat(101)).is_err());
    }
}
