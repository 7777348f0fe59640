//! What qmail-remote reads.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use users::{Networks, Service};

use crate::{ControlError, Root, TlsPolicies};

/// Defaults of qmail-remote(8), in seconds.
const TIMEOUTCONNECT_S: u64 = 60;
const TIMEOUTREMOTE_S: u64 = 1200;

/// The configuration of qmail-remote. Which relay a host goes to is not here: qmail-send reads smtproutes.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The name said in EHLO: `helohost`, else `me`.
    pub helohost: String,
    /// For a connection to come about, in seconds.
    pub timeoutconnect_s: u64,
    /// For any one answer of a server, in seconds; at least 1.
    pub timeoutremote_s: u64,
    /// `outgoingip`: source addresses of outgoing connections, at most one of each family.
    pub outgoing_v4: Option<IpAddr>,
    pub outgoing_v6: Option<IpAddr>,
    /// `moreipme`: addresses that are this host's though no interface has them (it sits behind a translating router).
    pub moreipme: Networks,
    /// `notipme`: addresses that are not this host's though an interface has them.
    pub notipme: Networks,
    /// Where this instance itself takes SMTP.
    pub listeners: Vec<SocketAddr>,
    /// `tlspolicy`.
    pub tlspolicy: TlsPolicies,
    /// `tlscafile`: a file of certificates (PEM) that are trusted instead of the system's; a relative path is below etc/qmail.
    pub tlscafile: Option<PathBuf>,
}

impl Remote {
    /// Reads all of it.
    ///
    /// # Errors
    /// A file unreadable or malformed, or no name for EHLO; temporary.
    pub fn read(root: &Root) -> Result<Self, ControlError> {
        let helohost = match root.line("helohost")?.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => root.me()?,
        };
        let (outgoing_v4, outgoing_v6) = outgoing(root)?;
        let ours = |service| matches!(service, Service::Smtp | Service::Submission | Service::Submissions);
        Ok(Self {
            helohost: String::from_utf8_lossy(&helohost).into_owned(),
            timeoutconnect_s: root.int("timeoutconnect")?.unwrap_or(TIMEOUTCONNECT_S).max(1),
            timeoutremote_s: root.int("timeoutremote")?.unwrap_or(TIMEOUTREMOTE_S).max(1),
            outgoing_v4,
            outgoing_v6,
            moreipme: root.networks("moreipme")?.unwrap_or_default(),
            notipme: root.networks("notipme")?.unwrap_or_default(),
            listeners: root.listen()?.iter().filter(|l| ours(l.service)).map(|l| l.address).collect(),
            tlspolicy: TlsPolicies::read(root)?,
            tlscafile: tlscafile(root)?,
        })
    }
}

fn tlscafile(root: &Root) -> Result<Option<PathBuf>, ControlError> {
    use std::os::unix::ffi::OsStringExt as _;
    let path = root.line("tlscafile")?.filter(|path| !path.is_empty());
    Ok(path.map(|path| root.etc().join(std::ffi::OsString::from_vec(path))))
}

/// One address, as the patched qmail-remote has it, or a line for each family; `0.0.0.0` and `::` mean "any".
pub(crate) fn outgoing(root: &Root) -> Result<(Option<IpAddr>, Option<IpAddr>), ControlError> {
    let (mut v4, mut v6) = (None, None);
    for line in root.lines("outgoingip")?.unwrap_or_default() {
        let address = std::str::from_utf8(&line).ok().and_then(|text| text.trim().parse::<IpAddr>().ok());
        let slot = match address {
            Some(IpAddr::V4(_)) => &mut v4,
            Some(IpAddr::V6(_)) => &mut v6,
            None => {
                let problem = format!("`{}` is no IP address", wire::escape::visible(&line));
                return Err(ControlError::new(&root.control_file("outgoingip"), problem));
            }
        };
        if slot.is_some() {
            let problem = "has two addresses of one family; one IPv4 and one IPv6 address may stand there";
            return Err(ControlError::new(&root.control_file("outgoingip"), problem));
        }
        *slot = address;
    }
    let named = |address: Option<IpAddr>| address.filter(|address| !address.is_unspecified());
    Ok((named(v4), named(v6)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<Remote, ControlError> {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        for (name, text) in files {
            std::fs::write(root.control_file(name), text).unwrap();
        }
        Remote::read(&root)
    }

    #[test]
    fn defaults_and_values() {
        let remote = read(&[("me", "mx.example\n")]).unwrap();
        assert_eq!((remote.helohost.as_str(), remote.timeoutconnect_s, remote.timeoutremote_s), ("mx.example", 60, 1200));
        assert_eq!((remote.outgoing_v4, remote.outgoing_v6), (None, None));
        assert!(remote.listeners.is_empty());
        let remote = read(&[
            ("me", "mx.example\n"),
            ("helohost", "out.example\n"),
            ("timeoutconnect", "5\n"),
            ("timeoutremote", "0\n"),
            ("outgoingip", "192.0.2.1\n2001:db8::1\n"),
            ("moreipme", "198.51.100.0/24\n"),
            ("listen", "smtp 127.0.0.1:25\npop3 127.0.0.1:110\nsubmission 127.0.0.1:587\n"),
        ])
        .unwrap();
        assert_eq!((remote.helohost.as_str(), remote.timeoutconnect_s, remote.timeoutremote_s), ("out.example", 5, 1));
        assert_eq!(remote.outgoing_v6, "2001:db8::1".parse().ok());
        assert!(remote.moreipme.contains("198.51.100.7".parse().unwrap()));
        assert_eq!(remote.listeners.len(), 2);
        let remote = read(&[("me", "x\n"), ("tlspolicy", "a.example:verify\n"), ("tlscafile", "/srv/ca.pem\n")]).unwrap();
        assert!(remote.tlspolicy.verifies());
        assert_eq!(remote.tlscafile, Some("/srv/ca.pem".into()));
        let below = read(&[("me", "x\n"), ("tlscafile", "tls/ca.pem\n")]).unwrap().tlscafile.unwrap();
        assert!(below.ends_with("etc/qmail/tls/ca.pem") && below.is_absolute());
        assert_eq!(read(&[("me", "x\n"), ("outgoingip", "0.0.0.0\n")]).unwrap().outgoing_v4, None);
    }

    #[test]
    fn errors_name_file_and_cure() {
        for (files, file) in [
            (&[("other", "")][..], "control/me"),
            (&[("me", "x\n"), ("outgoingip", "lo\n")], "control/outgoingip"),
            (&[("me", "x\n"), ("outgoingip", "192.0.2.1\n192.0.2.2\n")], "control/outgoingip"),
            (&[("me", "x\n"), ("moreipme", "example\n")], "control/moreipme"),
            (&[("me", "x\n"), ("tlspolicy", ":always\n")], "control/tlspolicy"),
        ] {
            assert!(read(files).unwrap_err().to_string().contains(file), "{file}");
        }
    }
}
