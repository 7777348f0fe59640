//! What qmail-acme may have: its account's requests signed, a request for a certificate of control/acme, and that certificate put in its
//! place. Nothing that others compose is signed: the header of a request and the request for a certificate are made here.
//!
//! Guarantees: the account's key signs for the host of control/acme's directory alone; a certificate is requested for the hosts of
//! control/acme alone; what is put in place is for the key that is there, for those hosts and valid now, and appears whole or not at all.
//! Where: below etc/qmail/tls, in directories that root gave to qmailk (`qmail cert obtain`).

use crate::server::Server;
use certificates::account::AccountKey;
use certificates::{CERTIFICATE, Certificate, Entry};
use control::acme::{ACCOUNT_KEY, NOTE, NOTE_LEN_MAX};
use control::url::WebUrl;
use control::{Acme, Root};
use ipc::field::Bytes;
use ipc::keys::{Answer, Request};
use std::fmt::Write as _;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use sys::fs::Disk as _;
use sys::fs::real::RealDisk;
use wire::base64;

/// Longest URL, nonce and payload that are signed. A request for a hundred long names has 30 KiB in base64url.
const URL_LEN_MAX: usize = 2048;
const NONCE_LEN_MAX: usize = 512;
const PAYLOAD_LEN_MAX: usize = 28 * 1024;
/// Of a chain that goes out in handshakes.
const CHAIN_MAX: usize = 10;
/// Characters of a line of PEM.
const PEM_LINE_LEN: usize = 64;

/// The answer to qmail-acme's question; `None` if it is none of those.
pub(crate) fn answer(server: &Server, root: &Root, request: Request) -> Option<Answer> {
    let (id, answer) = match request {
        Request::AcmeAccount { id } => (id, account(root).map(|key| Answer::AcmeAccount { id, point: key.point().into() })),
        Request::AcmeSign { id, url, nonce, account, payload } => (id, sign(root, id, [&url, &nonce, &account, &payload])),
        Request::AcmeNames { id } => (id, names(root).map(|names| Answer::AcmeNames { id, names })),
        Request::AcmeState { id, name } => (id, Certified::find(root, server, &name).map(|found| found.state(root, id))),
        Request::AcmeRequest { id, name } => {
            let made = Certified::find(root, server, &name).and_then(|found| {
                certificates::request::request(&found.entry, &found.hosts).map_err(|problem| found.says(&problem))
            });
            (id, made.map(|der| Answer::AcmeRequest { id, der: der.into() }))
        }
        Request::AcmeInstall { id, name, chain } => {
            let chain = chain.into_iter().map(|der| der.0).collect();
            let installed = Certified::find(root, server, &name).and_then(|found| found.install(root, chain));
            server.forget();
            (id, installed.map(|()| Answer::AcmeDone { id }))
        }
        Request::AcmeNote { id, name, text } => {
            let noted = Certified::find(root, server, &name).and_then(|found| found.note(root, &text));
            (id, noted.map(|()| Answer::AcmeDone { id }))
        }
        Request::Certificate { .. } | Request::ClientCertificate { .. } | Request::Sign { .. } => return None,
    };
    Some(answer.unwrap_or_else(|problem| Answer::Refused { id, text: ipc::clip(problem.as_bytes()).into() }))
}

fn configuration(root: &Root) -> Result<Acme, String> {
    Acme::read(root).map_err(|error| error.to_string())?.ok_or_else(|| "there is no control/acme".to_owned())
}

fn names(root: &Root) -> Result<Vec<Bytes>, String> {
    let config = configuration(root)?;
    Ok(config.certificates.iter().filter_map(|hosts| hosts.first()).map(|name| name.as_str().into()).collect())
}

fn account(root: &Root) -> Result<AccountKey, String> {
    let path = root.tls().join(ACCOUNT_KEY);
    AccountKey::read(&path).map_err(|problem| format!("{}: {problem}; `qmail cert obtain NAME` makes it", path.display()))
}

