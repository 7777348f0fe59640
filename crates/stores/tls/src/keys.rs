//! Asking qmail-keys, from threads that may wait.

use ipc::keys::{Answer, Request};
use ipc::{DATAGRAM_LEN_MAX, Message};
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use sys::{Received, Seqpacket};

/// For one signature.
pub const ORACLE_MAX: Duration = Duration::from_secs(2);

/// The way to qmail-keys.
#[derive(Debug)]
pub(crate) struct Keys {
    run: Arc<OwnedFd>,
    socket: &'static str,
    /// Connections that nobody uses now: one question at a time on each, so there are as many as threads that ask.
    idle: Mutex<Vec<Seqpacket>>,
    ids: AtomicU64,
    /// The last question was answered.
    is_answering: AtomicBool,
    /// Something is wrong: the certificates are old, or nobody answers.
    attention: Mutex<bool>,
    called: Condvar,
}

impl Keys {
    pub(crate) fn new(run: Arc<OwnedFd>, socket: &'static str) -> Self {
        Self {
            run,
            socket,
            idle: Mutex::default(),
            ids: AtomicU64::new(1),
            is_answering: AtomicBool::new(false),
            attention: Mutex::new(false),
            called: Condvar::new(),
        }
    }

    pub(crate) fn is_answering(&self) -> bool {
        self.is_answering.load(Ordering::Relaxed)
    }

    /// Waits until something is wrong, or for so long.
    pub(crate) fn wait(&self, most: Duration) {
        let attention = self.attention.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut attention, _) =
            self.called.wait_timeout_while(attention, most, |is_called| !*is_called).unwrap_or_else(PoisonError::into_inner);
        *attention = false;
    }

    /// Has the certificates looked at again.
    fn call(&self) {
        *self.attention.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.called.notify_all();
    }

    /// One question and its answer.
    ///
    /// # Errors
    /// Nobody answers in time, or with something else.
    pub(crate) fn ask(&self, question: impl FnOnce(u64) -> Request) -> io::Result<Answer> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let datagram = question(id).encode_bounded().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let answer = match kept.map(|connection| self.exchange(connection, id, &datagram)) {
            // A connection to a process that was restarted meanwhile breaks at the first use.
            Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                self.connect().and_then(|connection| self.exchange(connection, id, &datagram))
            }
            Some(answer) => answer,
            None => self.connect().and_then(|connection| self.exchange(connection, id, &datagram)),
        };
        self.is_answering.store(answer.is_ok(), Ordering::Relaxed);
        answer
    }

    fn connect(&self) -> io::Result<Seqpacket> {
        let socket = Seqpacket::connect_nonblocking(self.run.as_fd(), self.socket)?;
        socket.set_nonblocking(false)?;
        socket.set_deadline(ORACLE_MAX)?;
        Ok(socket)
    }

    /// A connection without an answer is not used again: the answer may still come, to nobody.
    fn exchange(&self, socket: Seqpacket, id: u64, datagram: &[u8]) -> io::Result<Answer> {
        socket.send(datagram)?;
        let mut buf = vec![0; DATAGRAM_LEN_MAX];
        let Received::Datagram(len, _) = socket.recv(&mut buf)? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        let answer = Answer::decode(buf.get(..len).unwrap_or_default()).map_err(|_| io::ErrorKind::InvalidData)?;
        if answer.id() != id {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
        Ok(answer)
    }
}

/// A key that is elsewhere.
#[derive(Debug)]
pub(crate) struct RemoteKey {
    pub(crate) keys: Arc<Keys>,
    /// `ipc::keys::TLS` or `TLS_CLIENT`.
    pub(crate) purpose: u8,
    /// SHA-256 of its public half.
    pub(crate) name: Vec<u8>,
    /// At least one.
    pub(crate) schemes: Vec<SignatureScheme>,
}

impl SigningKey for RemoteKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = *self.schemes.iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(RemoteSigner { keys: Arc::clone(&self.keys), name: self.name.clone(), purpose: self.purpose, scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.schemes.first() {
            Some(SignatureScheme::ED25519) => SignatureAlgorithm::ED25519,
            Some(SignatureScheme::ECDSA_NISTP256_SHA256 | SignatureScheme::ECDSA_NISTP384_SHA384) => SignatureAlgorithm::ECDSA,
            _ => SignatureAlgorithm::RSA,
        }
    }
}

#[derive(Debug)]
struct RemoteSigner {
    keys: Arc<Keys>,
    name: Vec<u8>,
    purpose: u8,
    scheme: SignatureScheme,
}

impl Signer for RemoteSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let question = |id| Request::Sign {
            id,
            key: self.name.as_slice().into(),
            purpose: self.purpose,
            scheme: u16::from(self.scheme),
            input: message.into(),
        };
        let error = |text: &str| Err(rustls::Error::General(text.to_owned()));
        // Somebody has waited already; whoever looks for changes will tell when that is over.
        if !self.keys.is_answering() {
            return error("qmail-keys does not answer");
        }
        match self.keys.ask(question) {
            Ok(Answer::Signature { signature, .. }) => Ok(signature.0),
            Ok(Answer::UnknownKey { .. }) => {
                self.keys.call();
                error("the certificate has just been replaced")
            }
            Ok(Answer::Refused { text, .. }) => Err(rustls::Error::General(wire::escape::visible(&text))),
            Ok(_) => error("qmail-keys gave no signature"),
            Err(_) => {
                self.keys.call();
                error("qmail-keys does not answer")
            }
        }
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}
