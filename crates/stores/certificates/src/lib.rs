//! The certificates and private keys below etc/qmail/tls: `NAME/cert.pem` with the chain, `NAME/key.pem` with the key; and, to be shown to
//! other servers, `NAME/clientcert.pem` with `NAME/clientkey.pem`.
//!
//! Guarantees: a key belongs to its certificate and can be read by its owner alone, or is refused; files have bounds. A private key is
//! wiped from the memory of this code when it has been handed to the library that signs by it, and never printed.
//! Used by qmail-keys, which serves them, and by the administrator's command, which looks at them.
#![forbid(unsafe_code)]

pub mod account;
mod pem;
pub mod request;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

/// A PEM file of a long chain has 20 KiB.
const FILE_LEN_MAX: u64 = 256 * 1024;
/// Chain and names go out in one datagram, with their lengths and a few small fields.
const LISTED_LEN_MAX: usize = ipc::DATAGRAM_LEN_MAX - 1024;
/// DNS names of a certificate that are used; a public authority allows 100.
const HOSTS_MAX: usize = 100;

/// Every scheme that a server may sign by, best first (RFC 8446 §4.2.3).
const SCHEMES: [SignatureScheme; 9] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// A certificate with its key.
#[derive(Debug)]
pub struct Entry {
    pub certificate: Certificate,
    /// What it can sign by, best first.
    pub schemes: Vec<SignatureScheme>,
    pub key: Arc<dyn SigningKey>,
}

/// A certificate and what stands in it.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// DER, the host's own first.
    pub chain: Vec<Vec<u8>>,
    /// SHA-256 of the public key.
    pub key_name: Vec<u8>,
    /// DNS names in lower case.
    pub hosts: Vec<Vec<u8>>,
    /// Channel binding tls-server-end-point (RFC 5929); empty where it is not defined.
    pub end_point: Vec<u8>,
    /// As the certificate writes it.
    pub issuer: String,
    /// Nobody but its key vouches for it.
    pub is_self_signed: bool,
    /// UNIX seconds.
    pub not_before_s: i64,
    pub not_after_s: i64,
    /// The bits of the public key, as they stand in the certificate.
    pub public_key: Vec<u8>,
}

impl Certificate {
    /// Is it for this host? `*.` first stands for one label (RFC 6125 §6.4.3). In lower case.
    #[must_use]
    pub fn covers(&self, host: &[u8]) -> bool {
        let wildcard = host.iter().position(|b| *b == b'.').map(|dot| [b"*", host.get(dot..).unwrap_or_default()].concat());
        self.hosts.iter().any(|known| known == host || Some(known) == wildcard.as_ref())
    }
}

/// The file with the chain, the host's own certificate first.
pub const CERTIFICATE: &str = "cert.pem";
/// The file with the private key: PKCS #8, SEC 1 or PKCS #1.
pub const KEY: &str = "key.pem";

/// What we show as a client of other servers, and its key.
pub const CLIENT_CERTIFICATE: &str = "clientcert.pem";
pub const CLIENT_KEY: &str = "clientkey.pem";

/// What a certificate is for. The key of one purpose is not used for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// We are the server.
    #[default]
    Server,
    /// We are the client.
    Client,
}

impl Purpose {
    /// The files of certificate and key in their directory.
    #[must_use]
    pub const fn files(self) -> [&'static str; 2] {
        match self {
            Self::Server => [CERTIFICATE, KEY],
            Self::Client => [CLIENT_CERTIFICATE, CLIENT_KEY],
        }
    }

    /// Is a directory with these files meant for this purpose? One without any is meant for a server.
    #[must_use]
    pub fn is_of(self, dir: &Path) -> bool {
        let has = |purpose: Self| purpose.files().iter().any(|file| dir.join(file).exists());
        has(self) || self == Self::Server && !has(Self::Client)
    }
}

/// The certificate of a directory.
///
/// # Errors
/// It cannot be read, or cannot be used; the text says why.
pub fn certificate(dir: &Path, purpose: Purpose) -> Result<Certificate, String> {
    let [file, _] = purpose.files();
    let pem = read(&dir.join(file), false)?;
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|error| format!("{file}: {error}"))?;
    parse(chain.iter().map(|der| der.to_vec()).collect()).map_err(|problem| format!("{file} {problem}"))
}

