//! control/acme: which authority certificates are had from, and for which hosts. Read by qmail-acme, qmail-keys and the admin command.
//!
//! And what is known of each certificate between two attempts ([`Note`]): the file `acme` beside it.

use std::path::PathBuf;

use crate::keyed::Keyed;
use crate::url::{Endpoint, WebUrl};
use crate::{ControlError, Root};

/// The file's name.
pub const FILE: &str = "acme";
/// The file of a [`Note`], in the certificate's directory.
pub const NOTE: &str = "acme";
/// The account's key, below etc/qmail/tls. A directory with a dot first holds no certificate.
pub const ACCOUNT_KEY: &str = ".acme/account.pem";
/// Hosts of a certificate; a public authority allows 100.
pub const HOSTS_MAX: usize = 100;
/// Certificates of an instance.
pub const CERTIFICATES_MAX: usize = 500;
/// Longest note, in bytes.
pub const NOTE_LEN_MAX: usize = 8 * 1024;
/// Days before the end at which a certificate may be renewed; half of its life is the bound in any case.
const RENEW_BEFORE_DAYS_MAX: u64 = 365;
const DAY_S: u64 = 86_400;
/// Clocks differ, and the first try may fail: a third of its life before its end.
const RENEW_PART: u64 = 3;

/// How the authority sees that a host is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Challenge {
    /// It gets a file by HTTP from port 80 (RFC 8555 §8.3).
    Http01,
    /// It gets a certificate by TLS from port 443 (RFC 8737).
    TlsAlpn01,
}

impl Challenge {
    /// As the authority calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    pub directory: WebUrl,
    /// The same, as it was written.
    pub directory_text: String,
    /// The authority's terms of service are agreed to.
    pub is_agreed: bool,
    /// `mailto:` URLs.
    pub contacts: Vec<String>,
    pub challenge: Challenge,
    /// Authorities that are trusted for the directory, instead of the system's.
    pub cafile: Option<PathBuf>,
    pub renew_before_s: Option<u64>,
    /// External account binding: the key's name, and the file of the key in base64url.
    pub binding: Option<(String, PathBuf)>,
    /// The hosts of each certificate, in lower case; the first names its directory.
    pub certificates: Vec<Vec<String>>,
}

impl Acme {
    /// Reads `control/acme`; `None` if there is none.
    ///
    /// # Errors
    /// Unreadable or malformed; temporary.
    pub fn read(root: &Root) -> Result<Option<Self>, ControlError> {
        let Some(mut keyed) = Keyed::read(root, FILE)? else { return Ok(None) };
        let directory_text = keyed.needed("directory", "https://acme-v02.api.letsencrypt.org/directory")?;
        let directory = WebUrl::parse(&directory_text).map_err(|problem| keyed.wrong(format!("`directory` {problem}")))?;
        if !directory.is_tls {
            return Err(keyed.wrong("`directory` must begin with https:// (RFC 8555 §6.1)"));
        }
        let is_agreed = match keyed.one("agree")?.as_deref() {
            None | Some("no") => false,
            Some("yes") => true,
            Some(_) => return Err(keyed.wrong("`agree` must be yes or no")),
        };
        let challenge = match keyed.one_or("challenge", "http-01")?.as_str() {
            "http-01" => Challenge::Http01,
            "tls-alpn-01" => Challenge::TlsAlpn01,
            _ => return Err(keyed.wrong("`challenge` must be http-01 or tls-alpn-01")),
        };
        let renew_before_s = match keyed.one("renewbefore")? {
            None => None,
            Some(days) => match days.parse::<u64>() {
                Ok(days @ 1..=RENEW_BEFORE_DAYS_MAX) => Some(days.saturating_mul(DAY_S)),
                _ => return Err(keyed.wrong(format!("`renewbefore` must be a number of days, 1 to {RENEW_BEFORE_DAYS_MAX}"))),
            },
        };
        let binding = match (keyed.one("eabkid")?, keyed.path("eabkeyfile")?) {
            (Some(name), Some(file)) => Some((name, file)),
            (None, None) => None,
            _ => return Err(keyed.wrong("`eabkid` and `eabkeyfile` go together")),
        };
        let mut contacts = Vec::new();
        for contact in keyed.many("contact") {
            let address = contact.strip_prefix("mailto:").unwrap_or(&contact);
            if !address.contains('@') || !address.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(keyed.wrong("`contact` must be an address, as in `contact postmaster@example.org`"));
            }
            contacts.push(format!("mailto:{address}"));
        }
        let mut certificates: Vec<Vec<String>> = Vec::new();
        for line in keyed.many("certificate") {
            let hosts = hosts(line.split_whitespace()).map_err(|problem| keyed.wrong(format!("`certificate`: {problem}")))?;
            if certificates.iter().any(|known| known.first() == hosts.first()) {
                let first = hosts.first().map_or("", String::as_str);
                return Err(keyed.wrong(format!("two lines `certificate` begin with {first}")));
            }
            certificates.push(hosts);
        }
        if certificates.len() > CERTIFICATES_MAX {
            return Err(keyed.wrong(format!("more than {CERTIFICATES_MAX} lines `certificate`")));
        }
        let cafile = keyed.path("cafile")?;
        keyed.end()?;
        Ok(Some(Self {
            directory,
            directory_text,
            is_agreed,
            contacts,
            challenge,
            cafile,
            renew_before_s,
            binding,
            certificates,
        }))
    }

    /// The hosts of the certificate with this name.
    #[must_use]
    pub fn hosts(&self, name: &[u8]) -> Option<&[String]> {
        self.certificates.iter().find(|hosts| hosts.first().is_some_and(|first| first.as_bytes() == name)).map(Vec::as_slice)
    }

    /// When a certificate with this life is to be renewed, at the latest, in UNIX seconds: never in the first half of it, whatever is
    /// configured, since an authority that gives out short ones must not be asked without end.
    #[must_use]
    pub fn renew_s(&self, not_before_s: u64, not_after_s: u64) -> u64 {
        let life_s = not_after_s.saturating_sub(not_before_s);
        let before_s = self.renew_before_s.unwrap_or(life_s / RENEW_PART).min(life_s / 2);
        not_after_s.saturating_sub(before_s)
    }
}