/// A request to the authority: header and payload in base64url with a dot between them (RFC 7515 §5.1, RFC 8555 §6.2).
fn sign(root: &Root, id: u64, [url, nonce, kid, payload]: [&[u8]; 4]) -> Result<Answer, String> {
    let config = configuration(root)?;
    is_below(&config.directory, url, "url")?;
    let is_nonce = |nonce: &[u8]| nonce.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if nonce.is_empty() || nonce.len() > NONCE_LEN_MAX || !is_nonce(nonce) {
        return Err("the nonce is none (RFC 8555 §6.5.1)".to_owned());
    }
    // Empty: POST-as-GET. Otherwise an object, which no other thing that is signed in this format begins with.
    if payload.len() > PAYLOAD_LEN_MAX || !(payload.is_empty() || payload.starts_with(b"{") && payload.ends_with(b"}")) {
        return Err("the payload is no object".to_owned());
    }
    let key = account(root)?;
    let mut protected = String::from("{\"alg\":\"ES256\",");
    if kid.is_empty() {
        let [x, y] = coordinates(key.point()).ok_or("the account's key has no point")?;
        let _ = write!(protected, "\"jwk\":{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"{x}\",\"y\":\"{y}\"}},");
    } else {
        is_below(&config.directory, kid, "account")?;
        let _ = write!(protected, "\"kid\":\"{}\",", String::from_utf8_lossy(kid));
    }
    let (nonce, url) = (String::from_utf8_lossy(nonce), String::from_utf8_lossy(url));
    let _ = write!(protected, "\"nonce\":\"{nonce}\",\"url\":\"{url}\"}}");
    let input = format!("{}.{}", base64::encode_url(protected.as_bytes()), base64::encode_url(payload));
    let signature = key.sign(input.as_bytes())?;
    Ok(Answer::AcmeSigned { id, protected: protected.as_str().into(), signature: signature.into() })
}

/// Is it a URL of the directory's host? Then it has no character that JSON would escape, too.
fn is_below(directory: &WebUrl, url: &[u8], what: &str) -> Result<(), String> {
    let parsed = std::str::from_utf8(url).ok().filter(|url| url.len() <= URL_LEN_MAX).and_then(|url| WebUrl::parse(url).ok());
    let is_plain = !url.iter().any(|b| matches!(b, b'"' | b'\\'));
    match parsed {
        Some(url) if is_plain && url.is_tls && url.endpoint == directory.endpoint => Ok(()),
        _ => Err(format!(
            "`{what}` is no https URL of {}, the host of control/acme's directory; if that was changed, send SIGHUP to qmail-start",
            directory.endpoint
        )),
    }
}

/// x and y in base64url (RFC 7518 §6.2.1).
fn coordinates(point: &[u8]) -> Option<[String; 2]> {
    let (x, y) = point.strip_prefix(&[4])?.split_at_checked(32)?;
    (y.len() == 32).then(|| [base64::encode_url(x), base64::encode_url(y)])
}

/// A certificate of control/acme, with the key that is there.
struct Certified {
    name: String,
    hosts: Vec<String>,
    entry: Arc<Entry>,
}

impl Certified {
    fn find(root: &Root, server: &Server, name: &[u8]) -> Result<Self, String> {
        let shown = wire::escape::visible(name);
        let config = configuration(root)?;
        let hosts = config.hosts(name).ok_or_else(|| format!("control/acme has no line `certificate {shown}`"))?;
        let name = hosts.first().cloned().unwrap_or_default();
        let missing =
            || format!("{} holds no key that can be used; run `qmail cert obtain {name}`", root.tls().join(&name).display());
        let entry = server.by_directory(&name).or_else(|| {
            // It may have been made a moment ago.
            server.forget();
            server.by_directory(&name)
        });
        let entry = entry.ok_or_else(missing)?;
        Ok(Self { hosts: hosts.to_vec(), name, entry })
    }

    fn says(&self, problem: &str) -> String {
        format!("etc/qmail/tls/{}: {problem}", self.name)
    }