/// A certificate of a chain (DER), the host's own first.
///
/// # Errors
/// It cannot be used; the text says why.
pub fn parse(chain: Vec<Vec<u8>>) -> Result<Certificate, String> {
    let first = chain.first().ok_or("holds no certificate")?;
    let (rest, parsed) = X509Certificate::from_der(first).map_err(|error| format!("cannot be read: {error}"))?;
    if !rest.is_empty() {
        return Err("has bytes behind a certificate".to_owned());
    }
    let hosts = hosts(&parsed);
    let lens = chain.iter().map(Vec::len).chain(hosts.iter().map(Vec::len));
    if lens.map(|len| len.saturating_add(4)).sum::<usize>() > LISTED_LEN_MAX {
        return Err(format!("has a chain and names in it that are longer than {LISTED_LEN_MAX} bytes"));
    }
    Ok(Certificate {
        key_name: sha256(parsed.public_key().raw),
        hosts,
        end_point: end_point(&parsed, first),
        issuer: parsed.issuer().to_string(),
        is_self_signed: parsed.issuer() == parsed.subject(),
        not_before_s: parsed.validity().not_before.timestamp(),
        not_after_s: parsed.validity().not_after.timestamp(),
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
        chain,
    })
}

/// How many certificates there are in the text of a PEM file of authorities.
///
/// # Errors
/// One of them is none.
pub fn authorities(pem: &[u8]) -> Result<usize, String> {
    let mut count = 0usize;
    for der in CertificateDer::pem_slice_iter(pem) {
        let der = der.map_err(|error| error.to_string())?;
        X509Certificate::from_der(&der).map_err(|error| format!("holds something that is no certificate: {error}"))?;
        count = count.saturating_add(1);
    }
    Ok(count)
}

/// A certificate with its key.
///
/// # Errors
/// As [`certificate`], or the key cannot be used or is another's.
pub fn entry(dir: &Path, purpose: Purpose) -> Result<Entry, String> {
    let certificate = certificate(dir, purpose)?;
    let [file, secret] = purpose.files();
    let text = Zeroizing::new(read(&dir.join(secret), true)?);
    let blocks = pem::blocks(&text).map_err(|error| format!("{secret}: {error}"))?;
    let der = private_key(&blocks).map_err(|error| format!("{secret} {error}"))?;
    let unusable =
        || format!("{secret}: no key that can be used; ECDSA on P-256 or P-384, Ed25519, and RSA of 2048 bits or more can");
    let key = any_supported_type(&der).map_err(|_| unusable())?;
    let schemes: Vec<SignatureScheme> = SCHEMES.into_iter().filter(|scheme| key.choose_scheme(&[*scheme]).is_some()).collect();
    if schemes.is_empty() {
        return Err(unusable());
    }
    let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    CertifiedKey::new(chain, Arc::clone(&key)).keys_match().map_err(|_| format!("{secret} is not the key of {file}"))?;
    Ok(Entry { certificate, schemes, key })
}

/// The one key of a file, borrowed: what is read is wiped by its owner.
fn private_key(blocks: &[pem::Block]) -> Result<PrivateKeyDer<'_>, String> {
    let mut keys = blocks.iter().filter(|block| block.label.ends_with("PRIVATE KEY"));
    let key = keys.next().ok_or("holds no private key")?;
    if keys.next().is_some() {
        return Err("holds more than one private key".to_owned());
    }
    let der = &key.der[..];
    match key.label.as_str() {
        "PRIVATE KEY" => Ok(PrivatePkcs8KeyDer::from(der).into()),
        "EC PRIVATE KEY" => Ok(PrivateSec1KeyDer::from(der).into()),
        "RSA PRIVATE KEY" => Ok(PrivatePkcs1KeyDer::from(der).into()),
        "ENCRYPTED PRIVATE KEY" => Err("is encrypted; write it without a password".to_owned()),
        label => Err(format!("holds a {label}, which is not read; convert it to PKCS #8")),
    }
}

/// A private key must be its owner's alone.
fn read(path: &Path, is_secret: bool) -> Result<Vec<u8>, String> {
    let name = path.file_name().unwrap_or_default().display();
    let failed = |error: io::Error| format!("{name}: {error}");
    // A FIFO in the place of a file must not stop whoever looks.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        // From qmail-keys, which is confined.
        Errno::ACCESS => {
            format!("{name} cannot be read; it must be a file here, no link to elsewhere, and a key qmailk's (chown)")
        }
        errno => failed(errno.into()),
    });
    let file = File::from(opened?);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("{name} is no file"));
    }
    if is_secret && metadata.mode() & 0o077 != 0 {
        return Err(format!("{name} can be read by others (mode {:o}); chmod 600 it", metadata.mode() & 0o777));
    }
    // Room for all of it: growing would leave pieces of a key behind.
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(FILE_LEN_MAX)).unwrap_or(0).saturating_add(1));
    file.take(FILE_LEN_MAX.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_LEN_MAX { Err(format!("{name} is longer than {FILE_LEN_MAX} bytes")) } else { Ok(bytes) }
}