/// Host names that an authority can check this way, in lower case, each once.
///
/// # Errors
/// One that is none, none at all, or more than [`HOSTS_MAX`].
pub fn hosts<'a>(words: impl Iterator<Item = &'a str>) -> Result<Vec<String>, String> {
    let mut hosts: Vec<String> = Vec::new();
    for word in words {
        let host = word.to_ascii_lowercase();
        let shown = || wire::escape::visible(word.as_bytes());
        if host.starts_with("*.") {
            return Err(format!("{}: wildcards can be had by DNS alone, which is not there", shown()));
        }
        let is_host = Endpoint::parse(&host, 1).is_some_and(|endpoint| endpoint.host == host && endpoint.address().is_none());
        if !is_host || host.contains('_') || !host.contains('.') {
            return Err(format!("{} is no full name of a host", shown()));
        }
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    match hosts.len() {
        0 => Err("names no host".to_owned()),
        1..=HOSTS_MAX => Ok(hosts),
        _ => Err(format!("more than {HOSTS_MAX} hosts")),
    }
}

/// What is known of a certificate between two attempts: lines `key value`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note {
    /// The authority of the last attempt.
    pub directory: String,
    /// The hosts of the last attempt, with blanks between them.
    pub hosts: String,
    /// The authority that the present certificate is from; empty if none was obtained.
    pub source: String,
    /// UNIX seconds, as all times here; 0: never.
    pub obtained_s: u64,
    /// When it is renewed, if all goes well.
    pub renew_s: u64,
    /// The last attempt.
    pub tried_s: u64,
    /// Attempts in a row that failed, with the one under way.
    pub failures: u64,
    /// After a failure: not before.
    pub next_s: u64,
    /// Why the last attempt failed.
    pub problem: String,
}

