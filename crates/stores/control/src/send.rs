//! What qmail-send reads.

use users::Routing;
use wire::{Address, Domain};

use crate::{ControlError, Root, Routes, Senders, Watched, read};

/// Defaults of qmail-send(8).
const CONCURRENCYLOCAL: u32 = 10;
const CONCURRENCYREMOTE: u32 = 20;
const QUEUELIFETIME_S: u64 = 604_800;
/// What the widespread patch has: a bounce is for reading, not for archiving.
const BOUNCEMAXBYTES: u64 = 50_000;
/// qmail-lspawn carries out so many deliveries at a time and no more: each costs it descriptors.
pub const CONCURRENCYLOCAL_MAX: u32 = 2000;
/// So does qmail-remote: each costs it a connection and a descriptor for the message.
pub const CONCURRENCYREMOTE_MAX: u32 = 5000;

/// Values read at the start, and again on SIGHUP.
#[derive(Debug, Clone)]
pub struct Send {
    /// Local part of the From of bounces.
    pub bouncefrom: Vec<u8>,
    pub bouncehost: Domain,
    /// `doublebounceto@doublebouncehost`; `None` when doublebounceto has an empty first line: they are thrown away.
    pub doublebounce_to: Option<Address>,
    /// Of a longer message only the header comes back in a bounce; `None` (0 in the file): everything does.
    pub bouncemaxbytes: Option<u64>,
    pub queuelifetime_s: u64,
    pub limits: Limits,
    pub routing: Routing,
}

/// concurrencylocal and concurrencyremote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub local: u32,
    pub remote: u32,
}

impl Send {
    /// Reads all of it.
    ///
    /// # Errors
    /// A file unreadable or malformed, or no `me`; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        root.me()?;
        let host = root.line_or_me("bouncehost")?;
        let bouncehost = Domain::new(&host).map_err(|error| wrong(root, "bouncehost", &host, &error))?;
        Ok(Self {
            bouncefrom: root.line("bouncefrom")?.unwrap_or_else(|| b"MAILER-DAEMON".to_vec()),
            bouncehost,
            doublebounce_to: doublebounce(root)?,
            bouncemaxbytes: Some(root.int("bouncemaxbytes")?.unwrap_or(BOUNCEMAXBYTES)).filter(|max| *max > 0),
            queuelifetime_s: root.int("queuelifetime")?.unwrap_or(QUEUELIFETIME_S),
            limits: Limits::read(root)?,
            routing: root.routing()?,
        })
    }
}

impl Limits {
    /// # Errors
    /// A file unreadable; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let limit = |name, default: u32, max: u32| {
            let value = root.int(name)?.unwrap_or(default.into()).min(max.into());
            Ok::<_, ControlError>(u32::try_from(value).unwrap_or(max))
        };
        Ok(Self {
            local: limit("concurrencylocal", CONCURRENCYLOCAL, CONCURRENCYLOCAL_MAX)?,
            remote: limit("concurrencyremote", CONCURRENCYREMOTE, CONCURRENCYREMOTE_MAX)?,
        })
    }
}

fn doublebounce(root: &Root) -> Result<Option<Address>, ControlError> {
    let to = root.line("doublebounceto")?.unwrap_or_else(|| b"postmaster".to_vec());
    let host = root.line_or_me("doublebouncehost")?;
    if to.is_empty() {
        return Ok(None);
    }
    Address::join(&to, &host).map(Some).map_err(|error| wrong(root, "doublebounceto", &to, &error))
}

fn wrong(root: &Root, name: &str, value: &[u8], error: &wire::AddressError) -> ControlError {
    ControlError::new(&root.control_file(name), format!("`{}`: {error}", wire::escape::visible(value)))
}

/// `control/smtproutes` as it is now.
#[must_use]
pub fn watched_routes(root: &Root) -> Watched<Routes> {
    Watched::new(root.control_file("smtproutes"), |text| Ok(Routes::new(read::map_of(text.unwrap_or_default()))))
}

/// `control/qmtproutes` as it is now.
#[must_use]
pub fn watched_qmtproutes(root: &Root) -> Watched<Routes> {
    Watched::new(root.control_file("qmtproutes"), |text| Ok(Routes::new(read::map_of(text.unwrap_or_default()))))
}

/// `control/authsenders` as it is now.
#[must_use]
pub fn watched_senders(root: &Root) -> Watched<Senders> {
    Watched::new(root.control_file("authsenders"), |text| Ok(Senders::new(read::map_of(text.unwrap_or_default()))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(files: &[(&str, &str)]) -> Result<Send, ControlError> {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        for (name, text) in files {
            std::fs::write(root.control_file(name), text).unwrap();
        }
        Send::read(&root)
    }

    #[test]
    fn defaults() {
        let send = read(&[("me", "mx.example\n")]).unwrap();
        assert_eq!(send.bouncefrom, b"MAILER-DAEMON");
        assert_eq!(send.bouncehost.as_bytes(), b"mx.example");
        assert_eq!(send.doublebounce_to.unwrap().as_bytes(), b"postmaster@mx.example");
        assert_eq!(send.limits, Limits { local: 10, remote: 20 });
        assert_eq!((send.bouncemaxbytes, send.queuelifetime_s), (Some(50_000), 604_800));
    }

    #[test]
    fn values() {
        let send = read(&[
            ("me", "mx.example\n"),
            ("bouncefrom", "daemon\n"),
            ("bouncehost", "b.example\n"),
            ("doublebounceto", "\n"),
            ("bouncemaxbytes", "0\n"),
            ("queuelifetime", "60\n"),
            ("concurrencylocal", "0\n"),
            ("concurrencyremote", "99999\n"),
        ])
        .unwrap();
        assert_eq!((send.bouncefrom.as_slice(), send.bouncehost.as_bytes()), (&b"daemon"[..], &b"b.example"[..]));
        assert_eq!((send.doublebounce_to, send.bouncemaxbytes, send.queuelifetime_s), (None, None, 60));
        assert_eq!(send.limits, Limits { local: 0, remote: CONCURRENCYREMOTE_MAX });
    }

    #[test]
    fn errors_name_the_file() {
        for (files, file) in [(&[("other", "x")][..], "me"), (&[("me", "x"), ("bouncehost", "a b")], "bouncehost")] {
            let error = read(files).unwrap_err();
            assert!(error.is_temporary());
            assert_eq!(error.file.file_name(), Path::new(file).file_name());
        }
    }
}