/// The DNS names; of an old certificate without them the common name.
fn hosts(certificate: &X509Certificate<'_>) -> Vec<Vec<u8>> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let dns = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(host) => Some(*host),
        _ => None,
    });
    let mut hosts: Vec<Vec<u8>> = dns.take(HOSTS_MAX).map(|host| host.to_ascii_lowercase().into_bytes()).collect();
    if names.is_none() {
        hosts.extend(
            certificate
                .subject()
                .iter_common_name()
                .filter_map(|name| name.as_str().ok())
                .take(1)
                .map(|name| name.to_ascii_lowercase().into_bytes()),
        );
    }
    hosts
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    digest(&aws_lc_rs::digest::SHA256, bytes)
}

fn digest(algorithm: &'static aws_lc_rs::digest::Algorithm, bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(algorithm, bytes).as_ref().to_vec()
}

/// RFC 5929 §4.1: the hash of the certificate's own signature, SHA-256 for weaker ones, none where there is not one hash.
fn end_point(certificate: &X509Certificate<'_>, der: &[u8]) -> Vec<u8> {
    use aws_lc_rs::digest::{SHA256, SHA384, SHA512};
    match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        // MD5, SHA-1 and SHA-256, with RSA and ECDSA.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => digest(&SHA256, der),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => digest(&SHA384, der),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => digest(&SHA512, der),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    /// `openssl ARGS`, which has to succeed.
    fn openssl(args: &str, dir: &Path) {
        let output = Command::new("openssl").args(args.split(' ')).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A key made by openssl, and a certificate for it.
    fn made(make: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for command in make.split(" && ") {
            openssl(command, dir.path());
        }
        openssl("req -x509 -key key.pem -out cert.pem -days 2 -subj /CN=Old.Example", dir.path());
        std::fs::set_permissions(dir.path().join(KEY), std::fs::Permissions::from_mode(0o400)).unwrap();
        dir
    }

    #[test]
    fn keys_as_openssl_writes_them() {
        use SignatureScheme as S;
        for (make, scheme) in [
            ("ecparam -name prime256v1 -genkey -out key.pem", S::ECDSA_NISTP256_SHA256),
            ("ecparam -name secp384r1 -genkey -noout -out key.pem", S::ECDSA_NISTP384_SHA384),
            ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem", S::ECDSA_NISTP256_SHA256),
            ("genpkey -algorithm ED25519 -out key.pem", S::ED25519),
            ("genrsa -out key.pem 2048", S::RSA_PSS_SHA256),
            ("genrsa -traditional -out key.pem 2048", S::RSA_PSS_SHA256),
        ] {
            let dir = made(make);
            let entry = entry(dir.path(), Purpose::Server).unwrap_or_else(|error| panic!("{make}: {error}"));
            assert_eq!(entry.schemes.first(), Some(&scheme), "{make}");
            assert_eq!(entry.certificate.hosts, [b"old.example"], "without subjectAltName");
            assert!(entry.certificate.is_self_signed && !format!("{entry:?}").contains("PRIVATE"));
        }
    }

    #[test]
    fn keys_that_are_not_used_say_why() {
        for (make, why) in [
            ("genrsa -out key.pem 1024", "RSA of 2048 bits or more"),
            ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out key.pem", "ECDSA on P-256 or P-384"),
            ("genpkey -algorithm ED448 -out key.pem", "no key that can be used"),
        ] {
            let dir = made(make);
            let error = entry(dir.path(), Purpose::Server).unwrap_err();
            assert!(error.starts_with("key.pem") && error.contains(why), "{make}: {error}");
        }
        let dir = made("genrsa -out key.pem 2048");
        openssl("pkcs8 -topk8 -in key.pem -passout pass:x -out locked.pem", dir.path());
        let (key, locked) = (dir.path().join(KEY), dir.path().join("locked.pem"));
        std::fs::rename(&locked, &key).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert!(entry(dir.path(), Purpose::Server).unwrap_err().contains("without a password"));
        for mode in [0o440, 0o404, 0o420] {
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(entry(dir.path(), Purpose::Server).unwrap_err().contains("by others"), "{mode:o}");
        }
    }

    #[test]
    fn a_certificate_that_no_answer_has_room_for_is_refused_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let hosts: Vec<String> = (0..100).map(|n| format!("{}.{}.{n}.example", "a".repeat(60), "b".repeat(60))).collect();
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::new(hosts).unwrap().self_signed(&key).unwrap().pem();
        std::fs::write(dir.path().join(CERTIFICATE), &pem).unwrap();
        assert_eq!(certificate(dir.path(), Purpose::Server).unwrap().hosts.len(), 100);
        std::fs::write(dir.path().join(CERTIFICATE), pem.repeat(3)).unwrap();
        assert!(certificate(dir.path(), Purpose::Server).unwrap_err().contains("longer than"));
    }
}
