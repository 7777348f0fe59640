//! The certificates that qmail-keys has, by the names in them. A thread looks for changes; handshakes never wait for it.
//!
//! Of several for a name a client gets one that it can check, by the algorithm that it likes best: one that has not expired before one that
//! has, one that an authority vouches for before one that only its own key does.

use crate::keys::{Keys, RemoteKey};
use ipc::keys::{Answer, Request, TLS};
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Certificates of one host; an operator of more domains than this has a proxy of his own.
const COUNT_MAX: u32 = 10_000;
/// How often qmail-keys is asked while it has no certificate or does not answer.
const RETRY: Duration = Duration::from_millis(250);
/// How often it is asked otherwise; what was replaced under a key that is gone is noticed at once.
const REFRESH: Duration = Duration::from_secs(5);

/// One certificate with its chain, and the channel binding that follows from it.
#[derive(Debug)]
struct Entry {
    key: Arc<CertifiedKey>,
    end_point: Option<Vec<u8>>,
    is_self_signed: bool,
    /// UNIX seconds.
    not_after_s: i64,
}

impl Entry {
    /// What stands before the client's liking; the smaller, the better.
    fn rank(&self, now_s: i64) -> (bool, bool) {
        (self.not_after_s < now_s, self.is_self_signed)
    }

    /// At which of the offered schemes its key signs first.
    fn place(&self, offered: &[SignatureScheme]) -> Option<usize> {
        offered.iter().position(|scheme| self.key.key.choose_scheme(&[*scheme]).is_some())
    }
}

/// The one for a client that checks signatures by these schemes, which it likes best first.
fn choose<'a>(entries: &'a [Arc<Entry>], offered: &[SignatureScheme], now_s: i64) -> Option<&'a Arc<Entry>> {
    if let [only] = entries {
        return Some(only);
    }
    entries.iter().min_by_key(|entry| {
        let place = entry.place(offered);
        (place.is_none(), entry.rank(now_s), place)
    })
}

/// All certificates of a generation.
#[derive(Debug, Default)]
struct Table {
    generation: u64,
    names: HashMap<Vec<u8>, Vec<Arc<Entry>>>,
    default: Vec<Arc<Entry>>,
    /// The default is no makeshift.
    has_default: bool,
}

impl Table {
    /// The host's own, those for all hosts of its domain, or the default ones.
    fn find(&self, name: Option<&str>) -> &[Arc<Entry>] {
        let name = name.map(str::to_ascii_lowercase);
        let own = name.as_ref().and_then(|name| {
            let wildcard = name.split_once('.').map(|(_, domain)| format!("*.{domain}"));
            self.names.get(name.as_bytes()).or_else(|| self.names.get(wildcard?.as_bytes()))
        });
        own.map_or(&self.default, Vec::as_slice)
    }
}

/// The present table.
#[derive(Debug)]
pub(super) struct Certificates {
    keys: Arc<Keys>,
    table: RwLock<Table>,
}

impl Certificates {
    /// Asks once, and from then on a thread does, as long as anybody has this value.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn start(keys: Arc<Keys>) -> io::Result<Arc<Self>> {
        let certificates = Arc::new(Self { keys, table: RwLock::default() });
        certificates.refresh();
        let weak = Arc::downgrade(&certificates);
        std::thread::Builder::new().name("certificates".to_owned()).spawn(move || sys::vital(|| follow(&weak)))?;
        Ok(certificates)
    }

    pub(super) fn are_available(&self) -> bool {
        self.keys.is_answering() && !self.table.read().unwrap_or_else(PoisonError::into_inner).default.is_empty()
    }

    /// Takes what qmail-keys has, if that is another generation. What cannot be had now leaves the old.
    fn refresh(&self) {
        let known = self.table.read().unwrap_or_else(PoisonError::into_inner).generation;
        if let Some(table) = self.fetch(known) {
            *self.table.write().unwrap_or_else(PoisonError::into_inner) = table;
        }
    }

    fn fetch(&self, known: u64) -> Option<Table> {
        let mut table = Table::default();
        for number in 0..COUNT_MAX {
            match self.keys.ask(|id| Request::Certificate { id, number }).ok()? {
                Answer::NoCertificate { generation, count, .. } if count == number => {
                    table.generation = generation;
                    return Some(table).filter(|table| table.generation != known);
                }
                Answer::Certificate { generation, .. } if generation == known => return None,
                // It changed while it was read: the next time.
                Answer::Certificate { generation, .. } if number > 0 && generation != table.generation => return None,
                answer => table.add(answer, &self.keys)?,
            }
        }
        Some(table)
    }
}

impl Table {
    fn add(&mut self, answer: Answer, keys: &Arc<Keys>) -> Option<()> {
        let Answer::Certificate { generation, key, schemes, names, is_default, end_point, chain, .. } = answer else {
            return None;
        };
        self.generation = generation;
        let schemes: Vec<SignatureScheme> = schemes.into_iter().map(SignatureScheme::from).collect();
        if schemes.is_empty() || chain.is_empty() {
            return Some(());
        }
        let key = Arc::new(RemoteKey { keys: Arc::clone(keys), purpose: TLS, name: key.0, schemes });
        let chain: Vec<CertificateDer<'static>> = chain.into_iter().map(|der| CertificateDer::from(der.0)).collect();
        let end_point = Some(end_point.0).filter(|hash| !hash.is_empty());
        let (is_self_signed, not_after_s) = chain.first().map_or((true, 0), about);
        let key = Arc::new(CertifiedKey::new(chain, key));
        let entry = Arc::new(Entry { key, end_point, is_self_signed, not_after_s });
        for name in names {
            self.names.entry(name.0).or_default().push(Arc::clone(&entry));
        }
        // Until one comes that is meant for it, the first one.
        if is_default && !self.has_default {
            self.default.clear();
        }
        if is_default || self.default.is_empty() {
            self.default.push(entry);
        }
        self.has_default |= is_default;
        Some(())
    }
}

/// The certificate that one connection gets.
#[derive(Debug)]
pub(super) struct Choice {
    certificates: Arc<Certificates>,
    entry: OnceLock<Arc<Entry>>,
}

impl Choice {
    pub(super) fn new(certificates: &Arc<Certificates>) -> Self {
        Self { certificates: Arc::clone(certificates), entry: OnceLock::new() }
    }

    /// Channel binding of the certificate, once it is chosen.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        self.entry.get()?.end_point.clone()
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.certificates.table.read().unwrap_or_else(PoisonError::into_inner);
        let entry = choose(table.find(hello.server_name()), hello.signature_schemes(), now_s())?;
        // After a HelloRetryRequest it is asked for again; what was said first stays.
        Some(Arc::clone(&self.entry.get_or_init(|| Arc::clone(entry)).key))
    }
}

/// Is it self-signed, and when does it end, in UNIX seconds?
fn about(der: &CertificateDer<'static>) -> (bool, i64) {
    X509Certificate::from_der(der).map_or((true, 0), |(_, certificate)| {
        (certificate.issuer() == certificate.subject(), certificate.validity().not_after.timestamp())
    })
}

fn now_s() -> i64 {
    UnixTime::now().as_secs().try_into().unwrap_or(i64::MAX)
}

fn follow(certificates: &Weak<Certificates>) {
    loop {
        let Some((keys, is_available)) = certificates.upgrade().map(|all| (Arc::clone(&all.keys), all.are_available())) else {
            return;
        };
        if is_available {
            keys.wait(REFRESH);
        } else {
            std::thread::sleep(RETRY);
        }
        if let Some(certificates) = certificates.upgrade() {
            certificates.refresh();
        }
    }
}