    fn covers(&self, certificate: &Certificate) -> bool {
        self.hosts.iter().all(|host| certificate.covers(host.as_bytes()))
    }

    fn state(&self, root: &Root, id: u64) -> Answer {
        let certificate = &self.entry.certificate;
        // None yet, or one that cannot be read: nothing is known.
        let note = std::fs::read(root.tls().join(&self.name).join(NOTE)).unwrap_or_default();
        let unix = |time_s: i64| u64::try_from(time_s).unwrap_or(0);
        Answer::AcmeState {
            id,
            hosts: self.hosts.iter().map(|host| host.as_str().into()).collect(),
            is_issued: !certificate.is_self_signed,
            covers: self.covers(certificate),
            not_before_s: unix(certificate.not_before_s),
            not_after_s: unix(certificate.not_after_s),
            note: note.get(..NOTE_LEN_MAX.min(note.len())).unwrap_or_default().into(),
        }
    }

    fn install(&self, root: &Root, chain: Vec<Vec<u8>>) -> Result<(), String> {
        if chain.len() > CHAIN_MAX {
            return Err(self.says("the chain from the authority is too long"));
        }
        let refused = |problem: &str| Err(self.says(&format!("what came from the authority is not used: it {problem}")));
        if let Some(problem) = chain.iter().skip(1).find_map(|above| certificates::parse(vec![above.clone()]).err()) {
            return refused(&problem);
        }
        let certificate = match certificates::parse(chain) {
            Ok(certificate) => certificate,
            Err(problem) => return refused(&problem),
        };
        let now_s = i64::try_from(sys::clock::unix_s()).unwrap_or(i64::MAX);
        if certificate.key_name != self.entry.certificate.key_name {
            return refused("is for another key");
        }
        if !self.covers(&certificate) {
            return refused("is not for all of the hosts");
        }
        if certificate.is_self_signed {
            return refused("is vouched for by nobody");
        }
        if certificate.not_after_s <= now_s {
            return refused("has expired");
        }
        self.replace(root, CERTIFICATE, &pem(&certificate.chain))
    }

    fn note(&self, root: &Root, text: &[u8]) -> Result<(), String> {
        let is_text = text.iter().all(|b| b.is_ascii_graphic() || matches!(b, b' ' | b'\n'));
        if text.len() > NOTE_LEN_MAX || !is_text {
            return Err(self.says("a note that is none"));
        }
        self.replace(root, NOTE, text)
    }

    /// Puts a file in its place: whole, and for good before this says so.
    fn replace(&self, root: &Root, file: &str, bytes: &[u8]) -> Result<(), String> {
        let path = Path::new(&self.name).join(file);
        let replaced = RealDisk::at(&root.tls()).and_then(|disk| replace(&disk, &path, bytes));
        replaced.map_err(|error| {
            let advice = if error.kind() == io::ErrorKind::PermissionDenied {
                format!("; the directory must be qmailk's: `qmail cert obtain {}` gives it to it", self.name)
            } else {
                String::new()
            };
            self.says(&format!("{file} cannot be written: {error}{advice}"))
        })
    }
}

fn replace(disk: &RealDisk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    // What an earlier process left.
    let _ = disk.unlink(&beside);
    let file = disk.create(&beside, 0o644)?;
    file.write_at(&[IoSlice::new(bytes)], 0)?;
    file.sync("certificate")?;
    disk.rename(&beside, path)?;
    disk.sync_dir(path.parent().unwrap_or(Path::new("")), "name of a certificate")
}

/// RFC 7468.
fn pem(chain: &[Vec<u8>]) -> Vec<u8> {
    let mut text = String::new();
    for der in chain {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for (at, digit) in base64::encode(der).chars().enumerate() {
            if at > 0 && at % PEM_LINE_LEN == 0 {
                text.push('\n');
            }
            text.push(digit);
        }
        text.push_str("\n-----END CERTIFICATE-----\n");
    }
    text.into_bytes()
}
