//! `qmail cert`, and the certificate that a new instance begins with.

use std::path::{Path, PathBuf};

use certificates::{CERTIFICATE, Certificate, KEY, Purpose};
use control::acme::{NOTE, Note};
use control::{Acme, Id, Ids, Root};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};
use wire::Domain;
use wire::civil::Civil;

use crate::files::{give_dir, make_file, make_tree};
use crate::print::Printer;
use crate::{Failure, cli, io_failure, obtain};

/// The role that reads keys.
pub(crate) const ROLE: &str = "qmailk";
/// Of a certificate that nobody checks: long enough not to be a nuisance.
const SELF_SIGNED_S: u64 = 10 * 365 * 86_400;
/// Clocks differ.
const BEFORE_S: u64 = 86_400;

/// Runs the command.
///
/// # Errors
/// A name that is none, something that is there already, or a disk that does not want.
pub fn run(root: &Root, command: &cli::Cert, printer: Printer) -> Result<(), Failure> {
    match command {
        cli::Cert::List => list(root, printer),
        cli::Cert::Obtain { hosts, agree_tos, force } => obtain::obtain(root, hosts, *agree_tos, *force, printer),
        cli::Cert::Renew { name, force } => obtain::renew(root, name.as_deref(), *force, printer),
        cli::Cert::SelfSigned { host } => {
            let ids = root.ids().map_err(|error| Failure::temporary(error.to_string()))?;
            let made = make_self_signed(root, host.as_bytes(), &ids)?;
            // Its directory may have been left empty.
            if made.iter().skip(1).all(|(_, is_new)| *is_new) {
                printer.done(&format!("made {}; it counts in a few seconds", root.tls().join(host).display()))
            } else {
                Err(Failure::permanent(format!("{} is there already; nothing was changed", root.tls().join(host).display())))
            }
        }
    }
}

fn list(root: &Root, printer: Printer) -> Result<(), Failure> {
    let columns = [
        ("NAME", "name"),
        ("FOR", "for"),
        ("HOSTS", "hosts"),
        ("ISSUER", "issuer"),
        ("SELF-SIGNED", "self_signed"),
        ("SOURCE", "source"),
        ("DAYS LEFT", "days_left"),
        ("RENEWED", "renew_s"),
        ("PROBLEM", "problem"),
    ];
    // What is wrong with control/acme is for `qmail check`.
    let acme = Acme::read(root).ok().flatten();
    let rows: Vec<Vec<Value>> = all(root)?.iter().map(|found| row(found, acme.as_ref(), printer)).collect();
    printer.rows(&columns, &rows, "no certificates")
}

/// A directory below etc/qmail/tls and what is in it.
pub(crate) struct Found {
    pub(crate) dir: PathBuf,
    pub(crate) purpose: Purpose,
    pub(crate) certificate: Option<Certificate>,
    /// Why qmail-keys will not use it.
    pub(crate) problem: Option<String>,
    /// What qmail-acme has noted.
    pub(crate) note: Note,
}

/// All directories, by name.
///
/// # Errors
/// etc/qmail/tls cannot be read.
pub(crate) fn all(root: &Root) -> Result<Vec<Found>, Failure> {
    let tls = root.tls();
    let entries = std::fs::read_dir(&tls).map_err(|error| io_failure(&tls, &error))?;
    let mut dirs: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_certificate(path)).collect();
    dirs.sort();
    let mut all = Vec::new();
    for dir in dirs {
        let purposes = [Purpose::Server, Purpose::Client].into_iter().filter(|purpose| purpose.is_of(&dir));
        all.extend(purposes.map(|purpose| found(dir.clone(), purpose)));
    }
    Ok(all)
}

/// As qmail-keys chooses.
fn is_certificate(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    path.is_dir() && name.is_some_and(|name| !name.starts_with('.'))
}

fn found(dir: PathBuf, purpose: Purpose) -> Found {
    let (certificate, problem) = match certificates::certificate(&dir, purpose) {
        Ok(certificate) => (Some(certificate), certificates::entry(&dir, purpose).err()),
        Err(problem) => (None, Some(problem)),
    };
    // What is noted is of those that are obtained, for servers.
    let note = match purpose {
        Purpose::Server => std::fs::read(dir.join(NOTE)).map(|text| Note::parse(&text)).unwrap_or_default(),
        Purpose::Client => Note::default(),
    };
    Found { dir, purpose, certificate, problem, note }
}

/// Days until the end; negative behind it.
pub(crate) fn days_left(certificate: &Certificate) -> i64 {
    let now = i64::try_from(sys::clock::unix_s()).unwrap_or(i64::MAX);
    certificate.not_after_s.saturating_sub(now).div_euclid(86_400)
}

impl Found {
    /// Where the certificate comes from: its authority's directory, if it was obtained.
    fn source(&self) -> Value {
        match &self.certificate {
            None => Value::Null,
            Some(certificate) if certificate.is_self_signed => "self-signed".into(),
            Some(_) if self.note.source.is_empty() => "file".into(),
            Some(_) => self.note.source.clone().into(),
        }
    }

