//! What qmail-keys is asked: signatures of the account, requests for certificates, and what is known of them.

use crate::Trouble;
use control::acme::Note;
use ipc::keys::{Answer, Request};
use ipc_async::Client;

/// What there is of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub hosts: Vec<String>,
    /// An authority vouches for it.
    pub is_issued: bool,
    /// It has all of the hosts.
    pub covers: bool,
    /// UNIX seconds.
    pub not_before_s: u64,
    pub not_after_s: u64,
    pub note: Note,
}

/// The way to qmail-keys. What it does not do is temporary, and its text says why.
#[derive(Clone)]
pub struct Oracle(pub Client<Answer>);

impl Oracle {
    async fn ask(&self, question: impl FnOnce(u64) -> Request) -> Result<Answer, Trouble> {
        match self.0.ask(question).await {
            Ok((Answer::Refused { text, .. }, _)) => Err(Trouble::new("qmail-keys", &String::from_utf8_lossy(&text))),
            Ok((answer, _)) => Ok(answer),
            Err(gone) => Err(Trouble::new("qmail-keys", &gone)),
        }
    }

    /// x and y of the account's key.
    ///
    /// # Errors
    /// There is none, or qmail-keys is away.
    pub async fn account(&self) -> Result<Vec<u8>, Trouble> {
        match self.ask(|id| Request::AcmeAccount { id }).await? {
            Answer::AcmeAccount { point, .. } => Ok(point.0),
            _ => Err(unexpected()),
        }
    }

    /// The protected header for this request to the authority, and the signature.
    ///
    /// # Errors
    /// Not a URL of the authority's, or qmail-keys is away.
    pub async fn sign(&self, url: &str, nonce: &str, account: &str, payload: &str) -> Result<(Vec<u8>, Vec<u8>), Trouble> {
        let request =
            |id| Request::AcmeSign { id, url: url.into(), nonce: nonce.into(), account: account.into(), payload: payload.into() };
        match self.ask(request).await? {
            Answer::AcmeSigned { protected, signature, .. } => Ok((protected.0, signature.0)),
            _ => Err(unexpected()),
        }
    }

    /// The names of all certificates.
    ///
    /// # Errors
    /// control/acme cannot be read, or qmail-keys is away.
    pub async fn names(&self) -> Result<Vec<String>, Trouble> {
        match self.ask(|id| Request::AcmeNames { id }).await? {
            Answer::AcmeNames { names, .. } => Ok(texts(names)),
            _ => Err(unexpected()),
        }
    }

    /// What there is of one.
    ///
    /// # Errors
    /// It is not in control/acme or has no key yet, or qmail-keys is away.
    pub async fn state(&self, name: &str) -> Result<State, Trouble> {
        match self.ask(|id| Request::AcmeState { id, name: name.into() }).await? {
            Answer::AcmeState { hosts, is_issued, covers, not_before_s, not_after_s, note, .. } => {
                Ok(State { hosts: texts(hosts), is_issued, covers, not_before_s, not_after_s, note: Note::parse(&note) })
            }
            _ => Err(unexpected()),
        }
    }

    /// A request for a certificate, DER.
    ///
    /// # Errors
    /// As [`Oracle::state`].
    pub async fn request(&self, name: &str) -> Result<Vec<u8>, Trouble> {
        match self.ask(|id| Request::AcmeRequest { id, name: name.into() }).await? {
            Answer::AcmeRequest { der, .. } => Ok(der.0),
            _ => Err(unexpected()),
        }
    }

    /// Puts a chain (DER) in its place.
    ///
    /// # Errors
    /// As [`Oracle::state`]; it is not for its key and hosts, or the disk does not want.
    pub async fn install(&self, name: &str, chain: &[Vec<u8>]) -> Result<(), Trouble> {
        let chain = chain.iter().map(|der| der.as_slice().into()).collect();
        self.ask(|id| Request::AcmeInstall { id, name: name.into(), chain }).await.map(drop)
    }

    /// Keeps what is to be known.
    ///
    /// # Errors
    /// As [`Oracle::state`], or the disk does not want.
    pub async fn note(&self, name: &str, note: &Note) -> Result<(), Trouble> {
        let text = note.to_text().as_bytes().into();
        self.ask(|id| Request::AcmeNote { id, name: name.into(), text }).await.map(drop)
    }
}

fn unexpected() -> Trouble {
    "qmail-keys: another answer than was asked for".into()
}

fn texts(all: Vec<ipc::field::Bytes>) -> Vec<String> {
    all.into_iter().map(|text| String::from_utf8_lossy(&text).into_owned()).collect()
}
