//! What the account of a virtual user says of a delivery, beside the user's own `.qmail` files.
//!
//! The order: a `.qmail` file that is there and not empty says everything, and the account's forwards and reply do not count. Without one
//! the account's forwards are the default delivery. Where an LMTP server keeps the mailbox
//! (`control/lmtproutes`) it takes the place of the files that the default delivery names, and the server's own quota counts. The quota bounds every Maildir in the home, whoever names it.

use crate::failure::Failure;
use ipc::inheritance::Inheritance;
use ipc::mailbox::{Settings, Vacation};
use ipc::worker::Lmtp;
use maildir::Quota;

/// How mail is delivered, as the request has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manner {
    pub default_delivery: Vec<u8>,
    /// An [`ipc::mailbox`] message.
    pub settings: Vec<u8>,
    /// An [`ipc::inheritance`] message.
    pub inherits: Vec<u8>,
    /// The server that keeps the mailbox.
    pub lmtp: Option<Lmtp>,
}

/// The same, understood.
#[derive(Debug)]
pub(crate) struct Orders {
    /// Instructions for mail that no `.qmail` file speaks for.
    pub default_delivery: Vec<u8>,
    pub quota: Quota,
    /// What the owner is told when it is nearly used up; empty: our own words.
    pub warning: Vec<u8>,
    pub vacation: Option<Vacation>,
    /// What forwards have of the message.
    pub inherits: Inheritance,
    /// In the place of the files that the default delivery names.
    pub lmtp: Option<Lmtp>,
}

impl Orders {
    /// # Errors
    /// Temporary: the settings are of another version of qmail.
    pub(crate) fn read(manner: &Manner) -> Result<Self, Failure> {
        let settings = understand(&manner.settings)?;
        let inherits = inherited(&manner.inherits)?;
        let quota = quota(&settings);
        let Settings { forward, keeps_copy, vacation, warning, .. } = settings;
        let mut lines = Vec::new();
        if forward.is_empty() || keeps_copy {
            lines.push(manner.default_delivery.clone());
        }
        lines.extend(forward.iter().map(|address| [b"&", address.as_bytes()].concat()));
        Ok(Self {
            default_delivery: lines.join(&b'\n'),
            quota,
            warning: warning.0,
            vacation,
            inherits,
            lmtp: manner.lmtp.clone(),
        })
    }

    /// The quota alone.
    ///
    /// # Errors
    /// As [`Orders::read`].
    pub(crate) fn quota(settings: &[u8]) -> Result<Quota, Failure> {
        understand(settings).map(|settings| quota(&settings))
    }
}

fn understand(settings: &[u8]) -> Result<Settings, Failure> {
    Settings::from_bytes(settings).map_err(|_| Failure::temporary("qmail-auth and qmail-local are of two versions. (#4.3.5)"))
}

fn quota(settings: &Settings) -> Quota {
    let Settings { quota_bytes, quota_messages, defers, warns_at, .. } = settings;
    Quota { bytes: *quota_bytes, messages: *quota_messages, defers: *defers, warns_at: *warns_at }
}

/// # Errors
/// Temporary: it is of another version of qmail.
pub(crate) fn inherited(bytes: &[u8]) -> Result<Inheritance, Failure> {
    Inheritance::from_bytes(bytes).map_err(|_| Failure::temporary("qmail-send and qmail-local are of two versions. (#4.3.5)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Address;

    #[test]
    fn forwards_take_the_place_of_the_default_or_stand_beside_it() {
        let read = |forward: &[&str], keeps_copy| {
            let forward = forward.iter().map(|a| Address::new(a.as_bytes()).unwrap()).collect();
            let settings = Settings { forward, keeps_copy, ..Settings::default() }.to_bytes().0;
            let manner = Manner { default_delivery: b"./Maildir/".to_vec(), settings, inherits: Vec::new(), lmtp: None };
            String::from_utf8(Orders::read(&manner).unwrap().default_delivery).unwrap()
        };
        assert_eq!(read(&[], false), "./Maildir/");
        assert_eq!(read(&["a@b", "c@d"], false), "&a@b\n&c@d");
        assert_eq!(read(&["a@b"], true), "./Maildir/\n&a@b");
        for (settings, inherits) in [(&b"x"[..], &b""[..]), (b"", b"x")] {
            let odd =
                Manner { default_delivery: Vec::new(), settings: settings.to_vec(), inherits: inherits.to_vec(), lmtp: None };
            assert!(!Orders::read(&odd).unwrap_err().is_permanent);
        }
    }
}