    fn name(&self) -> String {
        self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Did the last attempt to renew it fail, as it is to be now?
    fn has_failed(&self, acme: &Acme) -> bool {
        let hosts = acme.hosts(self.name().as_bytes()).unwrap_or_default().join(" ");
        self.note.failures > 0 && self.note.directory == acme.directory_text && self.note.hosts == hosts
    }

    /// When it is renewed, or after failures tried again: UNIX seconds; 0: nobody does it.
    fn renew_s(&self, acme: &Acme) -> u64 {
        match acme.hosts(self.name().as_bytes()) {
            Some(_) if self.has_failed(acme) => self.note.next_s,
            Some(_) => self.note.renew_s,
            None => 0,
        }
    }

    /// Why the last attempt to renew it failed.
    pub(crate) fn failure(&self, acme: &Acme) -> Option<String> {
        let Note { failures, problem, .. } = &self.note;
        self.has_failed(acme).then(|| format!("{problem} (attempts: {failures})"))
    }
}

fn row(found: &Found, acme: Option<&Acme>, printer: Printer) -> Vec<Value> {
    let renewed = match (acme.map_or(0, |acme| found.renew_s(acme)), printer.json) {
        (0, _) => Value::Null,
        (at_s, true) => at_s.into(),
        (at_s, false) => day(at_s).into(),
    };
    let of = |value: fn(&Certificate) -> Value| found.certificate.as_ref().map_or(Value::Null, value);
    vec![
        found.name().into(),
        (if found.purpose == Purpose::Server { "server" } else { "client" }).into(),
        of(|c| c.hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect::<Vec<_>>().into()),
        of(|c| c.issuer.clone().into()),
        of(|c| c.is_self_signed.into()),
        found.source(),
        of(|c| json!(days_left(c))),
        renewed,
        found.problem.clone().or_else(|| found.failure(acme?)).into(),
    ]
}

/// Makes `NAME/cert.pem` and `NAME/key.pem` (ECDSA P-256, ten years) where they are missing; nothing is overwritten, and a certificate
/// without its key is not completed by another's. What there is now, and whether it is new.
///
/// # Errors
/// Not a host name, or the disk's.
pub(crate) fn make_self_signed(root: &Root, host: &[u8], ids: &Ids) -> Result<Vec<(PathBuf, bool)>, Failure> {
    let domain = Domain::new(host).map_err(|error| Failure::usage(format!("{}: {error}", wire::escape::visible(host))))?;
    let name = std::str::from_utf8(domain.as_bytes()).ok().filter(|name| name.is_ascii() && !name.starts_with('['));
    let name =
        name.ok_or_else(|| Failure::usage(format!("{}: no host name that a certificate can have", wire::escape::visible(host))))?;
    let dir = root.tls().join(name);
    let (certificate, key) = (dir.join(CERTIFICATE), dir.join(KEY));
    if certificate.exists() || key.exists() {
        return Ok(vec![(dir, false), (certificate, false), (key, false)]);
    }
    let (chain, secret) = self_signed(name).map_err(|error| Failure::temporary(format!("{}: {error}", dir.display())))?;
    let owner: Option<Id> = ids.get(ROLE);
    // A directory without a pair would count as one that somebody is about to fill.
    let fill = |beside: &Path| {
        make_file(&beside.join(KEY), secret.as_bytes(), 0o600, owner)?;
        make_file(&beside.join(CERTIFICATE), chain.as_bytes(), 0o644, None)?;
        give_dir(beside, 0o755, None)
    };
    if make_tree(&dir, fill).map_err(|error| io_failure(&dir, &error))? {
        return Ok(vec![(dir, true), (key, true), (certificate, true)]);
    }
    let mut made = vec![(dir, false)];
    // The key first: qmail-keys looks at a pair that is whole.
    for (path, bytes, mode, owner) in [(&key, secret, 0o600, owner), (&certificate, chain, 0o644, None)] {
        match make_file(path, bytes.as_bytes(), mode, owner) {
            Ok(is_new) => made.push((path.clone(), is_new)),
            Err(error) => {
                // Half a pair would be in the way of the next attempt; nobody has used it yet.
                if made.iter().skip(1).all(|(_, is_new)| *is_new) {
                    let _ = (std::fs::remove_file(&certificate), std::fs::remove_file(&key));
                }
                return Err(io_failure(path, &error));
            }
        }
    }
    Ok(made)
}

/// A day for people, in UTC.
pub(crate) fn day(unix_s: u64) -> String {
    let civil = Civil::from_unix(unix_s);
    format!("{:04}-{:02}-{:02}", civil.year, civil.month, civil.day)
}

/// PEM of the certificate and of its key.
fn self_signed(host: &str) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([host.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, host);
    let now = sys::clock::unix_s();
    let date = |unix_s: u64| {
        let day = Civil::from_unix(unix_s);
        rcgen::date_time_ymd(i32::try_from(day.year).unwrap_or(9999), day.month, day.day)
    };
    (params.not_before, params.not_after) = (date(now.saturating_sub(BEFORE_S)), date(now.saturating_add(SELF_SIGNED_S)));
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