impl Note {
    /// What cannot be read, and what a later version writes, does not count.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut note = Self::default();
        let text = String::from_utf8_lossy(text.get(..NOTE_LEN_MAX.min(text.len())).unwrap_or_default()).into_owned();
        for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            let number = || value.parse().unwrap_or(0);
            match key {
                "directory" => note.directory = value.to_owned(),
                "hosts" => note.hosts = value.to_owned(),
                "source" => note.source = value.to_owned(),
                "obtained" => note.obtained_s = number(),
                "renew" => note.renew_s = number(),
                "tried" => note.tried_s = number(),
                "failures" => note.failures = number(),
                "next" => note.next_s = number(),
                "problem" => note.problem = value.to_owned(),
                _ => {}
            }
        }
        note
    }

    /// The file that [`Note::parse`] reads back.
    #[must_use]
    pub fn to_text(&self) -> String {
        let numbers = [
            ("obtained", self.obtained_s),
            ("renew", self.renew_s),
            ("tried", self.tried_s),
            ("failures", self.failures),
            ("next", self.next_s),
        ];
        let texts =
            [("directory", &self.directory), ("hosts", &self.hosts), ("source", &self.source), ("problem", &self.problem)];
        let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
        let texts = texts.map(|(key, text)| format!("{key} {}\n", wire::escape::visible(text.as_bytes())));
        texts.chain(numbers.into_iter().map(|(key, number)| format!("{key} {number}\n"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Acme, ControlError> {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path()).unwrap();
        std::fs::create_dir_all(root.control()).unwrap();
        std::fs::write(root.control_file(FILE), text).unwrap();
        Acme::read(&root).map(Option::unwrap)
    }

    const DIRECTORY: &str = "directory https://ca.test:14000/dir\n";

    #[test]
    fn defaults_and_values() {
        let acme = read(DIRECTORY).unwrap();
        assert_eq!((acme.is_agreed, acme.challenge, acme.renew_before_s), (false, Challenge::Http01, None));
        assert_eq!(acme.directory.endpoint.port, 14_000);
        let acme = read(&format!(
            "{DIRECTORY}agree yes\nchallenge tls-alpn-01\nrenewbefore 10\ncontact a@b.test\ncontact mailto:c@d.test\neabkid k\n\
             eabkeyfile eab\ncafile ca.pem\ncertificate Mail.Example.org smtp.example.org mail.example.org\ncertificate x.test\n"
        ))
        .unwrap();
        assert_eq!((acme.is_agreed, acme.challenge, acme.renew_before_s), (true, Challenge::TlsAlpn01, Some(864_000)));
        assert_eq!(acme.contacts, ["mailto:a@b.test", "mailto:c@d.test"]);
        assert_eq!(acme.hosts(b"mail.example.org").unwrap(), ["mail.example.org", "smtp.example.org"]);
        assert_eq!(acme.hosts(b"smtp.example.org"), None);
        assert!(acme.cafile.unwrap().ends_with("control/ca.pem") && acme.binding.unwrap().1.ends_with("control/eab"));
    }

    #[test]
    fn errors_name_the_setting() {
        for (text, part) in [
            ("agree yes\n", "has no line `directory`"),
            ("directory http://127.0.0.1/d\n", "must begin with https://"),
            ("directory https://a/\nagree maybe\n", "yes or no"),
            ("directory https://a/\nchallenge dns-01\n", "http-01 or tls-alpn-01"),
            ("directory https://a/\nrenewbefore 0\n", "number of days"),
            ("directory https://a/\neabkid x\n", "go together"),
            ("directory https://a/\ncontact me\n", "must be an address"),
            ("directory https://a/\ncertificate *.a.test\n", "wildcards"),
            ("directory https://a/\ncertificate 127.0.0.1\n", "no full name"),
            ("directory https://a/\ncertificate localhost\n", "no full name"),
            ("directory https://a/\ncertificate ../x.y\n", "no full name"),
            ("directory https://a/\ncertificate .x.y\n", "no full name"),
            ("directory https://a/\ncertificate a.b c.d\ncertificate A.b\n", "begin with a.b"),
            ("directory https://a/\nname a.b\n", "`name` is no setting"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.problem.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn renewal_is_a_third_before_the_end_and_never_in_the_first_half() {
        let mut acme = read(DIRECTORY).unwrap();
        assert_eq!(acme.renew_s(1000, 10_000), 7000);
        acme.renew_before_s = Some(2000);
        assert_eq!(acme.renew_s(1000, 10_000), 8000);
        acme.renew_before_s = Some(30 * DAY_S);
        assert_eq!(acme.renew_s(1000, 10_000), 5500);
        assert_eq!(acme.renew_s(10_000, 1000), 1000, "a life that is none");
    }

    #[test]
    fn a_note_is_read_back() {
        let note = Note {
            directory: "https://a/".to_owned(),
            hosts: "a.b c.d".to_owned(),
            source: "https://c/".to_owned(),
            obtained_s: 1,
            renew_s: 2,
            tried_s: 3,
            failures: 4,
            next_s: 5,
            problem: "two\nlines".to_owned(),
        };
        let read = Note::parse(note.to_text().as_bytes());
        assert_eq!(read, Note { problem: wire::escape::visible(b"two\nlines"), ..note });
        assert_eq!(Note::parse(b"\xff\nrenew x\nelse 1\n"), Note::default());
    }
}
